"""Benchmarks, side by side with peers: ``make bench-pull``, ``make bench-run``, ``make bench-thousand``."""
