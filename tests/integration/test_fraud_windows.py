"""The sliding windows on a real Valkey: what they count is compared with a model that remembers everything."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest_asyncio
from valkey.asyncio import Valkey

from deploy.local.stores import EmbeddedValkey
from services.fraud.config import RULES_FILE
from services.fraud.domain import Subject
from services.fraud.families import CARD_BYTES, RECORD_BYTES, Sighting
from services.fraud.rule_file import read_rules
from services.fraud.rules import CARDS_FROM_IP, Counters, Measure, Rules, Trait, Window, counter_place
from services.fraud.windows import Windows
from services.kit.breaker import Breaker
from services.kit.money import AMOUNT_MINOR_MAX, Money

START = datetime(2030, 5, 17, 12, 0, tzinfo=UTC)
RULES = read_rules(RULES_FILE, 1_000)
BUDGET_MS = 100

Open = Callable[..., Windows]


@pytest_asyncio.fixture
async def open_windows(valkey: EmbeddedValkey) -> AsyncIterator[Open]:
    """Opens windows on the shared Valkey, or on the one at `url`; closes them after the test."""
    opened: list[Windows] = []

    def open_them(rules: Rules = RULES, url: str = valkey.url, *, failures_max: int = 3) -> Windows:
        breaker = Breaker(failures_max=failures_max, probe_seconds=0.3)
        opened.append(Windows(url, rules, members_max=1_000, timeout_ms=BUDGET_MS, breaker=breaker))
        return opened[-1]

    yield open_them
    for windows in opened:
        await windows.close()


@pytest_asyncio.fixture
async def client(valkey: EmbeddedValkey) -> AsyncIterator[Valkey]:
    async with Valkey.from_url(valkey.url) as client:
        await client.flushall()
        yield client


def _sighting(key: str, amount_minor: int = 500, currency: str = "USD", **traits: Any) -> Sighting:
    known: dict[str, Any] = {"card_token": "tok_1", "customer_id": "", "email": "", "ip_address": ""} | traits
    subject = Subject(Money(amount_minor, currency), card_bin="", billing_country="", **known)
    return Sighting("mer_1", "tests", key, subject)


async def _count(windows: Windows, at: datetime, *sightings: Sighting) -> list[Counters]:
    counted = await windows.count(sightings, at)
    assert counted is not None
    return [one.counters for one in counted]


def _place(name: str) -> int:
    trait, window, measure = name.split("_")
    return counter_place(Trait(trait), Window(window), Measure(measure))


async def _card(windows: Windows, at: datetime, *sightings: Sighting) -> list[tuple[int, ...]]:
    """Count and sum of the short, then of the long window of each sighting's card."""
    names = ("card_short_count", "card_short_sum", "card_long_count", "card_long_sum")
    return [tuple(c[_place(name)] for name in names) for c in await _count(windows, at, *sightings)]


async def test_a_payment_counts_itself_and_those_before_it_in_its_set(
    open_windows: Open, client: Valkey
) -> None:
    windows = open_windows()
    assert await _card(windows, START, _sighting("a", 5), _sighting("b", 7)) == [(1, 5, 1, 5), (2, 12, 2, 12)]
    assert await _card(windows, START, _sighting("c", 1)) == [(3, 13, 3, 13)]


async def test_payments_leave_a_window_when_it_has_slid_past_them(open_windows: Open, client: Valkey) -> None:
    windows = open_windows()
    await _card(windows, START, _sighting("a", 5))
    await _card(windows, START + timedelta(seconds=30), _sighting("b", 7))
    assert await _card(windows, START + timedelta(seconds=60), _sighting("c", 1)) == [(3, 13, 3, 13)]
    assert await _card(windows, START + timedelta(seconds=61), _sighting("d", 1)) == [(3, 9, 4, 14)]
    assert await _card(windows, START + timedelta(seconds=3_601), _sighting("e", 1)) == [(1, 1, 4, 10)]


async def test_a_repeat_of_a_call_is_not_counted_again(open_windows: Open, client: Valkey) -> None:
    windows = open_windows()
    for _ in range(3):
        assert await _card(windows, START, _sighting("a", 5)) == [(1, 5, 1, 5)]
    assert await _card(windows, START, _sighting("a", 5)._replace(caller="another")) == [(2, 10, 2, 10)]


