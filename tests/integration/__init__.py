"""Tests with a real registry, real containers, real terminals."""
