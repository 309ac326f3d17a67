"""Tags of spans: IOB2 (B-x, I-x, O), BIOES with E-x at the end and S-x alone, BILOU with L-x and U-x in their place."""

from __future__ import annotations

import re
from collections.abc import Sequence

PLACES = ("B-", "I-", "E-", "S-", "L-", "U-")
TAG = re.compile(r"O|[BIESLU]-\S+")
EXPECTED_TAG = "O, B-… or I-… (E-…, S-… of BIOES, L-…, U-… of BILOU)"


def iob2(tags: Sequence[str]) -> list[str]:
    """The same spans as B-, I- and O: what follows an end or a single word begins another span."""
    found = []
    ended = False
    for tag in tags:
        place, name = tag[:1], tag[2:]
        begins = place in ("B", "S", "U") or ended
        found.append("O" if tag == "O" else f"{'B' if begins else 'I'}-{name}")
        ended = place in ("E", "S", "L", "U")
    return found