async def test_sums_of_currencies_do_not_mix(open_windows: Open, client: Valkey) -> None:
    windows = open_windows()
    seen = await _card(
        windows, START, _sighting("a", 5, "USD"), _sighting("b", 7, "EUR"), _sighting("c", 1, "USD")
    )
    assert seen == [(1, 5, 1, 5), (2, 7, 2, 7), (3, 6, 3, 6)]
    assert await _card(windows, START, _sighting("d", 2, "EUR")) == [(4, 9, 4, 9)]


async def test_traits_and_merchants_do_not_mix(open_windows: Open, client: Valkey) -> None:
    windows = open_windows()
    same: dict[str, Any] = {"card_token": "x", "customer_id": "x", "email": "x", "ip_address": "203.0.113.7"}
    (first,) = await _count(windows, START, _sighting("a", **same))
    assert [first[_place(f"{t}_long_count")] for t in Trait] == [1, 1, 1, 1]
    (other,) = await _count(windows, START, _sighting("b", **same)._replace(merchant_id="mer_2"))
    assert other[_place("card_long_count")] == 1
    (unknown,) = await _count(windows, START, _sighting("c", card_token="y"))
    assert [unknown[_place(f"{t}_long_count")] for t in Trait] == [1, 0, 0, 0]


async def test_sums_of_the_largest_amounts_are_exact(open_windows: Open, client: Valkey) -> None:
    windows = open_windows()
    seen: tuple[int, ...] = ()
    for n in range(60):
        (seen,) = await _card(windows, START, _sighting(f"k{n}", AMOUNT_MINOR_MAX - 1))
    assert seen == (60, 60 * (AMOUNT_MINOR_MAX - 1)) * 2
    # The running totals pass 2^50 on the way and start again from zero.
    for n in range(1_200):
        at = START + timedelta(hours=2, seconds=60 * n)
        (seen,) = await _card(windows, at, _sighting(f"late{n}", AMOUNT_MINOR_MAX - 1))
        assert seen[2:] == (min(n + 1, 61), min(n + 1, 61) * (AMOUNT_MINOR_MAX - 1))


async def test_an_address_counts_its_cards_once_each_and_only_with_small_payments(
    open_windows: Open, client: Valkey
) -> None:
    windows = open_windows()

    async def cards(key: str, card: str, amount_minor: int = 500, after_seconds: int = 0) -> int:
        sighting = _sighting(key, amount_minor, card_token=card, ip_address="203.0.113.7")
        (counters,) = await _count(windows, START + timedelta(seconds=after_seconds), sighting)
        return counters[CARDS_FROM_IP]

    assert [await cards("a", "t1"), await cards("b", "t1"), await cards("c", "t2")] == [1, 1, 2]
    assert await cards("d", "t3", amount_minor=1_001) == 2
    assert await cards("e", "t4", after_seconds=600) == 3
    assert await cards("f", "t4", after_seconds=601) == 1


async def test_a_set_may_have_more_windows_than_one_command_takes(open_windows: Open, client: Valkey) -> None:
    windows = open_windows()
    for hours in range(2):  # in the second hour all of them lie on the older shelf
        for n in range(1, 3):
            at = START + timedelta(minutes=55 + hours * 10)
            many = [_sighting(f"{hours}/{n}/{m}", card_token=f"t{m}") for m in range(1_100)]
            counted = await _count(windows, at, *many)
            assert {c[_place("card_long_count")] for c in counted} == {2 * hours + n}


async def test_an_ipv6_customer_cannot_escape_by_changing_its_address(
    open_windows: Open, client: Valkey
) -> None:
    windows = open_windows()
    addresses = [_sighting(f"k{n}", ip_address=f"2001:db8::{n}") for n in range(1, 4)]
    *_, seen = await _count(windows, START, *addresses)
    assert seen[_place("ip_short_count")] == 3


async def test_a_window_stays_bounded_and_still_tells_that_a_limit_is_passed(
    open_windows: Open, client: Valkey
) -> None:
    windows = open_windows()
    seen: list[Counters] = []
    for n in range(30):
        set_of_50 = [
            _sighting(f"{n}/{m}", card_token=f"t{n}/{m}", ip_address="203.0.113.7") for m in range(50)
        ]
        same_card = [_sighting(f"{n}/card/{m}", card_token="hot") for m in range(50)]
        seen = await _count(windows, START + timedelta(seconds=n), *set_of_50, *same_card)
    assert seen[-1][_place("card_long_count")] > 60
    assert seen[49][_place("ip_long_count")] > 600
    assert seen[49][CARDS_FROM_IP] > 20
    assert await _longest(client, "ip") <= 2 * 601 * RECORD_BYTES
    assert await _longest(client, "cards") <= 2 * 21 * CARD_BYTES
    assert await _longest(client, "card") <= 2 * 61 * RECORD_BYTES


