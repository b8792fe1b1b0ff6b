"""What the callers of one phase were answered."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class Tally:
    """Counts of orders, authorizations or rows: "items"."""

    succeeded: int = 0
    """Answered COMPLETED (AUTHORIZED, inserted)."""
    failed: Counter[str] = field(default_factory=Counter)
    """Answered otherwise, or never: by state or reason."""
    repeated: Counter[str] = field(default_factory=Counter)
    """Sent again with the same key, because the answer said so: by its reason. One item may be here often."""
    calls: int = 0
    samples: list[tuple[int, int]] = field(default_factory=list)
    """Of what succeeded: microseconds from the first send to the answer, and how many items it was for."""
    seconds: float = 0.0
    """From the first send to the last answer."""
    cpu_seconds: float = 0.0
    """Of the load generator, in that time."""

    @property
    def answered(self) -> int:
        """Items that are through, one way or the other."""
        return self.succeeded + self.failed.total()

    def succeed(self, seconds: float, items: int) -> None:
        """So many items were answered well after so long."""
        self.succeeded += items
        self.samples.append((int(seconds * 1_000_000), items))

    def to_json(self) -> dict[str, Any]:
        """For the other process."""
        return {name: getattr(self, name) for name in self.__slots__}

    @staticmethod
    def from_json(fields: dict[str, Any]) -> Tally:
        """Back from `to_json`."""
        counters = {name: Counter(fields[name]) for name in ("failed", "repeated")}
        samples = [(int(microseconds), int(items)) for microseconds, items in fields["samples"]]
        return Tally(**fields | counters | {"samples": samples})
