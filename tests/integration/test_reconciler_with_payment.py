"""The reconciler with the real payment and the bank's real statements: what both have done matches to the last line in
every format, what the bank errs in is found by name, and a correction reaches payment's ledger once.

One set of processes serves all tests; each test is a merchant of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
import pytest_asyncio

from audit import queries
from deploy.local.stores import EmbeddedPostgres, EmbeddedValkey
from paymesh.bank.v1 import statement_pb2
from paymesh.bank.v1.statement_pb2_grpc import StatementServiceStub
from paymesh.channel import open_channel, with_key
from paymesh.cli.bank import DETAILS, FORMATS
from paymesh.errors import Kind
from paymesh.money.v1 import money_pb2
from paymesh.payment.v1 import ledger_pb2
from paymesh.reconciler.v1 import reconciler_pb2 as pb
from paymesh.reconciler.v1 import reconciler_pb2_grpc
from paymesh.reconciliation.sending import Findings, examine, reconcile
from tests.conftest import Services
from tests.payment_mesh import PaymentMesh, Shop, failure_of, until
from tests.processes import ServiceProcess
from tests.settlements import Till, today

STEADY = {
    "settle_poll_ms": "20",
    "settle_round_seconds": "2",
    "settle_look_seconds": "3600",
}
KINDS = {
    statement_pb2.STATEMENT_ERROR_KIND_MISSING: pb.CASE_KIND_MISSING_IN_BANK,
    statement_pb2.STATEMENT_ERROR_KIND_DOUBLE: pb.CASE_KIND_DUPLICATE,
    statement_pb2.STATEMENT_ERROR_KIND_WRONG_AMOUNT: pb.CASE_KIND_AMOUNT,
    statement_pb2.STATEMENT_ERROR_KIND_UNKNOWN: pb.CASE_KIND_MISSING_IN_LEDGER,
    statement_pb2.STATEMENT_ERROR_KIND_OTHER_CURRENCY: pb.CASE_KIND_CURRENCY,
}
_seeds = itertools.count(1)
"""The bank takes a seed once a day, whoever uses it."""
LATER = (datetime.now(UTC).date() + timedelta(days=60)).isoformat()


@pytest.fixture(scope="module")
def mesh(
    postgres: EmbeddedPostgres, valkey: EmbeddedValkey, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PaymentMesh]:
    services = Services(postgres, tmp_path_factory.mktemp("reconciled"))
    mesh = PaymentMesh.start(
        services, valkey.url, {"soft_deadline_ms": "60000", "fee_basis_points": "100"}, **STEADY
    )
    yield mesh
    mesh.close()
    services.stop()


@pytest.fixture(scope="module")
def process(mesh: PaymentMesh) -> ServiceProcess:
    return mesh.services.start("reconciler", payment_target=mesh.payment.target, post_poll_seconds="0.05")


class Desk:
    """Somebody who settles, fetches statements and reconciles."""

    def __init__(self, till: Till, stub: Any, statements: StatementServiceStub, folder: Path) -> None:
        self.till = till
        self.stub = stub
        self._statements = statements
        self._folder = folder
        self.merchant = till.shop.merchant

    async def trade(self, amounts: list[int]) -> None:
        """Captures, every third of which is given back in part, settled and paid out."""
        shop = self.till.shop
        for number, amount_minor in enumerate(amounts):
            wish = shop.wish(f"o{number}", amount_minor)
            payment_id = (await shop.authorize(f"o{number}/a", wish)).payment_id
            await shop.move("capture", f"o{number}/c", payment_id)
            if number % 3 == 2:
                await shop.move("refund", f"o{number}/r", payment_id, amount_minor // 2)
        await self.till.settle()

    async def statement(self, format_name: str, detail: str) -> Path:
        """The bank's statement of today."""
        request = statement_pb2.GetStatementRequest(
            merchant_id=self.merchant,
            date=today(),
            format=FORMATS[format_name],
            detail=DETAILS[detail],
        )
        path = self._folder / f"{format_name}-{detail}"
        with path.open("wb") as file:
            async for answer in self._statements.GetStatement(request):
                file.write(answer.chunk)
        return path

    async def inject(self, **counts: int) -> list[statement_pb2.StatementError]:
        """Make errors in today's statement."""
        request = statement_pb2.InjectStatementErrorsRequest(
            merchant_id=self.merchant,
            date=today(),
            seed=next(_seeds),
            late_days=1,
            counts=[
                statement_pb2.StatementErrorCount(
                    kind=statement_pb2.StatementErrorKind.Value(f"STATEMENT_ERROR_KIND_{kind}"), count=count
                )
                for kind, count in counts.items()
            ],
        )
        return list((await self._statements.InjectStatementErrors(request)).errors)

    async def run(self, *paths: Path) -> Findings:
        """Reconcile as if all was overdue."""
        begin = pb.ReconcileRequest.Begin(merchant_id=self.merchant, date=LATER, differences_max=1_000)
        return await reconcile(self.stub, begin, [examine(path) for path in paths], lambda *_: None)


@pytest_asyncio.fixture
async def desk(
    mesh: PaymentMesh, process: ServiceProcess, request: pytest.FixtureRequest, tmp_path: Path
) -> AsyncIterator[Desk]:
    async with (
        Shop(mesh, request.node.name) as shop,
        open_channel(process.target, caller="test") as reconciler,
        open_channel(mesh.bank.target, caller="test") as bank,
    ):
        stub = reconciler_pb2_grpc.ReconcilerServiceStub(reconciler)
        yield Desk(Till(shop), stub, StatementServiceStub(bank), tmp_path)


