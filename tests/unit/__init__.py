"""Tests without root or network."""