async def _longest(client: Valkey, family: str) -> int:
    """Bytes of the longest window of a family, on a shelf or with a key of its own."""
    lengths = []
    for key in await client.keys(f"fraud:{family}:*"):
        if b":w:" in key:
            lengths.append(int(await client.strlen(key)))
        else:
            lengths += [len(window) for window in (await _shelf(client, key)).values()]
    return max(lengths)


async def _shelf(client: Valkey, key: bytes) -> dict[bytes, bytes]:
    """The windows on a shelf, by field."""
    windows: Any = client.hgetall(key.decode())
    return dict(await windows)


async def test_windows_vanish_when_nothing_in_them_can_count_any_more(
    open_windows: Open, client: Valkey
) -> None:
    windows = open_windows()
    many = [_sighting(f"k{n}", card_token="hot", ip_address="203.0.113.7") for n in range(20)]
    await _count(windows, START, *many)
    await _count(windows, START, _sighting("again", card_token="hot", ip_address="203.0.113.7"))
    keys = await client.keys("*")
    # A shelf for cards, for addresses and for the cards of addresses; keys of their own for the card and the address.
    assert len(keys) == 5
    for key in keys:
        longest_ms = 600_000 if b":cards:" in key else 3_600_000
        if b":w:" in key:
            assert longest_ms - 60_000 < await client.pttl(key) <= longest_ms
        else:  # START is where a generation begins, and what it holds may count until the next one has ended
            assert 2 * longest_ms - 60_000 < await client.pttl(key) <= 2 * longest_ms


async def test_shelves_older_than_the_longest_window_are_dropped(open_windows: Open, client: Valkey) -> None:
    windows = open_windows()
    for hours in range(5):
        await _card(windows, START + timedelta(hours=hours), _sighting(f"k{hours}", card_token=f"t{hours}"))
        assert len(await client.keys("fraud:card:*")) <= 2


async def test_nothing_that_names_a_person_or_a_card_stands_in_valkey_in_clear(
    open_windows: Open, client: Valkey
) -> None:
    traits: dict[str, Any] = {
        "card_token": "tok_secret",
        "customer_id": "cus_x",
        "email": "ann@example.com",
        "ip_address": "203.0.113.7",
    }
    await _count(open_windows(), START, _sighting("key_secret", **traits))
    stored = b""
    for key in await client.keys("*"):
        shelf = await _shelf(client, key)
        assert len(shelf) == 1
        stored += key + b"".join(shelf.keys()) + b"".join(shelf.values())
    assert stored.count(b"fraud:") == 5
    for value in (*traits.values(), "key_secret", "mer_1"):
        assert value.encode() not in stored


@dataclass
class _Remembered:
    """One payment in the model."""

    sighting: Sighting
    at: datetime


def _expected(history: list[_Remembered], sighting: Sighting, at: datetime) -> dict[str, int]:
    """What a model that forgets nothing finds for the last payment of `history`."""
    expected: dict[str, int] = {}
    values = dict(zip(Trait, sighting.subject.traits(), strict=True))
    for trait in Trait:
        for window, seconds in ((Window.SHORT, RULES.short_seconds), (Window.LONG, RULES.long_seconds)):
            found = [
                one.sighting.subject.amount
                for one in history
                if values[trait]
                and dict(zip(Trait, one.sighting.subject.traits(), strict=True))[trait] == values[trait]
                and one.at >= at - timedelta(seconds=seconds)
            ]
            same = [a.amount_minor for a in found if a.currency == sighting.subject.amount.currency]
            expected[f"{trait}_{window}_count"] = len(found)
            expected[f"{trait}_{window}_sum"] = sum(same)
    return expected


