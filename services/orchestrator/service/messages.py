"""Orders and sagas on the wire, and what the engine has to know of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from paymesh.orchestrator.v1 import events_pb2
from paymesh.orchestrator.v1 import orchestrator_pb2 as pb
from services.kit.db import Transaction
from services.kit.outbox import Packed
from services.kit.rpc.stored import Pack
from services.kit.sets import Answer
from services.orchestrator import domain, store
from services.orchestrator.domain import Attempt, Direction, Outcome, Reason, Saga, SagaKey, State
from services.orchestrator.runner import Contract

STATES = {
    State.RUNNING: pb.SAGA_STATE_RUNNING,
    State.COMPLETED: pb.SAGA_STATE_COMPLETED,
    State.COMPENSATING: pb.SAGA_STATE_COMPENSATING,
    State.COMPENSATED: pb.SAGA_STATE_COMPENSATED,
    State.PARKED: pb.SAGA_STATE_PARKED,
}
_DIRECTIONS = {Direction.DO: pb.DIRECTION_DO, Direction.UNDO: pb.DIRECTION_UNDO}
_OUTCOMES = {
    Outcome.DONE: pb.ATTEMPT_OUTCOME_DONE,
    Outcome.REFUSED: pb.ATTEMPT_OUTCOME_REFUSED,
    Outcome.RETRYABLE: pb.ATTEMPT_OUTCOME_RETRYABLE,
    Outcome.UNKNOWN: pb.ATTEMPT_OUTCOME_UNKNOWN,
}


def order_message(saga: Saga, request: pb.PlaceOrderRequest) -> pb.Order:
    """The order that `saga` places, as it stands; `request` is what it was begun with."""
    order = pb.Order()
    _fill(order, saga, request)
    return order


def answer_message(saga: Saga, request: pb.PlaceOrderRequest) -> pb.PlaceOrderResponse:
    """What the caller of PlaceOrder is told at the end."""
    answer = pb.PlaceOrderResponse()
    _fill(answer.order, saga, request)
    return answer


def _fill(order: pb.Order, saga: Saga, request: pb.PlaceOrderRequest) -> None:
    # Field by field: a constructor takes twice as long, and this is done for every order.
    facts = domain.facts(saga)
    order.merchant_id = saga.merchant_id
    order.order_id = saga.order_id
    order.saga_id = saga.saga_id
    order.order_reference = request.order_reference
    order.state = STATES[saga.state]
    if saga.reason is not None:
        order.reason.CopyFrom(_reason(saga.reason))
    order.amount.CopyFrom(request.amount)
    order.lines.MergeFrom(request.lines)
    order.reservation_id = facts.get("reservation_id", "")
    order.payment_id = facts.get("payment_id", "")
    order.shipment_id = facts.get("shipment_id", "")
    _times(order, saga)


def saga_message(saga: Saga, owner_epoch: int, *, history: bool = True) -> pb.Saga:
    """The saga as it stands."""
    message = pb.Saga(
        merchant_id=saga.merchant_id,
        saga_id=saga.saga_id,
        order_id=saga.order_id,
        kind=saga.kind,
        state=STATES[saga.state],
        reason=_reason(saga.reason) if saga.reason else None,
        owner_epoch=0 if saga.state.ended else owner_epoch,
        history=[_attempt(a) for a in saga.history] if history else [],
    )
    _times(message, saga)
    return message


def _times(message: Any, saga: Saga) -> None:
    _set_ms(message.created_at, saga.created_at_ms)
    if saga.ended_at_ms:
        _set_ms(message.ended_at, saga.ended_at_ms)


def _set_ms(timestamp: Any, milliseconds: int) -> None:
    """As FromMilliseconds does, in half the time."""
    timestamp.seconds = milliseconds // 1_000
    timestamp.nanos = milliseconds % 1_000 * 1_000_000


def _reason(reason: Reason) -> pb.Reason:
    return pb.Reason(step=reason.step, code=reason.code, message=reason.message)


def _attempt(attempt: Attempt) -> pb.Attempt:
    message = pb.Attempt(
        step=attempt.step,
        direction=_DIRECTIONS[attempt.direction],
        attempt=attempt.number,
        outcome=_OUTCOMES[attempt.outcome],
        reason=attempt.reason,
        facts=attempt.facts,
    )
    message.started_at.FromMilliseconds(attempt.started_at_ms)
    message.ended_at.FromMilliseconds(attempt.ended_at_ms)
    return message


_EVENTS = {
    State.COMPLETED: events_pb2.OrderPlaced.DESCRIPTOR.full_name,
    State.COMPENSATED: events_pb2.OrderCompensated.DESCRIPTOR.full_name,
    State.PARKED: events_pb2.OrderParked.DESCRIPTOR.full_name,
}


def _event(saga: Saga, answer: pb.PlaceOrderResponse) -> Packed:
    """What is announced at the end. The events have the same one field as the answer (a test sees to it), so they have
    the same bytes: an order need not be copied into one to be written down."""
    return Packed(_EVENTS[saga.state], answer.SerializeToString())


async def _recall(tx: Transaction, keys: Sequence[SagaKey]) -> dict[SagaKey, pb.PlaceOrderResponse]:
    """The answers of PlaceOrder: the orders whose sagas have ended, as they stand."""
    return {
        stored.saga.key: answer_message(stored.saga, pb.PlaceOrderRequest.FromString(stored.input))
        for stored in await store.find_sagas(tx, keys)
        if stored.saga.state.ended
    }


METHOD = "PlaceOrder"
PACK = Pack(pb.PlaceOrderResponse, _recall)

CONTRACT: Contract[pb.PlaceOrderResponse] = Contract(
    read=pb.PlaceOrderRequest.FromString,
    answer=lambda saga, request: Answer(answer_message(saga, request)),
    event=_event,
)
