"""A day of the mesh in the bank's own words: orders are dispatched and returned, the day is settled, and the statement
that the bank sends of it says what payment says, in every format; the reconciler finds nothing to complain of, and with
errors in the statement exactly those.
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pytest

from paymesh.bank.v1 import statement_pb2
from paymesh.bank.v1.statement_pb2_grpc import StatementServiceStub
from paymesh.cli.program import run_program
from paymesh.payment.v1 import settlement_pb2 as pb
from paymesh.payment.v1.settlement_pb2_grpc import SettlementServiceStub
from services.reconciler.domain.statement import Line
from tests.orders import Shop, until
from tests.statements import read

pytestmark = pytest.mark.asyncio(loop_scope="session")

FORMATS = ("camt053", "mt940", "bai2", "csv")


async def trade(shop: Shop, merchant: str) -> list[pb.SettlementItem]:
    """Four orders out of the door, one of them back; settled. Returns the items that the books have."""
    placed = [await shop.placed(merchant, quantity=1 + n % 2) for n in range(4)]
    for order in placed:
        await shop.dispatch(order)
    await shop.take_back(placed[0])
    stub = SettlementServiceStub(shop.channels["payment"])
    await stub.RunSettlement(pb.RunSettlementRequest(merchant_id=merchant, date=today()))

    async def completed() -> bool:
        listed = await stub.ListSettlements(pb.ListSettlementsRequest(merchant_id=merchant))
        return bool(listed.settlements) and all(
            one.state == pb.SETTLEMENT_STATE_COMPLETED for one in listed.settlements
        )

    await until(completed, 30, "the settlement is completed")
    page = await stub.ListSettlementItems(pb.ListSettlementItemsRequest(merchant_id=merchant))
    assert not page.more
    return list(page.items)


def today() -> str:
    return datetime.now(UTC).date().isoformat()


async def run(*arguments: str) -> int:
    """One command line, beside the event loop."""
    return await asyncio.to_thread(run_program, arguments)


async def fetch(shop: Shop, merchant: str, file: Path, format_name: str) -> bytes:
    done = await run(
        "bank", "statement", "--date", today(), "--format", format_name, "--detail", "items", "--to", str(file),
        "--merchant", merchant, "--bank-target", shop.mesh.targets["bank"],
    )  # fmt: skip
    assert done == 0
    return file.read_bytes()


async def test_the_banks_statement_of_a_day_says_what_payment_says(shop: Shop, tmp_path: Path) -> None:
    merchant = await shop.merchant()
    items = await trade(shop, merchant)
    wanted = Counter(
        (
            item.bank_reference,
            item.operation_key,
            item.amount.amount_minor - item.processor_fee.amount_minor
            if item.kind == pb.SETTLEMENT_ITEM_KIND_CAPTURE
            else -item.amount.amount_minor,
            item.batch_reference,
            item.value_on,
        )
        for item in items
    )
    assert len(wanted) == 6
    for format_name in FORMATS:
        data = await fetch(shop, merchant, tmp_path / f"day.{format_name}", format_name)
        found = Counter(
            (
                line.counterpart_reference,
                line.reference,
                line.amount_minor,
                line.batch_reference,
                line.value_date.isoformat(),
            )
            for line in read(data)
            if isinstance(line, Line)
        )
        assert found == wanted, format_name


async def test_the_reconciler_finds_what_was_made_wrong_and_nothing_else(
    shop: Shop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    merchant = await shop.merchant()
    items = await trade(shop, merchant)
    report = tmp_path / "report.json"
    statement = tmp_path / "day.xml"
    reconcile = [
        "reconcile", "--date", today(), "--statement", str(statement), "--merchant", merchant,
        "--json", str(report), "--target", shop.mesh.targets["reconciler"],
    ]  # fmt: skip
    await fetch(shop, merchant, statement, "camt053")
    assert await run(*reconcile, "--dry-run") == 0, capsys.readouterr()

    bank = StatementServiceStub(shop.channels["bank"])
    wrong = [statement_pb2.STATEMENT_ERROR_KIND_WRONG_AMOUNT, statement_pb2.STATEMENT_ERROR_KIND_UNKNOWN]
    injected = await bank.InjectStatementErrors(
        statement_pb2.InjectStatementErrorsRequest(
            date=today(),
            merchant_id=merchant,
            seed=7,
            counts=[statement_pb2.StatementErrorCount(kind=kind, count=1) for kind in wrong],
        )
    )
    assert {error.bank_reference for error in injected.errors} & {item.bank_reference for item in items}
    await fetch(shop, merchant, statement, "camt053")
    assert await run(*reconcile) == 2, capsys.readouterr()
    found = [one["case"] for one in json.loads(report.read_text())["differences"]]
    assert Counter(case["kind"].removeprefix("CASE_KIND_") for case in found) == {
        "AMOUNT": 1,
        "MISSING_IN_LEDGER": 1,
    }
    keys = {item.bank_reference: item.operation_key for item in items}
    told = json.dumps(found)
    for error in injected.errors:
        assert keys.get(error.bank_reference, error.bank_reference) in told
