"""What an audit found: one line per invariant."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

OFFENCES_KEPT = 20
"""Offenders are counted to the last, and told one by one up to this many: who breaks more has one cause to look for."""


class AuditError(Exception):
    """The audit cannot be carried out; the text is one line for a person."""


@dataclass(frozen=True, slots=True)
class Offence:
    """Something that breaks an invariant."""

    merchant_id: str
    id: str
    """Of the payment, order, journal, product …"""
    what: str
    """What is wrong with it, as the rest of a sentence that begins with the id."""

    def __str__(self) -> str:
        return f"{self.merchant_id} {self.id} {self.what}".lstrip()


@dataclass(slots=True)
class Line:
    """One invariant, as far as it was checked."""

    number: int
    name: str
    sentence: str
    compared: str
    """What was held against what."""
    counted: dict[str, int] = field(default_factory=dict)
    """How many of what were judged, for example {"payments": 312}."""
    in_flight: int = 0
    """How many were not judged, because they are under way."""
    offences: int = 0
    first: list[Offence] = field(default_factory=list)
    """The first `OFFENCES_KEPT` offences."""
    noted_as: str = ""
    """The word for its notes."""
    notes: int = 0
    first_notes: list[Offence] = field(default_factory=list)
    """Nothing wrong, but a person should know: sagas that are parked, payments that nobody here has books of."""

    @property
    def ok(self) -> bool:
        """Whether the invariant holds."""
        return self.offences == 0

    def count(self, what: str, number: int = 1) -> None:
        """So many were judged."""
        self.counted[what] = self.counted.get(what, 0) + number

    def offend(self, offences: Iterable[Offence]) -> None:
        """These break the invariant."""
        for offence in offences:
            self.offences += 1
            if len(self.first) < OFFENCES_KEPT:
                self.first.append(offence)

    def note(self, notes: Iterable[Offence]) -> None:
        """These should be known."""
        for one in notes:
            self.notes += 1
            if len(self.first_notes) < OFFENCES_KEPT:
                self.first_notes.append(one)


@dataclass(frozen=True, slots=True)
class Report:
    """What an audit found."""

    lines: tuple[Line, ...]
    in_flight: Mapping[str, int]
    """Sagas and payments that were under way, by kind: they were not judged."""
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether every invariant holds for everything that was judged."""
        return all(line.ok for line in self.lines)

    @property
    def settled(self) -> bool:
        """Whether nothing was left unjudged."""
        return not any(self.in_flight.values())

    @property
    def violated(self) -> tuple[str, ...]:
        """Names of the invariants that do not hold."""
        return tuple(line.name for line in self.lines if not line.ok)

    def as_json(self) -> dict[str, Any]:
        """For machines."""
        return {
            "ok": self.ok,
            "in_flight": dict(self.in_flight),
            "seconds": round(self.seconds, 3),
            "invariants": [
                {
                    "number": line.number,
                    "name": line.name,
                    "sentence": line.sentence,
                    "compared": line.compared,
                    "ok": line.ok,
                    "counted": line.counted,
                    "in_flight": line.in_flight,
                    "offences": line.offences,
                    "first": [_as_json(one) for one in line.first],
                    "notes": line.notes,
                    "first_notes": [_as_json(one) for one in line.first_notes],
                }
                for line in self.lines
            ],
        }


def _as_json(offence: Offence) -> dict[str, str]:
    return {"merchant_id": offence.merchant_id, "id": offence.id, "what": offence.what}
