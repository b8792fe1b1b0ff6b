"""The RPCs that settle and pay out: proto in, domain, proto out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from paymesh.bank.v1 import settlement_pb2 as pb
from paymesh.bank.v1 import settlement_pb2_grpc
from paymesh.money.v1 import money_pb2
from sandbox.bank import domain, store
from sandbox.bank.domain import (
    Fees,
    Identity,
    KeyedSettle,
    Payout,
    PayoutState,
    PayoutWish,
    Settlement,
    SettleWish,
)
from sandbox.bank.faults import Target
from sandbox.bank.mishaps import Context, Mishaps
from sandbox.bank.service.messages import KINDS
from services.kit.checks import Checks, check_key
from services.kit.clock import now
from services.kit.db import Database, Transaction
from services.kit.deadline import Deadline
from services.kit.errors import Refused
from services.kit.money import is_currency
from services.kit.rpc.method import SetMethod
from services.kit.sets import Answer, Command, Failed, Outcome, Pending

SETTLEMENT_NAME = "paymesh.bank.v1.SettlementService"
OPERATIONS_MAX = 10_000
"""Operations of one settlement: half a megabyte each way, and a transaction of less than a second."""
PAYOUT_MINOR_MAX = 10_000_000_000_000_000
"""As many of the largest captures as a settlement has operations."""

_PAYOUT_STATES = {state: pb.PayoutState.Value(f"PAYOUT_STATE_{state}") for state in PayoutState}


class SettlementService(settlement_pb2_grpc.SettlementServiceServicer):
    """See the contract, paymesh/bank/v1/settlement.proto."""

    def __init__(self, database: Database, mishaps: Mishaps, fees: Fees) -> None:
        self._database = database
        self._mishaps = mishaps
        self._fees = fees
        # No batch forms on the wire: their sets are gathered from single calls.
        self._settle: SetMethod[SettleWish, pb.SettleResponse] = SetMethod(
            f"{SETTLEMENT_NAME}/Settle",
            parse=_settle_wish,
            handle=self._handle_settle,
            batch_response=pb.SettleResponse,
            id_prefix="batch",
        )
        self._pay_out: SetMethod[PayoutWish, pb.PayOutResponse] = SetMethod(
            f"{SETTLEMENT_NAME}/PayOut",
            parse=_payout_wish,
            handle=self._handle_pay_out,
            batch_response=pb.PayOutResponse,
            id_prefix="pout",
        )

    async def drain(self) -> None:
        """Wait until everything accepted has been carried out, except what is slow."""
        await self._settle.drain()
        await self._pay_out.drain()

    async def Settle(self, request: pb.SettleRequest, context: Context) -> pb.SettleResponse:
        if await self._mishaps.refuses(Target.SETTLE, lambda: {request.merchant_id}, context):
            return pb.SettleResponse()
        return await self._settle.single(request, context)

    async def PayOut(self, request: pb.PayOutRequest, context: Context) -> pb.PayOutResponse:
        if await self._mishaps.refuses(Target.PAYOUT, lambda: {request.merchant_id}, context):
            return pb.PayOutResponse()
        return await self._pay_out.single(request, context)

    async def GetSettlement(
        self, request: pb.GetSettlementRequest, context: Context
    ) -> pb.GetSettlementResponse:
        if await self._mishaps.refuses(Target.LOOKUP, lambda: {request.merchant_id}, context):
            return pb.GetSettlementResponse()
        key = await self._readable(request)
        found = (await store.find_settlements(self._database, [key])).get(key)
        if found is None:
            return pb.GetSettlementResponse(found=False)
        return pb.GetSettlementResponse(found=True, settlement=_settlement(found))

    async def GetPayout(self, request: pb.GetPayoutRequest, context: Context) -> pb.GetPayoutResponse:
        if await self._mishaps.refuses(Target.LOOKUP, lambda: {request.merchant_id}, context):
            return pb.GetPayoutResponse()
        key = await self._readable(request)
        found = (await store.find_payouts(self._database, [key])).get(key)
        if found is None:
            return pb.GetPayoutResponse(found=False)
        return pb.GetPayoutResponse(found=True, payout=_payout(found))

    async def _readable(self, request: pb.GetSettlementRequest | pb.GetPayoutRequest) -> Identity:
        """What is asked for. Raises Invalid, or what a fault does to the answer."""
        checks = Checks()
        checks.text("merchant_id", request.merchant_id)
        checks.done()
        check_key(request.idempotency_key)
        (struck,) = await self._mishaps.on_reads(Target.LOOKUP, [request.merchant_id])
        if struck is not None:
            raise struck
        return (request.merchant_id, request.idempotency_key)

    async def _handle_settle(
        self, commands: Sequence[Command[SettleWish]], deadline: Deadline
    ) -> Sequence[Answer[pb.SettleResponse] | Failed | Pending[pb.SettleResponse]]:
        return await self._mishaps.on_set(Target.SETTLE, commands, deadline, self._carry_out_settle)

    async def _handle_pay_out(
        self, commands: Sequence[Command[PayoutWish]], deadline: Deadline
    ) -> Sequence[Answer[pb.PayOutResponse] | Failed | Pending[pb.PayOutResponse]]:
        return await self._mishaps.on_set(Target.PAYOUT, commands, deadline, self._carry_out_pay_out)

    async def _carry_out_settle(
        self, commands: Sequence[Command[SettleWish]], deadline: Deadline
    ) -> list[Outcome[pb.SettleResponse]]:
        """Lock the operations, decide in order, write down. Whoever settles the same operations waits for the locks."""
        asked = [KeyedSettle(c.request, c.key, c.fingerprint, c.resource_id) for c in commands]
        ids = [(c.merchant_id, operation_id) for c in commands for operation_id in c.request.operation_ids]
        keys = [(c.merchant_id, c.key) for c in commands]
        at = now()

        async def work(tx: Transaction) -> dict[Identity, Settlement | Refused]:
            operations = await store.lock_operations(tx, ids)
            settled = await store.find_settled(tx, operations)
            before = await store.find_settlements(tx, keys)
            decided = domain.settle_in_order(asked, before, operations, settled, self._fees, at)
            await store.insert_settlements(
                tx, [one for one in decided.values() if isinstance(one, Settlement)]
            )
            return {**before, **decided}

        decided = await self._database.transact(work, deadline)
        return [_settle_outcome(c, decided[(c.merchant_id, c.key)]) for c in commands]

    async def _carry_out_pay_out(
        self, commands: Sequence[Command[PayoutWish]], deadline: Deadline
    ) -> list[Outcome[pb.PayOutResponse]]:
        """The row of a payout is also the record of its key."""
        at = now()
        made: dict[Identity, Payout] = {}
        for c in commands:
            identity = (c.merchant_id, c.key)
            if identity not in made:
                closed = self._mishaps.turns_down(Target.PAYOUT, c.merchant_id)
                made[identity] = domain.pay_out(c.request, c.resource_id, c.key, c.fingerprint, closed, at)

        async def work(tx: Transaction) -> Mapping[Identity, Payout]:
            if await store.insert_payouts(tx, list(made.values())) == len(made):
                return made
            return await store.find_payouts(tx, made)

        standing = await self._database.transact(work, deadline)
        return [_payout_outcome(c, standing[(c.merchant_id, c.key)]) for c in commands]


def _settle_wish(request: pb.SettleRequest) -> SettleWish:
    """Raises Invalid."""
    checks = Checks()
    checks.text("merchant_id", request.merchant_id)
    checks.text("reference", request.reference)
    if not is_currency(request.currency):
        checks.fail("currency", f"{request.currency[:20]!r} is not an ISO 4217 currency code such as 'USD'")
    ids = tuple(request.operation_ids)
    if not 1 <= len(ids) <= OPERATIONS_MAX:
        checks.fail("operation_ids", f"has {len(ids)} items; it must have from 1 to {OPERATIONS_MAX:,}")
    elif len(set(ids)) < len(ids):
        checks.fail("operation_ids", "has an operation twice")
    else:
        for place, operation_id in enumerate(ids):
            checks.text(f"operation_ids[{place}]", operation_id)
    checks.done()
    return SettleWish(request.merchant_id, request.currency, request.reference, ids)


def _payout_wish(request: pb.PayOutRequest) -> PayoutWish:
    """Raises Invalid."""
    amount = request.amount
    checks = Checks()
    checks.text("merchant_id", request.merchant_id)
    checks.text("reference", request.reference)
    checks.number("amount.amount_minor", amount.amount_minor, at_least=1, at_most=PAYOUT_MINOR_MAX)
    if not is_currency(amount.currency):
        checks.fail(
            "amount.currency", f"{amount.currency[:20]!r} is not an ISO 4217 currency code such as 'USD'"
        )
    checks.done()
    return PayoutWish(request.merchant_id, amount.amount_minor, amount.currency, request.reference)


def _settle_outcome(
    command: Command[SettleWish], decided: Settlement | Refused
) -> Outcome[pb.SettleResponse]:
    """What a command came to, by what stands under its key: its own settlement or that of an earlier call."""
    if isinstance(decided, Refused):
        return Failed(decided)
    if refusal := domain.other_request(decided, command.fingerprint):
        return Failed(refusal)
    replayed = decided.batch_id != command.resource_id
    return Answer(pb.SettleResponse(settlement=_settlement(decided)), replayed)


def _payout_outcome(command: Command[PayoutWish], standing: Payout) -> Outcome[pb.PayOutResponse]:
    """As `_settle_outcome`; a refused payout is kept under its key, too."""
    if refusal := domain.other_request(standing, command.fingerprint):
        return Failed(refusal)
    replayed = standing.payout_id != command.resource_id
    if standing.state is PayoutState.REFUSED:
        return Failed(domain.payout_refusal(standing), replayed)
    return Answer(pb.PayOutResponse(payout=_payout(standing)), replayed)


def _settlement(settlement: Settlement) -> pb.Settlement:
    """A settlement on the wire."""
    currency = settlement.currency
    captured, refunded, fees = settlement.captured_minor, settlement.refunded_minor, settlement.fee_minor
    message = pb.Settlement(
        batch_id=settlement.batch_id,
        merchant_id=settlement.merchant_id,
        idempotency_key=settlement.key,
        reference=settlement.reference,
        captured=_money(captured, currency),
        refunded=_money(refunded, currency),
        fees=_money(fees, currency),
        net=_money(captured - refunded - fees, currency),
        operations=[
            pb.SettledOperation(
                operation_id=one.operation_id,
                kind=KINDS[one.kind],
                amount_minor=one.amount_minor,
                fee_minor=one.fee_minor,
            )
            for one in settlement.operations
        ],
        booked_on=settlement.booked_on.isoformat(),
        value_on=settlement.value_on.isoformat(),
    )
    message.created_at.FromDatetime(settlement.created_at)
    return message


def _payout(payout: Payout) -> pb.Payout:
    """A payout on the wire."""
    message = pb.Payout(
        payout_id=payout.payout_id,
        merchant_id=payout.merchant_id,
        idempotency_key=payout.key,
        reference=payout.reference,
        amount=_money(payout.amount_minor, payout.currency),
        state=_PAYOUT_STATES[payout.state],
        reason=payout.reason,
        booked_on=payout.booked_on.isoformat(),
        value_on=payout.value_on.isoformat(),
    )
    message.created_at.FromDatetime(payout.created_at)
    return message


def _money(amount_minor: int, currency: str) -> money_pb2.Money:
    return money_pb2.Money(amount_minor=amount_minor, currency=currency)
