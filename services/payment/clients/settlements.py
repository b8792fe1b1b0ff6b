"""The bank's side of settlement. Keys are derived from the settlement, so that every repeat is recognized."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

import grpc.aio

from paymesh.bank.v1 import bank_pb2, settlement_pb2, settlement_pb2_grpc
from paymesh.channel import with_key
from services.kit.deadline import Deadline
from services.kit.errors import PaymeshError, Refused
from services.kit.money import Money
from services.kit.rpc.client import call
from services.kit.rpc.values import write_money
from services.payment.domain.settlement import (
    Batch,
    Item,
    ItemKind,
    NotPaid,
    PaidOut,
    Settlement,
    Waits,
)

_KINDS = {
    bank_pb2.OPERATION_KIND_CAPTURE: ItemKind.CAPTURE,
    bank_pb2.OPERATION_KIND_REFUND: ItemKind.REFUND,
}


def _settle_key(settlement: Settlement) -> str:
    return f"{settlement.settlement_id}/settle"


def _payout_key(settlement: Settlement) -> str:
    return f"{settlement.settlement_id}/payout"


class SettlementBank:
    """Asks the processor to settle, and the bank to pay out."""

    def __init__(self, channel: grpc.aio.Channel, seconds: float) -> None:
        self._stub = settlement_pb2_grpc.SettlementServiceStub(channel)
        self._seconds = seconds

    async def settle(
        self, settlement: Settlement, items: Sequence[Item], deadline: Deadline
    ) -> Batch | Waits:
        """Ask for what was taken. A refusal is no answer: it names something that a person has to look at, and the key
        stays free."""
        request = settlement_pb2.SettleRequest(
            merchant_id=settlement.merchant_id,
            currency=settlement.currency,
            reference=settlement.settlement_id,
            operation_ids=[one.bank_reference for one in items],
        )
        try:
            response = await call(
                self._stub.Settle,
                request,
                deadline.clamp(self._seconds),
                metadata=with_key(_settle_key(settlement)),
            )
        except PaymeshError as error:
            return Waits(error.reason)
        return _batch(response.settlement)

    async def look_up(self, settlement: Settlement, deadline: Deadline) -> Batch | Waits | None:
        """What became of it, by its key; None when the processor knows of none. Changes nothing."""
        request = settlement_pb2.GetSettlementRequest(
            merchant_id=settlement.merchant_id, idempotency_key=_settle_key(settlement)
        )
        try:
            response = await call(self._stub.GetSettlement, request, deadline.clamp(self._seconds))
        except PaymeshError as error:
            return Waits(error.reason)
        return _batch(response.settlement) if response.found else None

    async def pay_out(self, settlement: Settlement, deadline: Deadline) -> PaidOut | NotPaid | Waits:
        """Pay the merchant. A repeat is harmless: the bank knows the key, and its answer stands."""
        request = settlement_pb2.PayOutRequest(
            merchant_id=settlement.merchant_id, reference=settlement.settlement_id
        )
        write_money(request.amount, Money(settlement.payout_minor, settlement.currency))
        try:
            response = await call(
                self._stub.PayOut,
                request,
                deadline.clamp(self._seconds),
                metadata=with_key(_payout_key(settlement)),
            )
        except Refused as refusal:
            # Only what stands in the bank's books is a no: the same key for something else is a riddle.
            found = await self.look_up_payout(settlement, deadline)
            return found or Waits(refusal.reason)
        except PaymeshError as error:
            return Waits(error.reason)
        return _payout(response.payout)

    async def look_up_payout(
        self, settlement: Settlement, deadline: Deadline
    ) -> PaidOut | NotPaid | Waits | None:
        """What became of the payout, by its key; None when the bank knows of none. Changes nothing."""
        request = settlement_pb2.GetPayoutRequest(
            merchant_id=settlement.merchant_id, idempotency_key=_payout_key(settlement)
        )
        try:
            response = await call(self._stub.GetPayout, request, deadline.clamp(self._seconds))
        except PaymeshError as error:
            return Waits(error.reason)
        if not response.found:
            return None
        payout = response.payout
        if (payout.amount.amount_minor, payout.amount.currency) != (
            settlement.payout_minor,
            settlement.currency,
        ):
            return Waits("BANK_SAYS_OTHERWISE")
        return _payout(payout)


def _batch(settlement: settlement_pb2.Settlement) -> Batch:
    return Batch(
        settlement.batch_id,
        {
            one.operation_id: (_KINDS.get(one.kind), one.amount_minor, one.fee_minor)
            for one in settlement.operations
        },
        settlement.net.amount_minor,
        date.fromisoformat(settlement.booked_on),
        date.fromisoformat(settlement.value_on),
    )


def _payout(payout: settlement_pb2.Payout) -> PaidOut | NotPaid:
    if payout.state == settlement_pb2.PAYOUT_STATE_REFUSED:
        return NotPaid(payout.payout_id, payout.reason)
    return PaidOut(
        payout.payout_id, date.fromisoformat(payout.booked_on), date.fromisoformat(payout.value_on)
    )
