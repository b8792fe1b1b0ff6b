"""Which captures and refunds belong to which settlement, on a real PostgreSQL: whatever comes when, and whichever days
are settled in which order, by one run or several at once, nothing is settled twice or forgotten, and what the merchant
gets adds up. An oracle that knows nothing of the tables says what each run must find.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta

import grpc.aio
import psycopg
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploy.local.stores import EmbeddedPostgres
from services.kit.db import Database
from services.kit.migrate import migrate
from services.payment.clients import SettlementBank
from services.payment.config import PaymentConfig
from services.payment.service.settling import Settling
from tests.depth import examples

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
_numbers = itertools.count(1)
_clock = [BEGIN]
"""Goes forward only, in all examples: the sweep of a database does."""


@pytest.fixture(scope="module")
def dsn(postgres: EmbeddedPostgres) -> Iterator[str]:
    name = f"days_{os.urandom(4).hex()}"
    made = postgres.create_database(name)
    asyncio.run(migrate(made, "services.payment"))
    yield made
    postgres.drop_database(name)


@pytest_asyncio.fixture
async def database(dsn: str) -> AsyncIterator[Database]:
    opened = Database(dsn, pool_size_max=4)
    await opened.open()
    yield opened
    await opened.close()


@dataclass
class Oracle:
    """What must be in which settlement."""

    open: list[tuple[str, str, datetime, int, int]] = field(default_factory=list)
    """(merchant, currency, when, amount: negative for a refund, fee) of what is in none."""
    days: dict[tuple[str, str, date], Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    owed: Counter[tuple[str, str]] = field(default_factory=Counter)
    paid: Counter[tuple[str, str]] = field(default_factory=Counter)

    def settle(self, merchant: str, day: date) -> None:
        end = datetime.combine(day + timedelta(days=1), datetime.min.time(), UTC)
        due: Counter[tuple[str, str]] = Counter()
        for one in [one for one in self.open if one[2] < end and merchant in ("", one[0])]:
            self.open.remove(one)
            key, (_, _, _, amount, fee) = (one[0], one[1]), one
            sums = self.days[(*key, day)]
            sums["items"] += 1
            sums["captured" if amount > 0 else "refunded"] += abs(amount)
            sums["fees"] += fee
            due[key] += amount - fee
        for key, minor in due.items():
            self.owed[key] += minor
            self.paid[key] += max(0, self.owed[key])
            self.owed[key] = min(0, self.owed[key])


def _move(
    connection: psycopg.Connection, merchant: str, currency: str, when: datetime, amount: int, fee: int
) -> None:
    """A payment of which something was captured, or (negative) given back, at some time."""
    payment_id, what = f"pay_{next(_numbers):08d}", "Capture" if amount > 0 else "Refund"
    connection.execute(
        "INSERT INTO payments (merchant_id, payment_id, order_id, amount_minor, currency, state, version, resolve_at,"
        " captured_minor) VALUES (%s, %s, %s, %s, %s, 'CAPTURED', 4, now(), %s)",
        (merchant, payment_id, payment_id, abs(amount), currency, abs(amount)),
    )
    done = "PaymentCaptured" if amount > 0 else "PaymentRefunded"
    for version, type_ in ((3, f"Payment{what}Requested"), (4, done)):
        connection.execute(
            "INSERT INTO payment_events (merchant_id, payment_id, version, type, data, recorded_at)"
            " VALUES (%s, %s, %s, %s, json_build_object('amount_minor', %s::bigint, 'fee_minor', %s::bigint,"
            " 'processor_reference', %s::text), %s)",
            (merchant, payment_id, version, type_, abs(amount), fee, f"op_{payment_id}", when),
        )


def _settling(database: Database, dsn: str) -> Settling:
    """Nobody asks the bank here: what is decided is decided before."""
    config = PaymentConfig(database_dsn=dsn, listen="127.0.0.1:0", fraud_target="nobody")
    return Settling(database, SettlementBank(grpc.aio.insecure_channel("127.0.0.1:1"), 1.0), config)


async def test_runs_at_once_take_every_item_once(database: Database, dsn: str) -> None:
    settling, merchant = _settling(database, dsn), f"race{next(_numbers)}"
    with psycopg.connect(dsn, autocommit=True) as connection:
        for number in range(1, 9):
            _clock[0] += timedelta(seconds=1)
            for amount in (100, 200, -400):
                _move(connection, merchant, "GBP", _clock[0], amount, 0)
            await settling.sweep()
            made = await asyncio.gather(*(settling.settle_day(merchant, _clock[0].date()) for _ in range(4)))
            assert sum(made) == 1
            found = connection.execute(
                "SELECT count(*), sum(items), min(brought_forward_minor) FROM settlements WHERE merchant_id = %s",
                (merchant,),
            ).fetchone()
            assert found == (number, 3 * number, -100 * (number - 1))


async def test_what_another_processor_took_is_no_item_here(database: Database, dsn: str) -> None:
    settling, merchant = _settling(database, dsn), f"other{next(_numbers)}"
    with psycopg.connect(dsn, autocommit=True) as connection:
        _clock[0] += timedelta(seconds=1)
        _move(connection, merchant, "GBP", _clock[0], 100, 0)
        connection.execute("UPDATE payments SET processor = 'stripe' WHERE merchant_id = %s", (merchant,))
        await settling.sweep()
        assert await settling.settle_day(merchant, _clock[0].date()) == 0


MOVES = st.tuples(
    st.just("move"),
    st.sampled_from("ab"),
    st.sampled_from(["GBP", "JPY"]),
    st.integers(0, 20),  # hours that pass before
    st.integers(-500, 500).filter(bool),
    st.integers(0, 60),
)
RUNS = st.tuples(
    st.just("run"), st.sampled_from(["", "a", "b"]), st.integers(0, 3), st.integers(1, 3)
)  # merchant, days ago, at once


@settings(
    max_examples=examples(10, 25), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=st.lists(MOVES | RUNS, min_size=3, max_size=25))
async def test_everything_is_settled_once_whatever_comes_when(
    database: Database, dsn: str, steps: list[tuple[object, ...]]
) -> None:
    settling, oracle = _settling(database, dsn), Oracle()
    names = {name: f"{name}{next(_numbers)}" for name in "ab"}
    names[""] = ""
    with psycopg.connect(dsn, autocommit=True) as connection:
        for step in steps:
            match step:
                case ("move", str(name), str(currency), int(hours), int(amount), int(fee)):
                    _clock[0] += timedelta(hours=hours)
                    # What began earlier is sometimes seen later.
                    when = _clock[0] - timedelta(minutes=hours % 7)
                    fee = fee if amount > 0 else 0
                    _move(connection, names[name], currency, when, amount, fee)
                    oracle.open.append((names[name], currency, when, amount, fee))
                case ("run", str(name), int(ago), int(at_once)):
                    day = (_clock[0] - timedelta(days=ago)).date()
                    await settling.sweep()
                    await asyncio.gather(*(settling.settle_day(names[name], day) for _ in range(at_once)))
                    oracle.settle(names[name], day)
                    _assert_agrees(connection, oracle, names)
        await settling.sweep()
        await settling.settle_missed(_clock[0].date() + timedelta(days=1))
        left = connection.execute(
            "SELECT count(*) FROM settlement_items WHERE settlement_id IS NULL AND merchant_id = ANY (%s)",
            (list(names.values()),),
        ).fetchone()
        assert left == (0,), "the night forgets nothing"


def _assert_agrees(connection: psycopg.Connection, oracle: Oracle, names: dict[str, str]) -> None:
    merchants = [names["a"], names["b"]]
    found: dict[tuple[str, str, date], Counter[str]] = defaultdict(Counter)
    paid: Counter[tuple[str, str]] = Counter()
    for merchant, currency, day, items, captured, refunded, fees, payout in connection.execute(
        "SELECT merchant_id, currency, day, items, captured_minor, refunded_minor, fee_minor, payout_minor"
        " FROM settlements WHERE merchant_id = ANY (%s)",
        (merchants,),
    ):
        sums = found[(merchant, currency, day)]
        sums.update({"items": items, "captured": captured, "refunded": refunded, "fees": fees})
        paid[(merchant, currency)] += payout
    assert {key: +sums for key, sums in found.items()} == {key: +sums for key, sums in oracle.days.items()}
    assert +paid == +oracle.paid
    carried = {
        (merchant, currency): minor
        for merchant, currency, minor in connection.execute(
            "SELECT merchant_id, currency, carried_minor FROM merchant_balances WHERE merchant_id = ANY (%s)",
            (merchants,),
        )
        if minor
    }
    assert carried == {key: minor for key, minor in oracle.owed.items() if minor}
