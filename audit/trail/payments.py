"""What must be true of one payment's history. Pure: rows in, what is wrong out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hashlib import sha256
from typing import NamedTuple

import orjson

from audit.payments import PAYMENT_COLUMNS, payment_of
from audit.snapshot import Row
from audit.trail.report import CHANGED, CUT_OFF, DELETED, PROJECTION, REORDERED, Fault
from services.payment.domain import Event, EventType, Payment, apply, fold
from services.payment.ledger import Entry, journal
from services.payment.trail.chain import GENESIS, event_hash

PAYMENTS_COLUMNS = f"{PAYMENT_COLUMNS}, CASE WHEN hashed_version = version THEN event_hash END"
EVENT_COLUMNS = "merchant_id, payment_id, version, type, data::text, timestamptz_send(recorded_at), hash"
"""The time travels as the server has it, in microseconds since 2000: to make a number of it there costs as much as all
the rest of the row."""
PAYMENTS = f"SELECT {PAYMENTS_COLUMNS} FROM payments ORDER BY merchant_id/*bytes*/, payment_id/*bytes*/"
EVENTS = f"""
SELECT {EVENT_COLUMNS} FROM payment_events ORDER BY merchant_id/*bytes*/, payment_id/*bytes*/, version
"""
PLACES_MAX = 50
"""Events of one payment that are tried in each other's places, to tell one that was moved from one that was changed."""

_FIELDS = Payment._fields
_NO_ROW = "has events and no row"
_IMPOSSIBLE = (AssertionError, KeyError, ValueError, TypeError)
"""What reading or folding events raises that nobody can have written."""
_TYPES = {type_.value: type_ for type_ in EventType}
EPOCH_US = 946_684_800_000_000
"""Microseconds from 1970 to 2000, from which PostgreSQL counts."""


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

    def judge(self) -> tuple[bytes, list[Fault]]:
        """Its events as `Entry.line` says each, with a line's end, and everything that is wrong with it.

        Nearly every history is as it should be, and to see that takes half the time that it takes to name what is not.
        """
        names = orjson.dumps((self.merchant_id, self.payment_id)).decode()[1:-1]
        stem = f"{self.merchant_id}\0{self.payment_id}\0"
        previous, due, lines, read = GENESIS, 1, [], []
        try:
            for version, type_, data_json, recorded, hashed in self.events:
                # `event_hash`, written out: this is done for every event there is.
                told = f"{stem}{version}\0{type_}\0{data_json}"
                previous = sha256(previous + told.encode()).digest()
                if version != due or (hashed is not None and hashed != previous):
                    return self._judge_closely(names)
                due += 1
                lines.append(f'[{recorded},{names},{version},"{previous.hex()}"]\n')
                read.append(Event(_TYPES[type_], orjson.loads(data_json)))
            row = self.row
            if row is None:
                return "".join(lines).encode(), [Fault(PROJECTION, 0, _NO_ROW)]
            if row[6] != due - 1 or (row[-1] is not None and row[-1] != previous):
                return self._judge_closely(names)
            if payment_of(row[:-1]) != fold(self.merchant_id, self.payment_id, 0, read):
                return self._judge_closely(names)
        except _IMPOSSIBLE:
            return self._judge_closely(names)
        return "".join(lines).encode(), []

    def _judge_closely(self, names: str) -> tuple[bytes, list[Fault]]:
        hashes = self.hashes()
        lines = [
            f'[{event.recorded_us},{names},{event.version},"{hashed.hex()}"]\n'
            for event, hashed in zip(self.events, hashes, strict=True)
        ]
        return "".join(lines).encode(), self.faults(hashes)

    def judge_alone(self) -> tuple[bytes, list[Fault]]:
        """The same for a history whose row is somewhere else: nothing is held against it."""
        lines, faults = self._judge_closely(orjson.dumps((self.merchant_id, self.payment_id)).decode()[1:-1])
        faults = [fault for fault in faults if fault.what != _NO_ROW]
        if not faults:
            try:
                self._fold()
            except _IMPOSSIBLE as error:
                faults = [Fault(PROJECTION, 0, f"has events that cannot have happened: {error}")]
        return lines, faults

    def _fold(self) -> Payment:
        read = [Event(_TYPES[one.type], orjson.loads(one.data_json)) for one in self.events]
        return fold(self.merchant_id, self.payment_id, 0, read)

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
            yield Fault(PROJECTION, 0, _NO_ROW)
            return
        try:
            told = self._fold()
        except _IMPOSSIBLE as error:
            yield Fault(PROJECTION, 0, f"has events that cannot have happened: {error}")
            return
        row = payment_of(self.row[:-1])
        if row != told:
            for name, stored, due in zip(_FIELDS, row, told, strict=True):
                if stored != due:
                    yield Fault(PROJECTION, 0, f"has {name} {stored!s} where its events say {due!s}")


def booked_by(history: History) -> list[Entry]:
    """The ledger entries that the events of a whole history have made."""
    entries: list[Entry] = []
    first, *rest = [Event(_TYPES[one.type], orjson.loads(one.data_json)) for one in history.events]
    payment = fold(history.merchant_id, history.payment_id, 0, [first])
    for event in rest:
        before, payment = payment, apply(payment, event)
        entries += journal(before, payment)
    return entries
