"""How lines and items are matched, as data. Pure.

A rule says what a line and an item must have in common (their *key*), how many of each belong together, how far apart
their amounts and days may be. Rules are tried in their order; what one has matched the next does not see. Then the
rules with a key are tried once more without a limit on the days: what both sides name alike belongs together however
late it comes, and only the day is worth a remark.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Shape(StrEnum):
    """How many items and lines one match has."""

    ONE_TO_ONE = "1:1"
    """An item is a line."""
    MANY_TO_ONE = "N:1"
    """All items with a key together are a line: a settlement that was paid out at once."""
    ONE_TO_MANY = "1:N"
    """All lines with a key together are an item: it was paid in parts."""


class LineKey(StrEnum):
    """What of a line is compared; NONE: nothing, the amount alone decides."""

    NONE = ""
    REFERENCE = "reference"
    COUNTERPART_REFERENCE = "counterpart_reference"
    BATCH_REFERENCE = "batch_reference"


class ItemKey(StrEnum):
    """What of an item is compared."""

    NONE = ""
    ITEM_ID = "item_id"
    BANK_REFERENCE = "bank_reference"
    BATCH_REFERENCE = "batch_reference"
    PAYMENT_ID = "payment_id"
    SETTLEMENT_ID = "settlement_id"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One way in which lines and items belong together."""

    name: str
    shape: Shape
    line: LineKey
    item: ItemKey
    net: bool = False
    """Whether items count less what the bank keeps of them."""
    tolerance_minor: int = 0
    """How far apart the amounts may be, in minor units."""
    days_before: int
    """How many days the line's value date may lie before the item's."""
    days_after: int
    """How many days behind."""

    @property
    def keyed(self) -> bool:
        """Whether line and item name the same thing, and do not just look alike."""
        return self.line is not LineKey.NONE


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """All of them, and when something is missed."""

    rules: tuple[Rule, ...]
    late_after_days: int
    """An item whose line has not come so many days after its value date is late."""
    missing_after_days: int
    """… and is missing after so many."""
    unknown_after_days: int
    """A line that has no item so many days after its booking date is not in our books."""
