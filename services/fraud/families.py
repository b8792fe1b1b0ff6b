"""The families of windows, and what the scripts are told and answer. Pure; `windows` does the talking.

A family is all windows of one trait, or those of the cards of IP addresses. A window is found by a hash of the merchant
and the value, so that no card token, email or address stands in Valkey in clear. `layout.lua` describes the data and
`count.lua` the arguments.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

import orjson

from services.fraud.domain import Subject, normal_ip
from services.fraud.rules import CARDS_FROM_IP, COUNTERS, TRAITS, Counters, Measure, Rules, Trait, Window

RECORD_BYTES, CARD_BYTES = 30, 14
HASH_BYTES = 8
"""With a billion windows alive the chance that any two are mistaken for each other is 3 %, and then two strangers share
one for an hour."""
CLOCKS_APART_MS_MAX = 60_000
"""In this time before a generation ends, a process looks whether others have begun the next one. A clock that is
further ahead may cost the others the oldest minute of their windows, and no more."""
_CALL_IN_RECORD = slice(6, 14)
_NUMBER_BYTES = 8
_NUMBERS_PER_RECORD = 5
_LOOK = bytes(6)
"""In place of its time, for a payment that is told the cards of its address and brings none."""


class Sighting(NamedTuple):
    """A payment to be counted, once for `caller` and `key` however often it is sent."""

    merchant_id: str
    caller: str
    key: str
    subject: Subject


class Counted(NamedTuple):
    """What the windows hold for one sighting, itself included."""

    counters: Counters
    new: bool
    """Whether it was not in every window already."""
    card_new: bool
    """Whether its card was new to its IP address."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One family under the rules."""

    name: str
    """What its keys begin with. The length of its windows is a part: with another one they start from nothing."""
    span_ms: int
    """Length of its longest window, and of its generations."""
    short_ms: int | None
    """Length of its short window, where it has one."""
    width: int
    """Bytes of a record."""
    kept: int
    """Records that a window keeps at least; 0 when no rule asks for any."""
    summed: bool
    """Whether a rule asks for sums."""

    def told(self, now_ms: int) -> dict[str, object]:
        """The family as the scripts want it."""
        generation, into_ms = divmod(now_ms, self.span_ms)
        return {
            "name": self.name,
            "generation": generation,
            "ending": self.span_ms - into_ms <= min(CLOCKS_APART_MS_MAX, self.span_ms // 2),
            "left_ms": 2 * self.span_ms - into_ms,
            "width": self.width,
            "from": now_ms - self.span_ms,
            "short_from": now_ms - self.short_ms if self.short_ms is not None else False,
            "span_ms": self.span_ms,
            "kept": self.kept,
            "summed": self.summed,
        }


class _Column:
    """What a set brings to one family: a field, a record and the payment's place in the set for each payment that has
    the trait."""

    __slots__ = ("fields", "places", "records")

    def __init__(self) -> None:
        self.fields: list[bytes] = []
        self.records: list[bytes] = []
        self.places: list[int] = []

    def add(self, field: bytes, record: bytes, place: int) -> None:
        """One payment's part."""
        self.fields.append(field)
        self.records.append(record)
        self.places.append(place)

    def arguments(self) -> tuple[bytes, bytes, bytes]:
        """Fields, records and sizes for `count.lua`; puts payments that share a window beside each other."""
        alike: dict[bytes, list[int]] = {}
        if len(set(self.fields)) == len(self.fields):  # nearly always
            return b"".join(self.fields), b"".join(self.records), b""
        for at, field in enumerate(self.fields):
            alike.setdefault(field, []).append(at)
        order = [at for group in alike.values() for at in group]
        self.records = [self.records[at] for at in order]
        self.places = [self.places[at] for at in order]
        sizes = struct.pack(f"<{len(alike)}H", *map(len, alike.values()))
        return b"".join(alike), b"".join(self.records), sizes


class Families:
    """The families that some rules make."""

    def __init__(self, rules: Rules, members_max: int) -> None:
        self._rules = rules
        traits = tuple(_family(rules, trait, members_max) for trait in TRAITS)
        self._families = (*traits, _cards_family(rules))
        self._kept = tuple(family.kept > 0 for family in traits)

    def count(self, sightings: Sequence[Sighting], now_ms: int) -> Tally:
        """A set that is to be counted."""
        columns = self._columns(sightings, now_ms)
        arguments = [self._told(now_ms)]
        for column in columns:
            arguments += column.arguments()
        return Tally(self._families, columns, [s.subject.amount.amount_minor for s in sightings], arguments)

    def forget(self, counted: Sequence[tuple[Sighting, Counted]], now_ms: int) -> list[bytes]:
        """The arguments of `forget.lua` for repeats. All of a repeat's records are named: a window that it is not in
        has nothing to lose."""
        columns = self._columns([sighting for sighting, _ in counted], now_ms)
        cards = columns[-1]
        brought = [at for at, place in enumerate(cards.places) if counted[place][1].card_new]
        cards.fields = [cards.fields[at] for at in brought]
        cards.records = [cards.records[at] for at in brought]
        arguments = [self._told(now_ms)]
        for column in columns:
            arguments.append(b"".join(column.fields))
            arguments.append(b"".join([record[_CALL_IN_RECORD] for record in column.records]))
        return arguments

    def _told(self, now_ms: int) -> bytes:
        return orjson.dumps([family.told(now_ms) for family in self._families])

    def _columns(self, sightings: Sequence[Sighting], now_ms: int) -> tuple[_Column, ...]:
        """One column per family."""
        columns = cards, customers, emails, ips, cards_of_ips = tuple(_Column() for _ in self._families)
        keeps_cards, keeps_customers, keeps_emails, keeps_ips = self._kept
        small = self._rules.small
        time_bytes = now_ms.to_bytes(6, "little")
        windows_of: dict[str, blake2b] = {}
        for place, (merchant_id, caller, key, subject) in enumerate(sightings):
            amount, card_token, _, customer_id, email, ip_address, _ = subject
            hasher = windows_of.get(merchant_id)
            if hasher is None:
                hasher = windows_of[merchant_id] = _hasher(merchant_id)
            amount_bytes = amount.amount_minor.to_bytes(7, "little")
            call = blake2b(f"{caller}\x00{key}".encode(), digest_size=HASH_BYTES).digest()
            record = time_bytes + call + amount.currency.encode() + amount_bytes[:6] + amount_bytes
            card = _hash(hasher, card_token)
            if keeps_cards:
                cards.add(card, record, place)
            if customer_id and keeps_customers:
                customers.add(_hash(hasher, customer_id), record, place)
            if email and keeps_emails:
                emails.add(_hash(hasher, email), record, place)
            if ip_address:
                ip = _hash(hasher, normal_ip(ip_address)[1])
                if keeps_ips:
                    ips.add(ip, record, place)
                cards_of_ips.add(ip, (time_bytes if small(amount) else _LOOK) + card, place)
        return columns


class Tally:
    """A set on its way: what `count.lua` is asked, and how its answer reads."""

    def __init__(
        self,
        families: Sequence[Family],
        columns: Sequence[_Column],
        amounts: Sequence[int],
        arguments: list[bytes],
    ) -> None:
        self.arguments = arguments
        self._families = families
        self._columns = columns
        self._amounts = amounts

    def read(self, reply: bytes) -> list[Counted]:
        """What each payment found. A window that the reply leaves out has the payment and nothing else."""
        rows = [[0] * COUNTERS for _ in self._amounts]
        new_to = [0] * len(rows)
        for number, (family, column) in enumerate(zip(self._families, self._columns, strict=True)):
            at = number * 4
            if at == CARDS_FROM_IP:
                break
            for place in column.places:
                row = rows[place]
                row[at] = row[at + 2] = 1
                if family.summed:
                    row[at + 1] = row[at + 3] = self._amounts[place]
                new_to[place] += 1
        cards = self._columns[-1]
        cards_new = [False] * len(rows)
        for place, record in zip(cards.places, cards.records, strict=True):
            if not record.startswith(_LOOK):
                rows[place][CARDS_FROM_IP] = 1
                cards_new[place] = True
        if reply:
            self._read_windows(reply, rows, new_to, cards_new)
        return [
            Counted(row, new > 0, card_new)
            for row, new, card_new in zip(rows, new_to, cards_new, strict=True)
        ]

    def _read_windows(
        self, reply: bytes, rows: list[list[int]], new_to: list[int], cards_new: list[bool]
    ) -> None:
        """Put in what the reply says of windows."""
        numbers = struct.unpack(f"<{len(reply) // _NUMBER_BYTES}q", reply)
        at = 0
        while at < len(numbers):
            family, first, size = numbers[at : at + 3]
            at += 3
            row_at = (family - 1) * 4
            for place in self._columns[family - 1].places[first : first + size]:
                found = numbers[at : at + _NUMBERS_PER_RECORD]
                at += _NUMBERS_PER_RECORD
                if row_at == CARDS_FROM_IP:
                    rows[place][CARDS_FROM_IP] = found[2]
                    cards_new[place] = found[4] == 1
                else:
                    rows[place][row_at : row_at + 4] = found[:4]
                    new_to[place] -= not found[4]


def _hasher(merchant_id: str) -> blake2b:
    """Begins the hash of a merchant's windows. Copying one is cheaper than making one."""
    return blake2b(f"{merchant_id}\x00".encode(), digest_size=HASH_BYTES)


def _hash(hasher: blake2b, value: str) -> bytes:
    copy = hasher.copy()
    copy.update(value.encode())
    return copy.digest()


def _family(rules: Rules, trait: Trait, members_max: int) -> Family:
    summed = any(rule.trait is trait and rule.measure is Measure.SUM for rule in rules.velocities)
    return Family(
        name=f"fraud:{trait}:{rules.long_seconds}:",
        span_ms=rules.long_seconds * 1_000,
        short_ms=rules.short_seconds * 1_000,
        width=RECORD_BYTES,
        kept=_kept(rules, trait, members_max),
        summed=summed,
    )


def _cards_family(rules: Rules) -> Family:
    testing = rules.card_testing
    return Family(
        name=f"fraud:cards:{testing.window_seconds}:",
        span_ms=testing.window_seconds * 1_000,
        short_ms=None,
        width=CARD_BYTES,
        kept=testing.cards_above + 1,
        summed=False,
    )


def _kept(rules: Rules, trait: Trait, members_max: int) -> int:
    """Members that a trait's windows keep: one more than the largest count a rule asks for, since that one
    more makes it fire. A sum needs every payment of its window, unless a count of the long window fires
    before any is forgotten."""
    asked = [rule for rule in rules.velocities if rule.trait is trait]
    counts = [rule for rule in asked if rule.measure is Measure.COUNT]
    if not asked:
        return 0
    if len(counts) < len(asked) and not any(rule.window is Window.LONG for rule in counts):
        return members_max
    return max(rule.above for rule in counts) + 1
