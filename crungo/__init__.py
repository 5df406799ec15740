"""Containers for async Python."""
