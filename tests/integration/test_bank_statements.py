"""The bank's end-of-day statements, as a real process on a real PostgreSQL: they say what the books say, in every
format, read by the reconciler's own readers; and with errors on demand they are wrong in exactly the ways on record.

One process serves all tests; each test is a merchant of its own.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import psycopg
import pytest
import pytest_asyncio

from deploy.local.stores import EmbeddedPostgres
from paymesh.bank.v1 import bank_pb2, settlement_pb2
from paymesh.bank.v1 import statement_pb2 as pb
from paymesh.bank.v1.bank_pb2_grpc import BankServiceStub
from paymesh.bank.v1.settlement_pb2_grpc import SettlementServiceStub
from paymesh.bank.v1.statement_pb2_grpc import StatementServiceStub
from paymesh.channel import open_channel, with_key
from paymesh.cli.program import run_program
from paymesh.errors import Kind, PaymeshCallError, typed_errors
from paymesh.money.v1 import money_pb2
from services.reconciler.domain.statement import Closed, Line, Opened
from tests.conftest import Services
from tests.statements import read

FORMATS = {
    "camt053": pb.STATEMENT_FORMAT_CAMT053,
    "mt940": pb.STATEMENT_FORMAT_MT940,
    "bai2": pb.STATEMENT_FORMAT_BAI2,
    "csv": pb.STATEMENT_FORMAT_CSV,
}
KINDS = [kind for kind in pb.StatementErrorKind.values() if kind]
FEE_BASIS_POINTS = 100


@pytest.fixture(scope="module")
def running(
    postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, str]]:
    """(target, DSN) of a bank."""
    services = Services(postgres, tmp_path_factory.mktemp("bank"))
    process = services.start("bank", "sandbox.bank", latency_ms="0", fee_basis_points=str(FEE_BASIS_POINTS))
    yield process.target, services.dsn("bank")
    services.stop()


class Bank:
    """A bank as one merchant sees it."""

    def __init__(self, channel: Any, target: str, dsn: str, merchant: str) -> None:
        self.stub = BankServiceStub(channel)
        self.settlements = SettlementServiceStub(channel)
        self.statements = StatementServiceStub(channel)
        self.target = target
        self.dsn = dsn
        self.merchant = merchant
        self.today = datetime.now(UTC).date()

    async def trade(self, name: str, amounts: list[int], currency: str = "GBP", days_ago: int = 0) -> None:
        """Captures, of which every third is given back in part, settled together and paid out less a little."""
        ids = [one for found in await asyncio.gather(*(
            self._capture(f"{name}/{i}", amount, currency, refund=i % 3 == 2) for i, amount in enumerate(amounts)
        )) for one in found]  # fmt: skip
        settled = await self.settlements.Settle(
            settlement_pb2.SettleRequest(
                merchant_id=self.merchant, currency=currency, reference=f"stl_{name}", operation_ids=ids
            ),
            metadata=with_key(f"stl_{name}/settle"),
        )
        paid = money_pb2.Money(amount_minor=settled.settlement.net.amount_minor // 2, currency=currency)
        await self.settlements.PayOut(
            settlement_pb2.PayOutRequest(merchant_id=self.merchant, amount=paid, reference=f"stl_{name}"),
            metadata=with_key(f"stl_{name}/payout"),
        )
        if days_ago:
            with psycopg.connect(self.dsn) as connection:
                for table in ("settlements", "payouts"):
                    connection.execute(
                        f"UPDATE {table} SET booked_on = booked_on - %s::int, value_on = value_on - %s::int"
                        " WHERE merchant_id = %s AND reference = %s",
                        (days_ago, days_ago, self.merchant, f"stl_{name}"),
                    )

    async def _capture(self, name: str, amount_minor: int, currency: str, *, refund: bool) -> list[str]:
        amount = money_pb2.Money(amount_minor=amount_minor, currency=currency)
        authorized = await self.stub.Authorize(
            bank_pb2.AuthorizeRequest(merchant_id=self.merchant, amount=amount, card_token="tok_visa"),
            metadata=with_key(f"{name}/authorize"),
        )
        about: dict[str, Any] = {
            "merchant_id": self.merchant,
            "authorization_id": authorized.authorization.authorization_id,
        }
        captured = await self.stub.Capture(
            bank_pb2.CaptureRequest(**about, amount=amount), metadata=with_key(f"{name}/capture/3")
        )
        ids = [captured.operation.operation_id]
        if refund:
            part = money_pb2.Money(amount_minor=amount_minor // 3, currency=currency)
            refunded = await self.stub.Refund(
                bank_pb2.RefundRequest(**about, amount=part), metadata=with_key(f"{name}/refund/5")
            )
            ids.append(refunded.operation.operation_id)
        return ids

    async def file(
        self, name: str = "csv", *, day: date | None = None, items: bool = False, merchant: str | None = None
    ) -> bytes:
        request = pb.GetStatementRequest(
            date=str(day or self.today),
            merchant_id=self.merchant if merchant is None else merchant,
            format=FORMATS[name],
            detail=pb.STATEMENT_DETAIL_ITEMS if items else pb.STATEMENT_DETAIL_BATCHES,
        )
        with typed_errors():
            return b"".join([piece.chunk async for piece in self.statements.GetStatement(request)])

    async def inject(self, seed: int, counts: Mapping[Any, int], **more: Any) -> list[pb.StatementError]:
        request = pb.InjectStatementErrorsRequest(
            date=str(more.pop("day", self.today)),
            merchant_id=self.merchant,
            seed=seed,
            counts=[pb.StatementErrorCount(kind=kind, count=count) for kind, count in counts.items()],
            **more,
        )
        with typed_errors():
            return list((await self.statements.InjectStatementErrors(request)).errors)

    def booked(self, day: date | None = None) -> Counter[tuple[str, int, str, str]]:
        """(id, net amount, currency, key) of what is settled and paid out on a day, as the books have it."""
        with psycopg.connect(self.dsn) as connection:
            rows = connection.execute(
                """
                SELECT operation_id, CASE kind WHEN 'CAPTURE' THEN amount_minor - fee_minor ELSE -amount_minor END,
                       currency, key
                FROM money_operations WHERE merchant_id = %(merchant)s AND booked_on = %(day)s
                UNION ALL
                SELECT payout_id, -amount_minor, currency, key FROM payouts
                WHERE merchant_id = %(merchant)s AND booked_on = %(day)s AND state = 'PAID'
                """,
                {"merchant": self.merchant, "day": day or self.today},
            ).fetchall()
        return Counter((row[0], row[1], row[2], row[3]) for row in rows)


@pytest_asyncio.fixture
async def bank(running: tuple[str, str], request: pytest.FixtureRequest) -> AsyncIterator[Bank]:
    target, dsn = running
    name = "".join(c if c.isalnum() else "-" for c in request.node.name)[-50:].strip("-")
    async with open_channel(target, caller="tests") as channel:
        yield Bank(channel, target, dsn, name)


def shown(data: bytes) -> Counter[tuple[str, int, str, str]]:
    """(bank's reference, amount, currency, our reference) of all lines."""
    return Counter(
        (line.counterpart_reference, line.amount_minor, line.currency, line.reference)
        for line in read(data)
        if isinstance(line, Line)
    )


def balances(data: bytes) -> dict[str, tuple[int, int]]:
    """Currency to opening and closing balance."""
    found: dict[str, tuple[int, int]] = {}
    currency, opening = "", 0
    for event in read(data):
        if isinstance(event, Opened):
            currency, opening = event.currency, event.opening_minor
        elif isinstance(event, Closed):
            found[currency] = (opening, event.closing_minor)
    return found


@pytest.mark.parametrize("name", FORMATS)
async def test_every_booking_of_a_day_is_a_line_net_of_its_fee(bank: Bank, name: str) -> None:
    await bank.trade("one", [1_000, 2_500, 99, 5], "GBP")
    await bank.trade("two", [7_000], "JPY")
    assert shown(await bank.file(name, items=True)) == bank.booked()


@pytest.mark.parametrize("name", FORMATS)
async def test_a_settlement_is_one_line_net_of_fees_or_in_camt_its_transactions(
    bank: Bank, name: str
) -> None:
    await bank.trade("one", [1_000, 2_500, 99])
    await bank.trade("two", [400, 600])
    data = await bank.file(name)
    if name == "camt053":
        assert shown(data) == bank.booked()
        batches = Counter(line.batch_reference[:6] for line in read(data) if isinstance(line, Line))
        assert batches == {"batch_": 6, "": 2}
        return
    with psycopg.connect(bank.dsn) as connection:
        rows = connection.execute(
            "SELECT amount_minor, line_id, reference, kind FROM account_lines WHERE merchant_id = %s",
            (bank.merchant,),
        ).fetchall()
    lines = [line for line in read(data) if isinstance(line, Line)]
    assert Counter((line.amount_minor, line.counterpart_reference) for line in lines) == Counter(
        (row[0], row[1]) for row in rows
    )
    assert {line.batch_reference: line.reference for line in lines if line.batch_reference} == {
        row[1]: row[2] for row in rows if row[3] == "SETTLEMENT"
    }


async def test_a_day_opens_with_what_the_day_before_closed_with(bank: Bank) -> None:
    await bank.trade("old", [10_000], days_ago=2)
    await bank.trade("new", [500])
    days = [bank.today - timedelta(days=ago) for ago in (2, 1, 0)]
    found = [balances(await bank.file("camt053", day=day))["GBP"] for day in days]
    assert found[0][0] == 0
    for before, after in pairwise(found):
        assert before[1] == after[0]
    assert found[0][1] == found[1][1] != 0
    with pytest.raises(PaymeshCallError) as caught:
        await bank.file(day=bank.today - timedelta(days=3))
    assert (caught.value.kind, caught.value.reason) == (Kind.NOT_FOUND, "NO_STATEMENT")


async def test_a_statement_of_all_merchants_has_theirs_that_had_something_that_day(bank: Bank) -> None:
    await bank.trade("one", [1_000])
    await bank.trade("old", [1_000], "EUR", days_ago=1)
    accounts = {event.account for event in read(await bank.file(merchant="")) if isinstance(event, Opened)}
    own = {event.account for event in read(await bank.file()) if isinstance(event, Opened)}
    assert len(own) == 2
    assert len(own & accounts) == 1


async def test_the_same_day_gives_the_same_bytes(bank: Bank) -> None:
    await bank.trade("one", [1_000, 2_000])
    for name in FORMATS:
        assert await bank.file(name) == await bank.file(name)


async def test_errors_are_in_the_statement_and_on_record_and_nowhere_else(bank: Bank) -> None:
    await bank.trade("one", [1_000 + i for i in range(24)])
    books = bank.booked()
    injected = await bank.inject(7, dict.fromkeys(KINDS, 2))
    assert Counter(error.kind for error in injected) == dict.fromkeys(KINDS, 2)
    wanted = books.copy()
    by_id = {row[0]: row for row in books}
    for error in injected:
        row = by_id.get(error.bank_reference)
        if error.kind not in (pb.STATEMENT_ERROR_KIND_DOUBLE, pb.STATEMENT_ERROR_KIND_UNKNOWN):
            assert row is not None
            assert (error.booked_minor, error.currency) == row[1:3]
            wanted[row] -= 1
        if error.kind != pb.STATEMENT_ERROR_KIND_MISSING and error.shown_on == str(bank.today):
            key = row[3] if row is not None else ""
            wanted[(error.bank_reference, error.shown_minor, error.shown_currency, key)] += 1
    for name in FORMATS:
        assert shown(await bank.file(name, items=True)) == +wanted
        # Whole settlements add up as well, and camt still lists every transaction.
        assert balances(await bank.file(name)) == balances(await bank.file(name, items=True))
    assert shown(await bank.file("camt053")) == +wanted
    assert bank.booked() == books
    listed = await bank.statements.ListStatementErrors(
        pb.ListStatementErrorsRequest(date=str(bank.today), merchant_id=bank.merchant)
    )
    assert list(listed.errors) == injected


async def test_a_late_booking_is_on_a_later_statement_and_balances_meet_again(bank: Bank) -> None:
    day = bank.today - timedelta(days=2)
    await bank.trade("one", [1_000, 2_000, 3_000], days_ago=2)
    before = balances(await bank.file("camt053", day=day))["GBP"]
    (late,) = await bank.inject(1, {pb.STATEMENT_ERROR_KIND_LATE: 1}, day=day, late_days=2)
    on_time, between, now = [
        await bank.file("mt940", day=day + timedelta(days=ago), items=True) for ago in (0, 1, 2)
    ]
    assert late.bank_reference not in {row[0] for row in shown(on_time)}
    assert shown(between) == Counter()
    assert [row[:2] for row in shown(now)] == [(late.bank_reference, late.booked_minor)]
    assert balances(on_time)["GBP"][1] == balances(now)["GBP"][0] == before[1] - late.booked_minor
    assert balances(now)["GBP"][1] == before[1]


async def test_a_seed_is_drawn_once_a_day_also_at_once(bank: Bank) -> None:
    await bank.trade("one", [1_000 + i for i in range(8)])
    counts = {pb.STATEMENT_ERROR_KIND_MISSING: 2, pb.STATEMENT_ERROR_KIND_UNKNOWN: 1}
    drawn = await asyncio.gather(*(bank.inject(5, counts) for _ in range(6)))
    assert all(errors == drawn[0] for errors in drawn)
    assert await bank.inject(5, {pb.STATEMENT_ERROR_KIND_LATE: 3}) == drawn[0]
    more = await bank.inject(6, {pb.STATEMENT_ERROR_KIND_MISSING: 6})
    assert not {error.bank_reference for error in more} & {error.bank_reference for error in drawn[0]}


async def test_errors_need_bookings(bank: Bank) -> None:
    with pytest.raises(PaymeshCallError) as caught:
        await bank.inject(1, {pb.STATEMENT_ERROR_KIND_MISSING: 1})
    assert (caught.value.kind, caught.value.reason) == (Kind.REFUSED, "NOT_ENOUGH_ENTRIES")


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (pb.GetStatementRequest(date="26.11.2026", format=FORMATS["csv"]), "date"),
        (pb.GetStatementRequest(date="2999-01-01", format=FORMATS["csv"]), "date"),
        (pb.GetStatementRequest(date="2026-11-01"), "format"),
        (pb.InjectStatementErrorsRequest(date="2026-11-01"), "counts"),
        (pb.InjectStatementErrorsRequest(date="2026-11-01", late_days=31), "late_days"),
        (
            pb.InjectStatementErrorsRequest(date="2026-11-01", counts=[pb.StatementErrorCount(count=1)]),
            "counts[0].kind",
        ),
        (pb.ListStatementErrorsRequest(page_token="x"), "page_token"),
    ],
)
async def test_wrong_input_is_named(bank: Bank, request_: Any, field: str) -> None:
    async def ask() -> None:
        with typed_errors():
            if isinstance(request_, pb.GetStatementRequest):
                async for _ in bank.statements.GetStatement(request_):
                    pass
            elif isinstance(request_, pb.InjectStatementErrorsRequest):
                await bank.statements.InjectStatementErrors(request_)
            else:
                await bank.statements.ListStatementErrors(request_)

    with pytest.raises(PaymeshCallError) as caught:
        await ask()
    assert caught.value.kind is Kind.INVALID
    assert field in [violation.field for violation in caught.value.violations]


