"""Numbers as people read them."""

from __future__ import annotations


def scaled(number: float, unit: str = "") -> str:
    """Three significant digits with a decimal prefix: 44768786 → '44.8 M'; whole numbers below a thousand as they are."""
    if number < 1000:
        return f"{number:.0f} {unit}".rstrip()
    thousands = 0
    while number >= 999.5 and thousands < 4:
        number, thousands = number / 1000, thousands + 1
    return f"{number:.{2 if number < 9.995 else 1 if number < 99.95 else 0}f} {' kMGT'[thousands]}{unit}"
