"""Programs that use crungo, each run by a test."""