async def test_many_pages_of_bookings_are_one_statement(bank: Bank) -> None:
    await bank.trade("one", [100])
    with psycopg.connect(bank.dsn) as connection:
        connection.execute(
            """
            INSERT INTO payouts (merchant_id, payout_id, key, fingerprint, reference, amount_minor, currency, state,
                                 booked_on, value_on, created_at)
            SELECT merchant_id, payout_id || n, key || n, fingerprint, reference, n, currency, state, booked_on,
                   value_on, created_at
            FROM payouts, generate_series(1, 4500) AS n WHERE merchant_id = %s
            """,
            (bank.merchant,),
        )
    assert shown(await bank.file("csv", items=True)) == bank.booked()


async def test_the_command_writes_a_file_when_it_is_whole(
    bank: Bank, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    await bank.trade("one", [1_000, 2_000, 3_000])
    file = tmp_path / "statement.xml"
    common = ["--date", str(bank.today), "--merchant", bank.merchant, "--bank-target", bank.target]
    inject = ["bank", "inject", *common, "--seed", "1", "--missing", "1", "--wrong-amount", "1"]
    assert await asyncio.to_thread(run_program, inject) == 0
    assert "wrong amount" in capsys.readouterr().out
    assert await asyncio.to_thread(run_program, ["bank", "errors", *common]) == 0
    assert "missing" in capsys.readouterr().out
    assert await asyncio.to_thread(run_program, ["bank", "statement", *common, "--to", str(file)]) == 0
    assert shown(file.read_bytes()) == shown(await bank.file("camt053"))
    assert list(tmp_path.iterdir()) == [file]

    before = file.read_bytes()
    for wrong in (["--format", "pdf"], ["--detail", "all"], ["--date", "yesterday"]):
        assert (
            await asyncio.to_thread(run_program, ["bank", "statement", *common, "--to", str(file), *wrong])
            == 2
        )
    missing = str(tmp_path / "no" / "folder")
    assert await asyncio.to_thread(run_program, ["bank", "statement", *common, "--to", missing]) == 2
    assert (file.read_bytes(), list(tmp_path.iterdir())) == (before, [file])