@pytest.mark.parametrize("detail", list(DETAILS))
@pytest.mark.parametrize("format_name", list(FORMATS))
async def test_what_payment_and_the_bank_have_done_matches_to_the_last_line(
    desk: Desk, format_name: str, detail: str
) -> None:
    await desk.trade([1_000, 2_500, 999])
    found = await desk.run(await desk.statement(format_name, detail))
    assert found.differences == []
    # Three captures, a refund and a payout.
    assert found.summary.items_copied == 5
    assert sum(rule.items for rule in found.summary.rules) == 5
    assert (found.summary.lines_waiting, found.summary.items_waiting) == (0, 0)
    again = await desk.run(await desk.statement(format_name, detail))
    assert again.summary.files[0].already_imported
    assert again.summary.rules == []


async def test_every_error_of_the_bank_is_found_and_called_by_its_name(desk: Desk) -> None:
    await desk.trade([1_000 + 37 * number for number in range(9)])
    errors = await desk.inject(MISSING=2, DOUBLE=2, WRONG_AMOUNT=2, UNKNOWN=2, OTHER_CURRENCY=2)
    found = await desk.run(await desk.statement("camt053", "items"))
    expected = sorted(KINDS[error.kind] for error in errors)
    assert sorted(d.case.kind for d in found.differences) == expected
    assert found.standing == len(errors) == 10


async def test_what_is_wrong_with_one_capture_does_not_spoil_its_settlement(desk: Desk) -> None:
    await desk.trade([1_000, 2_000, 3_000, 4_000])
    (error,) = await desk.inject(WRONG_AMOUNT=1)
    found = await desk.run(await desk.statement("mt940", "batches"))
    (difference,) = found.differences
    apart = difference.case.at_bank.amount_minor - difference.case.in_ledger.amount_minor
    assert (difference.case.kind, apart) == (pb.CASE_KIND_AMOUNT, error.shown_minor - error.booked_minor)


async def test_a_correction_that_two_people_agree_on_stands_in_the_ledger_once(
    desk: Desk, mesh: PaymentMesh
) -> None:
    await desk.trade([1_000])
    await desk.inject(UNKNOWN=1)
    found = await desk.run(await desk.statement("csv", "batches"))
    case = found.differences[0].case
    amount = money_pb2.Money(amount_minor=abs(case.at_bank.amount_minor), currency=case.at_bank.currency)
    of = {"merchant_id": desk.merchant, "case_id": case.case_id}
    correction = pb.Correction(debit_account="cash", credit_account="suspense", amount=amount)
    propose = pb.ProposeResolutionRequest(**of, reason="not ours", actor="ann", correction=correction)
    await desk.stub.ProposeResolution(propose, metadata=with_key("p"))
    approve = pb.ApproveResolutionRequest(**of, proposal=1, actor="bob")
    await desk.stub.ApproveResolution(approve, metadata=with_key("a"))

    async def closed() -> pb.Case | None:
        now: pb.Case = (await desk.stub.GetCase(pb.GetCaseRequest(**of))).case
        return now if now.state == pb.CASE_STATE_CLOSED else None

    journal_id = (await until(closed)).resolution.journal_id
    assert journal_id.startswith("cor_")
    posted = mesh.on_payment(
        "SELECT account, amount_minor FROM journal_entries WHERE merchant_id = %s AND journal_id = %s ORDER BY line",
        desk.merchant,
        journal_id,
    )
    assert posted == [("cash", amount.amount_minor), ("suspense", -amount.amount_minor)]
    # The audit knows why these accounts are not what payments and settlements make of them.
    with psycopg.connect(mesh.payment_dsn) as connection:
        apart = connection.execute(queries.ACCOUNTS_APART.encode()).fetchall()
    assert [row for row in apart if row[0] == desk.merchant] == []


def _correction(merchant: str, **more: str) -> ledger_pb2.PostCorrectionRequest:
    fields: dict[str, Any] = {
        "merchant_id": merchant,
        "debit_account": "cash",
        "credit_account": "suspense",
        "reference": "case_1",
        "reason": "why",
        "proposed_by": "ann",
        "approved_by": "bob",
    }
    request = ledger_pb2.PostCorrectionRequest(**(fields | more))
    request.amount.amount_minor, request.amount.currency = 5, "GBP"
    return request


async def test_payment_posts_a_correction_once_for_its_key_and_never_for_one_person(
    desk: Desk, mesh: PaymentMesh
) -> None:
    ledger = desk.till.shop.ledger
    answers = [
        await ledger.PostCorrection(_correction(desk.merchant), metadata=with_key("one")) for _ in range(3)
    ]
    assert len({answer.journal_id for answer in answers}) == 1
    error = await failure_of(
        ledger.PostCorrection(_correction(desk.merchant, approved_by="Ann "), metadata=with_key("two"))
    )
    assert (error.kind, error.reason) == (Kind.REFUSED, "SAME_PERSON")
    count = mesh.on_payment("SELECT count(*) FROM corrections WHERE merchant_id = %s", desk.merchant)
    assert count == [(1,)]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("debit_account", "merchant_payable"),
        ("credit_account", "holds"),
        ("credit_account", "cash"),
        ("reason", ""),
        ("approved_by", ""),
        ("reference", "x" * 65),
    ],
)
async def test_a_correction_that_is_none_is_refused_by_field(desk: Desk, field: str, value: str) -> None:
    request = _correction(desk.merchant, **{field: value})
    error = await failure_of(desk.till.shop.ledger.PostCorrection(request, metadata=with_key("x")))
    assert error.kind is Kind.INVALID
    assert field in [v.field for v in error.violations]
