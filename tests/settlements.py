"""One merchant's view of settlement, and the comparison of payment's settlements with the bank's."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from paymesh.errors import typed_errors
from paymesh.payment.v1 import settlement_pb2 as pb
from paymesh.payment.v1.settlement_pb2_grpc import SettlementServiceStub
from tests.payment_mesh import PATIENCE_SECONDS, PaymentMesh, Shop, until

COMPLETED = pb.SETTLEMENT_STATE_COMPLETED


def today() -> str:
    """The day that it is, UTC."""
    return datetime.now(UTC).date().isoformat()


class Till:
    """A shop's settlements."""

    def __init__(self, shop: Shop, channel: Any = None) -> None:
        self.shop = shop
        self.stub = SettlementServiceStub(channel or shop.channel)

    async def run(self, day: str = "") -> int:
        """Settle a day, today by default; returns how many settlements were made."""
        request = pb.RunSettlementRequest(merchant_id=self.shop.merchant, date=day or today())
        with typed_errors():
            return (await self.stub.RunSettlement(request)).made

    async def list_all(self, **more: Any) -> list[pb.Settlement]:
        """This merchant's settlements, oldest first."""
        request = pb.ListSettlementsRequest(merchant_id=self.shop.merchant, page_size=1_000, **more)
        with typed_errors():
            found = list((await self.stub.ListSettlements(request)).settlements)
        return sorted(found, key=lambda one: (one.date, one.currency, one.number))

    async def items(self, **more: Any) -> list[pb.SettlementItem]:
        """Its items, all pages."""
        found: list[pb.SettlementItem] = []
        cursor = ""
        while True:
            request = pb.ListSettlementItemsRequest(
                merchant_id=self.shop.merchant, after_cursor=cursor, **more
            )
            with typed_errors():
                page = await self.stub.ListSettlementItems(request)
            found += page.items
            cursor = page.next_cursor
            if not page.more:
                return found

    async def completed(self, seconds: float = PATIENCE_SECONDS) -> list[pb.Settlement]:
        """Wait until all settlements are COMPLETED; returns them, oldest first."""

        async def look() -> list[pb.Settlement] | None:
            found = await self.list_all()
            return found if found and all(one.state == COMPLETED for one in found) else None

        return await until(look, seconds)

    async def settle(self) -> pb.Settlement:
        """Settle what there is and wait for the end; returns the newest settlement."""
        assert await self.run() == 1
        return (await self.completed())[-1]


def assert_settlements_agree(mesh: PaymentMesh, merchant: str = "") -> None:
    """What moved is an item once; what the bank settled and paid out is what payment says, item by item."""
    assert_items_are_events(mesh, merchant)
    ours = mesh.on_payment(
        "SELECT i.merchant_id, i.bank_reference, i.operation_key, i.kind, i.amount_minor, i.currency,"
        " i.processor_fee_minor, s.processor_reference, s.booked_on, s.value_on, s.settlement_id"
        " FROM settlement_items AS i JOIN settlements AS s USING (merchant_id, settlement_id)"
        " WHERE s.state <> 'SETTLING' AND %s::text IN ('', i.merchant_id)",
        merchant,
    )
    theirs = mesh.on_bank(
        "SELECT m.merchant_id, m.operation_id, m.key, m.kind, m.amount_minor, m.currency, m.fee_minor, m.batch_id,"
        " m.booked_on, m.value_on, s.reference"
        " FROM money_operations AS m JOIN settlements AS s USING (merchant_id, batch_id)"
        " WHERE %s::text IN ('', m.merchant_id)",
        merchant,
    )
    assert sorted(ours) == sorted(theirs)
    assert sorted(
        mesh.on_payment(
            "SELECT merchant_id, settlement_id, payout_minor, currency, payout_reference, payout_booked_on,"
            " payout_value_on FROM settlements WHERE payout_state = 'PAID' AND %s::text IN ('', merchant_id)",
            merchant,
        )
    ) == sorted(
        mesh.on_bank(
            "SELECT merchant_id, reference, amount_minor, currency, payout_id, booked_on, value_on FROM payouts"
            " WHERE state = 'PAID' AND %s::text IN ('', merchant_id)",
            merchant,
        )
    )
    assert_cash_is_the_account(mesh, merchant)


def assert_items_are_events(mesh: PaymentMesh, merchant: str) -> None:
    """Every capture and refund that was swept is an item once, and payments know of those that were posted."""
    due = mesh.on_payment(
        "SELECT payment_id, version, (data->>'amount_minor')::bigint FROM payment_events"
        " WHERE type IN ('PaymentCaptured', 'PaymentRefunded') AND %s::text IN ('', merchant_id)",
        merchant,
    )
    found = mesh.on_payment(
        "SELECT payment_id, version, amount_minor FROM settlement_items WHERE %s::text IN ('', merchant_id)",
        merchant,
    )
    assert set(found) <= set(due)
    told: Sequence[tuple[Any, ...]] = mesh.on_payment(
        "SELECT payment_id, version, (data->>'captured_minor')::bigint, (data->>'refunded_minor')::bigint"
        " FROM payment_events WHERE type = 'PaymentSettled' AND %s::text IN ('', merchant_id)",
        merchant,
    )
    posted = mesh.on_payment(
        "SELECT payment_id, posted_version, sum(amount_minor * (kind = 'CAPTURE')::int)::bigint,"
        " sum(amount_minor * (kind = 'REFUND')::int)::bigint FROM settlement_items"
        " WHERE posted_version IS NOT NULL AND %s::text IN ('', merchant_id) GROUP BY 1, 2",
        merchant,
    )
    assert sorted(told) == sorted(posted)


def assert_cash_is_the_account(mesh: PaymentMesh, merchant: str) -> None:
    """Where everything is completed, the ledger's cash is what the bank has on the account."""
    if mesh.on_payment(
        "SELECT 1 FROM settlements WHERE state <> 'COMPLETED' AND %s::text IN ('', merchant_id)", merchant
    ):
        return
    cash = mesh.on_payment(
        "SELECT merchant_id, currency, sum(amount_minor)::bigint FROM journal_entries"
        " WHERE account = 'cash' AND %s::text IN ('', merchant_id) GROUP BY 1, 2 HAVING sum(amount_minor) <> 0",
        merchant,
    )
    account = mesh.on_bank(
        "SELECT merchant_id, currency, sum(amount_minor)::bigint FROM account_lines"
        " WHERE %s::text IN ('', merchant_id) GROUP BY 1, 2 HAVING sum(amount_minor) <> 0",
        merchant,
    )
    assert sorted(cash) == sorted(account)
