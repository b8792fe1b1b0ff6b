"""What a verification found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

OFFENCES_KEPT = 20
"""Offences are counted to the last, and told one by one up to this many of each kind."""

CHANGED, DELETED, CUT_OFF, REORDERED = "changed", "deleted", "cut off", "reordered"
PROJECTION, UNSEALED, CHECKPOINT = "projection", "unsealed", "checkpoint"
ARCHIVE, LEDGER = "archive", "ledger"


class Fault(NamedTuple):
    """Something that is not as it was written."""

    kind: str
    version: int
    """Of the event; 0 when it is about the payment as a whole."""
    what: str
    """What is wrong, as the rest of a sentence."""


class Offence(NamedTuple):
    """A fault, and whose."""

    kind: str
    merchant_id: str
    id: str
    """Of the payment, or `checkpoint 7`."""
    version: int
    what: str

    def __str__(self) -> str:
        number = f" event {self.version}" if self.version else ""
        return f"{self.kind}: {self.merchant_id} {self.id}{number} {self.what}".replace(":  ", ": ")


@dataclass(slots=True)
class TrailReport:
    """What a verification found."""

    payments: int = 0
    events: int = 0
    unhashed: int = 0
    """Events whose rows have no hash: from before there was a chain. They are vouched for by checkpoints alone."""
    checkpoints: int = 0
    sealed: int = 0
    """Events in checkpoints."""
    unsealed: int = 0
    """Events that are in none yet."""
    kinds: dict[str, int] = field(default_factory=dict)
    """Offences by kind."""
    first: list[Offence] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def offences(self) -> int:
        """How many there are."""
        return sum(self.kinds.values())

    @property
    def ok(self) -> bool:
        """Whether history is as it was written."""
        return not self.kinds

    def offend(self, merchant_id: str, id_: str, fault: Fault) -> None:
        """This is wrong."""
        count = self.kinds[fault.kind] = self.kinds.get(fault.kind, 0) + 1
        if count <= OFFENCES_KEPT:
            self.first.append(Offence(fault.kind, merchant_id, id_, fault.version, fault.what))

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "ok": self.ok,
            "payments": self.payments,
            "events": self.events,
            "unhashed": self.unhashed,
            "checkpoints": self.checkpoints,
            "sealed": self.sealed,
            "unsealed": self.unsealed,
            "offences": self.offences,
            "kinds": self.kinds,
            "first": [one._asdict() for one in self.first],
            "seconds": round(self.seconds, 3),
        }
