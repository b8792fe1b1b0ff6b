"""The form of what is broken by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Breakage:
    """What is broken by hand, by database, and which invariants then do not hold, no more and no less. `named` is part
    of what the first of them says."""

    story: str
    statements: Mapping[str, str]
    violated: set[str]
    named: str
