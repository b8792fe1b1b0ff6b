"""A month of history: the payments that began in it, told by their ids. Pure."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import NamedTuple

from audit.report import AuditError

_TEXT = re.compile(r"(\d{4})-(0[1-9]|1[0-2])")


class Month(NamedTuple):
    """A month, by UTC."""

    year: int
    month: int

    def __str__(self) -> str:
        return f"{self.year:04}-{self.month:02}"

    @property
    def following(self) -> Month:
        """The month after it."""
        return Month(self.year + self.month // 12, self.month % 12 + 1)

    @property
    def first_id(self) -> str:
        """What the ids of its payments are not below; those of the following month begin with its own. The migration's
        `history_bound` says the same."""
        began = datetime(self.year, self.month, 1, tzinfo=UTC)
        return f"pay_{int(began.timestamp() * 1000):012x}"

    def has(self, payment_id: str) -> bool:
        """Whether a payment began in it."""
        return self.first_id <= payment_id < self.following.first_id


def read_month(text: str) -> Month:
    """From `2026-09`. Raises AuditError."""
    match = _TEXT.fullmatch(text)
    if match is None:
        raise AuditError(f"{text!r} is no month: write it as 2026-09")
    return Month(int(match.group(1)), int(match.group(2)))


def month_at(moment: datetime) -> Month:
    """The month of a moment."""
    at = moment.astimezone(UTC)
    return Month(at.year, at.month)
