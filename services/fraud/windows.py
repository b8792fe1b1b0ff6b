"""The sliding windows of velocity, kept in Valkey: one round trip for a set, and never a hang.

Valkey holds them because they are derived and short-lived: losing them all costs an hour of memory and no
money. Key `fraud:<merchant>:<trait>:<hash of the value>`; values are hashed so that no card token, email or
address stands there in clear. The counting is done by `count.lua`, which also describes the data.

An answer that does not come within the budget is not waited for: `count` returns None and the caller decides
without. After some failures in a row Valkey is left alone but for a probe (see `breaker`). A set touches keys
everywhere, so this needs one Valkey server (with replicas if you like), not a cluster.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import struct
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files
from typing import Any, NamedTuple, TypeVar

import orjson
from prometheus_client import Counter
from valkey.asyncio import Valkey
from valkey.exceptions import NoScriptError, ValkeyError

from services.fraud.breaker import Breaker
from services.fraud.domain import Subject, normal_ip
from services.fraud.rules import COUNTERS, TRAITS, Counters, Measure, Rules, Trait, Window

T = TypeVar("T")

log = logging.getLogger(__name__)

CONNECTIONS_MAX = 16
"""A few sets are in flight at a time; the rest is room for connections that are being given up."""
RECORD_BYTES, CARD_BYTES = 30, 14
_HASH = slice(6, 14)
_COLUMNS = COUNTERS + 2
_NUMBER_BYTES = 8

FAILURES = Counter(
    "paymesh_fraud_window_failures_total", "Sets for which the window store did not answer in time."
)


@dataclass(frozen=True, slots=True)
class Sighting:
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


class _Places(NamedTuple):
    """Where one sighting is kept, and as what; empty texts for nowhere."""

    windows: tuple[str, str, str, str]
    record: bytes
    cards: str
    card: bytes


class _Script(NamedTuple):
    text: bytes
    sha: str


class Windows:
    """The windows of one process. Nothing is connected before the first count."""

    def __init__(
        self, url: str, rules: Rules, *, members_max: int, timeout_ms: int, breaker: Breaker
    ) -> None:
        self._client = Valkey.from_url(url, max_connections=CONNECTIONS_MAX)
        self._rules = rules
        self._kept = [_kept(rules, trait, members_max) for trait in TRAITS]
        self._summed = [
            any(rule.trait is trait and rule.measure is Measure.SUM for rule in rules.velocities)
            for trait in TRAITS
        ]
        self._timeout_seconds = timeout_ms / 1000
        self._breaker = breaker
        self._count = _script("count.lua")
        self._forget = _script("forget.lua")
        self._abandoned: set[asyncio.Task[Any]] = set()

    async def count(self, sightings: Sequence[Sighting], at: datetime) -> list[Counted] | None:
        """Count a set at the instant `at`; None when Valkey does not answer in time or is being left
        alone."""
        if not self._breaker.admits(time.monotonic()):
            return None
        now_ms = int(at.timestamp() * 1000)
        places = [self._places(sighting, now_ms) for sighting in sightings]
        argument = orjson.dumps(self._input(sightings, places, now_ms))
        records = b"".join([place.record for place in places])
        cards = b"".join([place.card for place in places])
        reply: bytes | None = await self._guarded(self._run(self._count, argument, records, cards))
        if reply is None:
            return None
        numbers = struct.unpack(f"<{len(reply) // _NUMBER_BYTES}q", reply)
        return [
            Counted(numbers[i : i + COUNTERS], numbers[i + COUNTERS] == 1, numbers[i + COUNTERS + 1] == 1)
            for i in range(0, len(numbers), _COLUMNS)
        ]

    async def forget(self, counted: Sequence[tuple[Sighting, Counted]]) -> None:
        """Take back sightings that turned out to be repeats from beyond the windows' memory. Best effort:
        what stays behind counts one payment too many until it leaves its window."""
        if not counted or self._breaker.open:
            return
        keys: list[str] = []
        hexes: list[str] = []
        widths: list[int] = []
        for sighting, found in counted:
            places = self._places(sighting, 0)
            for key in filter(None, places.windows):
                keys.append(key)
                hexes.append(places.record[_HASH].hex())
                widths.append(RECORD_BYTES)
            if found.card_new:
                keys.append(places.cards)
                hexes.append(places.card[_HASH].hex())
                widths.append(CARD_BYTES)
        argument = orjson.dumps({"keys": keys, "hexes": hexes, "widths": widths})
        await self._guarded(self._run(self._forget, argument))

    async def close(self) -> None:
        """Give the connections back."""
        await self._client.aclose()

    async def _run(self, script: _Script, *arguments: bytes) -> Any:
        try:
            return await self._client.evalsha(script.sha, 0, *arguments)
        except NoScriptError:  # the first call, or Valkey started anew; EVAL makes it known
            return await self._client.eval(script.text, 0, *arguments)

    async def _guarded(self, work: Coroutine[Any, Any, T]) -> T | None:
        """Do `work` within the budget and tell the breaker; None when it failed."""
        try:
            result = await self._in_time(work)
        except (ValkeyError, OSError) as error:  # TimeoutError is an OSError
            FAILURES.inc()
            self._breaker.failed(time.monotonic())
            log.warning("the window store did not answer: %s", error or type(error).__name__)
            return None
        if self._breaker.open:
            log.warning("the window store answers again")
        self._breaker.succeeded()
        return result

    async def _in_time(self, work: Coroutine[Any, Any, T]) -> T:
        """Raises TimeoutError. Work that is late is cancelled and *not* waited for: closing a connection to a
        host that is gone can itself take long. A reply that has come while the loop was busy with another set
        still counts, because `wait` looks once more when it wakes up; a timeout around the work would not."""
        task = asyncio.create_task(work)
        try:
            done, _ = await asyncio.wait((task,), timeout=self._timeout_seconds)
        finally:
            if not task.done():
                task.cancel()
                self._abandoned.add(task)
                task.add_done_callback(self._gone)
        if not done:
            raise TimeoutError(f"no answer within {self._timeout_seconds * 1000:.0f} ms")
        return task.result()

    def _gone(self, task: asyncio.Task[Any]) -> None:
        self._abandoned.discard(task)
        if not task.cancelled():
            task.exception()  # seen; nobody is interested any more

    def _places(self, sighting: Sighting, now_ms: int) -> _Places:
        subject = sighting.subject
        amount = subject.amount
        network = normal_ip(subject.ip_address)[1] if subject.ip_address else ""
        prefix = f"fraud:{sighting.merchant_id}:"
        time_bytes = now_ms.to_bytes(6, "little")
        call = _hash(f"{sighting.caller}\x00{sighting.key}")
        card = _hash(subject.card_token)
        ip = _hash(network).hex() if network else ""
        kept = self._kept
        return _Places(
            (
                f"{prefix}card:{card.hex()}" if kept[0] else "",
                f"{prefix}customer:{_hash(subject.customer_id).hex()}"
                if kept[1] and subject.customer_id
                else "",
                f"{prefix}email:{_hash(subject.email).hex()}" if kept[2] and subject.email else "",
                f"{prefix}ip:{ip}" if kept[3] and ip else "",
            ),
            time_bytes + call + amount.currency.encode() + amount.amount_minor.to_bytes(6, "little"),
            f"{prefix}cards:{ip}" if ip else "",
            time_bytes + card,
        )

    def _input(
        self, sightings: Sequence[Sighting], places: Sequence[_Places], now_ms: int
    ) -> dict[str, object]:
        """The first argument of `count.lua`; see there."""
        rules = self._rules
        amounts = [sighting.subject.amount for sighting in sightings]
        return {
            "short_from": now_ms - rules.short_seconds * 1000,
            "long_from": now_ms - rules.long_seconds * 1000,
            "long_ms": rules.long_seconds * 1000,
            "cards_from": now_ms - rules.card_testing.window_seconds * 1000,
            "cards_ms": rules.card_testing.window_seconds * 1000,
            "kept": self._kept,
            "summed": self._summed,
            "cards_kept": rules.card_testing.cards_above + 1,
            "keys": [key for place in places for key in place.windows],
            "card_keys": [place.cards for place in places],
            "small": [rules.small(amount) for amount in amounts],
            "currencies": [amount.currency for amount in amounts],
            "amounts": [amount.amount_minor for amount in amounts],
        }


def _script(name: str) -> _Script:
    text = files(__package__).joinpath(name).read_bytes()
    return _Script(text, hashlib.sha1(text, usedforsecurity=False).hexdigest())


def _hash(value: str) -> bytes:
    """8 bytes: with a billion values alive the chance that any two are mistaken for each other is 3 %, and
    then two strangers share a window for an hour."""
    return hashlib.blake2b(value.encode(), digest_size=8).digest()


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
