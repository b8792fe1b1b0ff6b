"""What must be true of one payment's history. Pure: rows in, what is wrong out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import orjson

from audit.payments import PAYMENT_COLUMNS, payment_of
from audit.snapshot import Row
from audit.trail.report import CHANGED, CUT_OFF, DELETED, PROJECTION, REORDERED, Fault
from services.payment.domain import Event, EventType, Payment, fold
from services.payment.trail.chain import GENESIS, event_hash

PAYMENTS = f"""
SELECT {PAYMENT_COLUMNS}, CASE WHEN hashed_version = version THEN event_hash END
FROM payments ORDER BY merchant_id/*bytes*/, payment_id/*bytes*/
"""
EVENTS = """
SELECT merchant_id, payment_id, version, type, data::text, (extract(epoch FROM recorded_at) * 1000000)::bigint, hash
FROM payment_events ORDER BY merchant_id/*bytes*/, payment_id/*bytes*/, version
"""
PLACES_MAX = 50
"""Events of one payment that are tried in each other's places, to tell one that was moved from one that was changed."""

_FIELDS = Payment._fields


class StoredEvent(NamedTuple):
    """An event as it is stored."""

    version: int
    type: str
    data_json: str
    recorded_us: int
    hash: bytes | None

    def hash_behind(self, previous: bytes, merchant_id: str, payment_id: str, version: int) -> bytes:
        """The hash that it has in some place of a payment's chain."""
        return event_hash(previous, merchant_id, payment_id, version, self.type, self.data_json)


class History(NamedTuple):
    """What is stored of one payment."""

    merchant_id: str
    payment_id: str
    row: Row | None
    events: Sequence[StoredEvent]

    def hashes(self) -> list[bytes]:
        """Of each event: what its row says, and where it says nothing, what follows from the rows before it."""
        previous, hashes = GENESIS, []
        for event in self.events:
            if event.hash is None:
                previous = event.hash_behind(previous, self.merchant_id, self.payment_id, event.version)
            else:
                previous = event.hash
            hashes.append(previous)
        return hashes

    def faults(self, hashes: Sequence[bytes]) -> list[Fault]:
        """Everything that is wrong with it."""
        gaps = list(self._gaps())
        faults = gaps + list(self._broken_links(hashes))
        if self.row is not None and self.row[-1] is not None and not gaps and self.row[-1] != hashes[-1]:
            faults.append(
                Fault(CHANGED, len(hashes), "is not the one that the payment's row says is the last")
            )
        if not gaps:
            faults += self._projection()
        return faults

    def _gaps(self) -> Iterator[Fault]:
        due = 1
        for event in self.events:
            for version in range(due, min(event.version, due + PLACES_MAX)):
                yield Fault(DELETED, version, "is missing between others")
            due = event.version + 1
        if self.row is None:
            return
        last: int = self.row[6]
        for version in range(due, min(last + 1, due + PLACES_MAX)):
            yield Fault(CUT_OFF, version, f"is missing: the payment's row is at {last}")

    def _broken_links(self, hashes: Sequence[bytes]) -> Iterator[Fault]:
        """Events whose hash is not that of what they say. What comes behind is held against the hash as it stands, so
        that one change is one fault."""
        previous, due = GENESIS, 1
        for event, hashed in zip(self.events, hashes, strict=True):
            # Behind a gap there is nothing to hold it against.
            known = event.version == due and event.hash is not None
            if known and event.hash_behind(previous, self.merchant_id, self.payment_id, due) != hashed:
                yield self._named(event, hashes)
            previous, due = hashed, event.version + 1

    def _named(self, event: StoredEvent, hashes: Sequence[bytes]) -> Fault:
        """Whether it was written for another place, or says something else than it did, or follows another than it
        did."""
        for place, previous in enumerate([GENESIS, *hashes[: PLACES_MAX - 1]]):
            for version in {place + 1, *(range(1, min(len(hashes), PLACES_MAX) + 1))}:
                if event.hash_behind(previous, self.merchant_id, self.payment_id, version) != event.hash:
                    continue
                if version != event.version:
                    return Fault(REORDERED, event.version, f"was written as event {version}")
                return Fault(REORDERED, event.version, "was written behind another event")
        return Fault(CHANGED, event.version, f"({event.type}) does not say what it said when it was written")

    def _projection(self) -> Iterator[Fault]:
        if self.row is None:
            yield Fault(PROJECTION, 0, "has events and no row")
            return
        try:
            read = [Event(EventType(one.type), orjson.loads(one.data_json)) for one in self.events]
            told = fold(self.merchant_id, self.payment_id, 0, read)
        except (AssertionError, KeyError, ValueError, TypeError) as error:
            yield Fault(PROJECTION, 0, f"has events that cannot have happened: {error}")
            return
        row = payment_of(self.row[:-1])
        if row != told:
            for name, stored, due in zip(_FIELDS, row, told, strict=True):
                if stored != due:
                    yield Fault(PROJECTION, 0, f"has {name} {stored!s} where its events say {due!s}")
