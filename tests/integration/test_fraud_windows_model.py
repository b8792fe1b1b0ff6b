"""The sliding windows on a real Valkey against a model that keeps every payment and reads through all of them: whatever
is sent, however it is grouped, repeated and spread over time, both find the same."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from valkey.asyncio import Valkey

from deploy.local.stores import EmbeddedValkey
from services.fraud.domain import Subject
from services.fraud.families import Counted, Sighting
from services.fraud.rules import (
    CARDS_FROM_IP,
    CardTestingRule,
    Measure,
    Rules,
    Trait,
    VelocityRule,
    Window,
    counter_place,
)
from services.fraud.windows import Windows
from services.kit.breaker import Breaker
from services.kit.money import Money
from tests.depth import examples

START = datetime(2030, 5, 17, 12, 0, tzinfo=UTC)
SHORT_SECONDS, LONG_SECONDS, CARDS_SECONDS = 60, 3_600, 600
RULES = Rules(
    decline_above_milli=800,
    short_seconds=SHORT_SECONDS,
    long_seconds=LONG_SECONDS,
    amounts=(),
    # Limits that no example reaches: no window forgets anything that still counts.
    velocities=tuple(
        VelocityRule(f"{trait}_{window}_{measure}", trait, window, measure, 400, 1)
        for trait in Trait
        for window in Window
        for measure in Measure
    ),
    card_testing=CardTestingRule(
        cards_above=400, window_seconds=CARDS_SECONDS, small_units=10, score_milli=1
    ),
    bin_country_score_milli=0,
    bin_countries={},
    degraded_amount_units=0,
    worth={},
)


@dataclass
class Model:
    """Everything that ever happened."""

    payments: dict[str, tuple[Sighting, datetime]] = field(default_factory=dict)
    """First time of each call, by key."""
    cards: dict[tuple[str, str], datetime] = field(default_factory=dict)
    """By (address, card): the last time from which the card counts there."""

    def count(self, sighting: Sighting, at: datetime) -> tuple[list[int], bool, bool]:
        """What a payment finds, whether it is new, and whether its card is new to its address."""
        subject = sighting.subject
        is_new = sighting.key not in self.payments
        self.payments.setdefault(sighting.key, (sighting, at))
        counters = [0] * (CARDS_FROM_IP + 1)
        for number, trait in enumerate(Trait):
            value = subject.traits()[number]
            alike = [
                (one.subject.amount, when)
                for one, when in self.payments.values()
                if value and one.subject.traits()[number] == value
            ]
            for window, seconds in ((Window.SHORT, SHORT_SECONDS), (Window.LONG, LONG_SECONDS)):
                alive = [amount for amount, when in alike if when >= at - timedelta(seconds=seconds)]
                counters[counter_place(trait, window, Measure.COUNT)] = len(alive)
                counters[counter_place(trait, window, Measure.SUM)] = sum(
                    a.amount_minor for a in alive if a.currency == subject.amount.currency
                )
        card_is_new = False
        since = at - timedelta(seconds=CARDS_SECONDS)
        if address := subject.ip_address:
            pair = (address, subject.card_token)
            if (
                subject.amount.amount_minor <= 1_000
                and self.cards.get(pair, START - timedelta(days=1)) < since
            ):
                self.cards[pair] = at
                card_is_new = True
            counters[CARDS_FROM_IP] = sum(
                1 for (seen_at, _), when in self.cards.items() if seen_at == address and when >= since
            )
        return counters, is_new, card_is_new


# Calls are numbered, and what a call says follows from its number, so that a number drawn twice is a repeat.
CALLS = st.lists(st.integers(0, 120), min_size=1, max_size=30, unique=True)
STEPS = st.lists(
    st.tuples(st.sampled_from([0, 1, 999, 20_000, 59_999, 61_000, 599_000, 900_000, 3_000_000]), CALLS),
    min_size=1,
    max_size=12,
)
SEEDS = st.integers(0, 3)


def _sighting(number: int, seed: int) -> Sighting:
    """Few values, shared by many payments: windows on shelves and windows with keys of their own."""
    spread = (number * 7 + seed) % 5
    subject = Subject(
        Money(number * 37 % 1_500 + 1, ("USD", "EUR", "USD")[number % 3]),
        f"tok_{number % (2 + seed * 9)}",
        "",
        "" if spread == 0 else f"cus_{number % 3}",
        "" if spread == 1 else f"{number % 40}@example.com",
        "" if spread == 2 else f"203.0.113.{number % (1 + seed)}",
        "",
    )
    return Sighting("mer_1", "tests", f"key_{number}", subject)


@asynccontextmanager
async def _open(valkey: EmbeddedValkey) -> AsyncIterator[Windows]:
    """Windows on an empty Valkey: who begins at START again must not find what an earlier one left an hour later."""
    async with Valkey.from_url(valkey.url) as client:
        await client.flushall()
    breaker = Breaker(failures_max=3, probe_seconds=1.0)
    windows = Windows(valkey.url, RULES, members_max=1_000, timeout_ms=2_000, breaker=breaker)
    try:
        yield windows
    finally:
        await windows.close()


async def _counted(windows: Windows, sightings: list[Sighting], at: datetime) -> list[Counted]:
    counted = await windows.count(sightings, at)
    assert counted is not None
    return counted


@settings(
    max_examples=examples(20, 60), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=STEPS, seed=SEEDS)
def test_windows_find_what_a_model_finds_that_keeps_everything(
    valkey: EmbeddedValkey, steps: list[tuple[int, list[int]]], seed: int
) -> None:
    async def run() -> None:
        model, at = Model(), START
        async with _open(valkey) as windows:
            for wait_ms, numbers in steps:
                at += timedelta(milliseconds=wait_ms)
                # A repeat from beyond the longest window is the business of `forget`.
                numbers = [
                    n
                    for n in numbers
                    if f"key_{n}" not in model.payments
                    or model.payments[f"key_{n}"][1] >= at - timedelta(seconds=LONG_SECONDS)
                ]
                sightings = [_sighting(n, seed) for n in numbers]
                for sighting, found in zip(sightings, await _counted(windows, sightings, at), strict=True):
                    assert (list(found.counters), found.new, found.card_new) == model.count(sighting, at)

    asyncio.run(run())


@settings(
    max_examples=examples(10, 30), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    first=CALLS,
    repeats=CALLS,
    between=CALLS,
    later=CALLS,
    seed=SEEDS,
    waits_ms=st.tuples(*[st.sampled_from([0, 1_000, 50_000, 3_500_000])] * 2),
)
def test_what_was_taken_back_had_never_been_there(
    valkey: EmbeddedValkey,
    first: list[int],
    repeats: list[int],
    between: list[int],
    later: list[int],
    seed: int,
    waits_ms: tuple[int, int],
) -> None:
    """Some payments are counted, and taken back when others have been counted after them. Cards of addresses are left
    out: one that a payment brought which is taken back, and that one after it has seen, is lost."""
    repeats = [n + 1_000 for n in repeats]

    async def run() -> None:
        model, at = Model(), START
        async with _open(valkey) as windows:
            before = [_sighting(n, seed) for n in first]
            await _counted(windows, before, at)
            for sighting in before:
                model.count(sighting, at)
            at += timedelta(milliseconds=waits_ms[0])
            taken_back = [_sighting(n, seed) for n in repeats]
            counted = await _counted(windows, taken_back, at)
            meanwhile = [_sighting(n, seed) for n in between]
            await _counted(windows, meanwhile, at)
            for sighting in meanwhile:
                model.count(sighting, at)
            await windows.forget(list(zip(taken_back, counted, strict=True)), at)
            at += timedelta(milliseconds=waits_ms[1])
            after = [_sighting(n, seed) for n in later]
            for sighting, found in zip(after, await _counted(windows, after, at), strict=True):
                expected, _, _ = model.count(sighting, at)
                assert list(found.counters)[:CARDS_FROM_IP] == expected[:CARDS_FROM_IP]

    asyncio.run(run())


async def test_a_process_whose_clock_is_behind_uses_the_shelf_of_those_before_it(
    valkey: EmbeddedValkey,
) -> None:
    """START is where a generation begins: one clock is just past it, the other one is not there yet."""
    model = Model()
    ahead, behind = START + timedelta(seconds=1), START - timedelta(seconds=1)
    async with _open(valkey) as windows:
        for number, at in enumerate([behind, ahead, behind, ahead, behind, behind, ahead]):
            sighting = _sighting(number * 6, 0)
            (found,) = await _counted(windows, [sighting], at)
            assert list(found.counters) == model.count(sighting, at)[0]
            (again,) = await _counted(windows, [sighting], ahead)
            assert (again.new, again.counters) == (False, found.counters)