async def test_windows_agree_with_a_model_that_forgets_nothing(open_windows: Open, client: Valkey) -> None:
    dice = random.Random(4)
    windows, history, at, sent = open_windows(), [], START, 0
    summed = {rule.trait for rule in RULES.velocities if rule.measure is Measure.SUM}
    for _ in range(120):
        at += timedelta(milliseconds=dice.choice([0, 1, 999, 20_000, 61_000, 900_000]))
        sightings = []
        for _ in range(dice.randint(1, 5)):
            sent += 1
            sightings.append(
                _sighting(
                    f"k{sent}",
                    dice.randint(1, 10_000),
                    dice.choice(["USD", "EUR", "JPY"]),
                    card_token=dice.choice(["t1", "t2"]),
                    customer_id=dice.choice(["", "c1", "c2"]),
                    email=dice.choice(["", "e1"]),
                    ip_address=dice.choice(["", "203.0.113.1", "203.0.113.2"]),
                )
            )
        for sighting, counters in zip(sightings, await _count(windows, at, *sightings), strict=True):
            history.append(_Remembered(sighting, at))
            for name, number in _expected(history, sighting, at).items():
                trait, _, measure = name.split("_")
                if measure == Measure.COUNT or Trait(trait) in summed:
                    assert counters[_place(name)] == number, (name, sighting)


async def test_a_forgotten_payment_is_as_if_it_had_never_been(open_windows: Open, client: Valkey) -> None:
    windows = open_windows()
    traits: dict[str, Any] = {"customer_id": "c", "email": "e", "ip_address": "203.0.113.7"}
    kept = [
        _sighting(f"k{n}", 10**n, currency, **traits)
        for n, currency in enumerate(["USD", "EUR", "USD", "EUR"])
    ]
    repeat = _sighting("again", 777, "USD", card_token="tok_2", **traits)
    await _count(windows, START, kept[0], kept[1])
    counted = await windows.count([repeat], START)
    assert counted is not None
    assert counted[0].new
    assert counted[0].card_new
    await _count(windows, START, kept[2], kept[3])
    await windows.forget([(repeat, counted[0])], START)
    (seen,) = await _count(windows, START, _sighting("last", 5, "USD", **traits))
    assert seen[_place("customer_long_count")] == 5
    assert seen[_place("customer_long_sum")] == 1 + 100 + 5
    assert seen[CARDS_FROM_IP] == 1
    (cards,) = await client.keys("fraud:card:*")
    assert len(await _shelf(client, cards)) == 1  # nothing is left of tok_2
    assert await client.pttl(cards) > 0


async def test_a_valkey_that_started_anew_is_taught_the_script_again(
    open_windows: Open, client: Valkey
) -> None:
    windows = open_windows()
    await _count(windows, START, _sighting("a"))
    await client.script_flush()
    assert await _card(windows, START, _sighting("b")) == [(2, 1_000, 2, 1_000)]


async def test_a_valkey_that_refuses_to_write_is_an_outage_and_not_an_error(
    open_windows: Open, client: Valkey
) -> None:
    await client.config_set("maxmemory", "1")
    try:
        assert await open_windows().count([_sighting("a")], START) is None
    finally:
        await client.config_set("maxmemory", "1gb")


async def test_a_stopped_valkey_costs_its_budget_a_few_times_and_then_nothing(
    open_windows: Open, tmp_path: Path
) -> None:
    with EmbeddedValkey(tmp_path / "valkey") as own:
        windows = open_windows(url=own.url)
        await _count(windows, START, _sighting("a"))
        assert own.pid is not None
        os.kill(own.pid, signal.SIGSTOP)
        try:
            waited = []
            for n in range(40):
                started = time.monotonic()
                assert await windows.count([_sighting(f"k{n}")], START) is None
                waited.append(time.monotonic() - started)
                if len(waited) == 20:
                    await asyncio.sleep(0.35)  # one probe becomes due
            assert max(waited) < BUDGET_MS / 1_000 * 2
            assert sum(seconds > 0.05 for seconds in waited) == 4
        finally:
            os.kill(own.pid, signal.SIGCONT)
        await asyncio.sleep(0.35)
        assert len(await _count(windows, START, _sighting("b"))) == 1


async def test_a_set_that_is_late_because_this_process_was_busy_is_not_blamed_on_valkey(
    open_windows: Open, client: Valkey
) -> None:
    windows = open_windows()
    await _count(windows, START, _sighting("a"))

    async def hog() -> None:
        await asyncio.sleep(0.001)  # by then the set is on its way
        time.sleep(BUDGET_MS / 1_000 * 1.5)

    large = [_sighting(f"k{n}", card_token=f"t{n}") for n in range(250)]
    counted, _ = await asyncio.gather(windows.count(large, START), hog())
    assert counted is not None
