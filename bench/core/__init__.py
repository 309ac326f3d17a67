"""What all suites share: cases, rows, gate, clock, tables."""
