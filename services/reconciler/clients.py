"""The payment service: what it expects on a statement, and the corrections it is asked for."""

from __future__ import annotations

from datetime import date
from typing import NamedTuple

import grpc.aio

from paymesh.payment.v1 import ledger_pb2, ledger_pb2_grpc, settlement_pb2, settlement_pb2_grpc
from services.kit.deadline import Deadline
from services.kit.rpc.client import call
from services.kit.rpc.values import write_money
from services.reconciler.domain.cases import Case
from services.reconciler.domain.item import Item, ItemKind

PAGE_SIZE = 1_000
"""Items, and settlements, that are asked for at once."""

_KINDS = {
    settlement_pb2.SETTLEMENT_ITEM_KIND_CAPTURE: ItemKind.CAPTURE,
    settlement_pb2.SETTLEMENT_ITEM_KIND_REFUND: ItemKind.REFUND,
    settlement_pb2.SETTLEMENT_ITEM_KIND_PAYOUT: ItemKind.PAYOUT,
}


class Page(NamedTuple):
    """Some items."""

    items: list[Item]
    """Those that the bank has booked; the others come when it has."""
    cursor: str
    more: bool


class PaymentClient:
    """Asks the payment service."""

    def __init__(self, channel: grpc.aio.Channel, seconds: float) -> None:
        self._settlements = settlement_pb2_grpc.SettlementServiceStub(channel)
        self._ledger = ledger_pb2_grpc.LedgerServiceStub(channel)
        self._seconds = seconds

    async def earliest_open(self, merchant_id: str, from_day: date) -> date | None:
        """The first day, from one on, with a settlement that may still change; None when there is none."""
        earliest: date | None = None
        token = ""
        while True:
            request = settlement_pb2.ListSettlementsRequest(
                merchant_id=merchant_id,
                from_date=from_day.isoformat(),
                open_only=True,
                page_size=PAGE_SIZE,
                page_token=token,
            )
            response = await call(self._settlements.ListSettlements, request, self._deadline())
            days = [date.fromisoformat(settlement.date) for settlement in response.settlements]
            earliest = min([*days, *([earliest] if earliest else [])], default=None)
            token = response.next_page_token
            if not token:
                return earliest

    async def list_items(self, merchant_id: str, from_day: date, cursor: str) -> Page:
        """Items of settlements from a day on, behind a cursor, in an order that does not change."""
        request = settlement_pb2.ListSettlementItemsRequest(
            merchant_id=merchant_id, from_date=from_day.isoformat(), after_cursor=cursor, limit=PAGE_SIZE
        )
        response = await call(self._settlements.ListSettlementItems, request, self._deadline())
        items = [_item(item) for item in response.items if _is_booked(item)]
        return Page(items, response.next_cursor, response.more)

    async def post_correction(self, case: Case) -> str:
        """Have an approved correction posted; returns its journal. Asking again posts nothing more. Raises
        PaymeshError."""
        proposal = case.proposal
        assert proposal is not None, "only what was proposed is approved"
        assert proposal.correction is not None, "only a correction is posted"
        request = ledger_pb2.PostCorrectionRequest(
            merchant_id=case.merchant_id,
            debit_account=proposal.correction.debit_account,
            credit_account=proposal.correction.credit_account,
            reference=case.case_id,
            reason=proposal.reason,
            proposed_by=proposal.proposed_by,
            approved_by=proposal.approved_by,
        )
        write_money(request.amount, proposal.correction.amount)
        # The case and the proposal, so that a later proposal for a reopened case is another correction.
        key = f"{case.case_id}/correct/{proposal.number}"
        response = await call(
            self._ledger.PostCorrection, request, self._deadline(), metadata=(("idempotency-key", key),)
        )
        return str(response.journal_id)

    def _deadline(self) -> Deadline:
        return Deadline.after(self._seconds)


def _is_booked(item: settlement_pb2.SettlementItem) -> bool:
    """Whether the bank has it on an account. What it has not answered yet may still become something else."""
    refused = item.payout_state == settlement_pb2.PAYOUT_STATE_REFUSED
    return bool(item.booked_on) and not refused and item.kind in _KINDS


def _item(item: settlement_pb2.SettlementItem) -> Item:
    kind = _KINDS[item.kind]
    amount_minor = item.amount.amount_minor
    return Item(
        item_id=item.operation_key,
        kind=kind,
        payment_id=item.payment_id,
        settlement_id=item.settlement_id,
        bank_reference=item.bank_reference,
        batch_reference=item.batch_reference,
        amount_minor=amount_minor if kind is ItemKind.CAPTURE else -amount_minor,
        fee_minor=item.processor_fee.amount_minor,
        currency=item.amount.currency,
        booked_on=date.fromisoformat(item.booked_on),
        value_on=date.fromisoformat(item.value_on or item.booked_on),
    )
