"""A database server for tests, and tests that use it."""
