"""Benchmarks: a figure exists only after its correctness gate passed, and its row says on what, with what and how it was measured."""
