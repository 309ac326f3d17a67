"""The benchmark suites."""
