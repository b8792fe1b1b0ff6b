"""Orders and sagas on the wire, and what the engine has to know of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from paymesh.orchestrator.v1 import events_pb2, stored_pb2
from paymesh.orchestrator.v1 import orchestrator_pb2 as pb
from services.kit.db import Transaction
from services.kit.money import Money
from services.kit.outbox import Packed
from services.kit.rpc.stored import Pack
from services.kit.sets import Answer
from services.orchestrator import domain, store
from services.orchestrator.domain import Attempt, Direction, Outcome, Reason, Saga, SagaKey, State
from services.orchestrator.interventions import Intervention, Kind
from services.orchestrator.orders import Goods, Later, Order, Stage
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


_INTERVENTIONS = {kind: pb.InterventionKind.Value(f"INTERVENTION_KIND_{kind}") for kind in Kind}
_STAGES = {stage: pb.OrderState.Value(f"ORDER_STATE_{stage}") for stage in Stage}
_AFTER_PLACING = {
    State.RUNNING: pb.ORDER_STATE_PLACING,
    State.COMPLETED: pb.ORDER_STATE_PLACED,
    State.COMPENSATING: pb.ORDER_STATE_NOT_PLACED,
    State.COMPENSATED: pb.ORDER_STATE_NOT_PLACED,
    State.PARKED: pb.ORDER_STATE_PLACING,
}
"""Where an order stands with which nothing else was begun."""


def order_of(saga: Saga, request: pb.PlaceOrderRequest, later: Sequence[Later]) -> Order:
    """The order that `saga` places, for the domain."""
    lines: dict[str, int] = {}
    for line in request.lines:
        lines[line.sku] = lines.get(line.sku, 0) + line.quantity
    sold = Goods(lines, Money(request.amount.amount_minor, request.amount.currency))
    return Order(saga.order_id, saga.state, sold, later)


def later_of(saga: Saga, task: stored_pb2.OrderTask) -> Later:
    """A saga that was begun with a placed order, for the domain."""
    goods = None
    if saga.kind == domain.RETURN.kind:
        lines = {line.sku: line.quantity for line in task.lines}
        goods = Goods(lines, Money(task.amount.amount_minor, task.amount.currency))
    return Later(saga.saga_id, saga.kind, saga.state, goods)


def full_order_message(saga: Saga, request: pb.PlaceOrderRequest, order: Order) -> pb.Order:
    """The order that `saga` places, as it stands after all that was begun with it."""
    message = pb.Order()
    _fill(message, saga, request)
    _write_stage(message, order)
    return message


def _write_stage(message: pb.Order, order: Order) -> None:
    message.order_state = _STAGES[order.stage]
    returned = order.returned
    del message.returned_lines[:]
    for sku, quantity in returned.lines.items():
        message.returned_lines.add(sku=sku, quantity=quantity)
    if returned.amount.amount_minor:
        message.returned_amount.amount_minor = returned.amount.amount_minor
        message.returned_amount.currency = returned.amount.currency


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
    order.order_state = _AFTER_PLACING[saga.state]
    _times(order, saga)


def saga_message(
    saga: Saga, owner_epoch: int, *, history: bool = True, interventions: Sequence[Intervention] = ()
) -> pb.Saga:
    """The saga as it stands."""
    message = pb.Saga(
        merchant_id=saga.merchant_id,
        saga_id=saga.saga_id,
        order_id=saga.order_id,
        kind=saga.kind,
        state=STATES[saga.state],
        reason=_reason(saga.reason) if saga.reason else None,
        owner_epoch=0 if saga.state.ended else owner_epoch,
        coordination=(
            pb.COORDINATION_CHOREOGRAPHED
            if saga.kind == domain.PLACE.kind and owner_epoch == store.NOBODY
            else pb.COORDINATION_ORCHESTRATED
        ),
        history=[_attempt(a) for a in saga.history] if history else [],
    )
    _times(message, saga)
    for number, one in enumerate(interventions, 1):
        told = message.interventions.add(
            number=number, kind=_INTERVENTIONS[one.kind], actor=one.actor, reason=one.reason
        )
        _set_ms(told.at, one.at_ms)
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


PLACED = Pack(pb.PlaceOrderResponse, _recall)


class _Answers:
    """What the callers of one RPC that begins sagas with placed orders are told."""

    def __init__(self, response: type[Any], done: type[Any], undone: type[Any]) -> None:
        self._response = response
        self._events = {
            State.COMPLETED: done.DESCRIPTOR.full_name,
            State.COMPENSATED: undone.DESCRIPTOR.full_name,
            State.PARKED: events_pb2.OrderParked.DESCRIPTOR.full_name,
        }

    def contract(self) -> Contract[Any]:
        """For the engine."""
        return Contract(stored_pb2.OrderTask.FromString, self._answer, self._event)

    def pack(self) -> Pack[Any]:
        """Answers are read back from the sagas."""
        return Pack(self._response, self._recall)

    def _answer(self, saga: Saga, task: stored_pb2.OrderTask) -> Answer[Any]:
        return Answer(self._response(order=after(saga, task), saga=saga_message(saga, 0, history=False)))

    def _event(self, saga: Saga, answer: Any) -> Packed:
        """As for orders that are placed, an event has the fields of the answer."""
        return Packed(self._events[saga.state], answer.SerializeToString())

    async def _recall(self, tx: Transaction, keys: Sequence[SagaKey]) -> dict[SagaKey, Any]:
        return {
            stored.saga.key: self._answer(stored.saga, stored_pb2.OrderTask.FromString(stored.input)).message
            for stored in await store.find_sagas(tx, keys)
            if stored.saga.state.ended
        }


def after(saga: Saga, task: stored_pb2.OrderTask) -> pb.Order:
    """The order as it stood when a saga that was begun with it had ended. Nothing else was under way meanwhile, so it
    is the order as it stood before, and what the saga has made of it."""
    message = pb.Order()
    message.CopyFrom(task.order)
    sold = order_of(saga, pb.PlaceOrderRequest(lines=message.lines, amount=message.amount), ())
    lines = {line.sku: line.quantity for line in message.returned_lines}
    back = Goods(lines, Money(message.returned_amount.amount_minor, message.amount.currency))
    before = [Later("", domain.RETURN.kind, State.COMPLETED, back)] if lines else []
    if saga.kind == domain.RETURN.kind:
        before.append(Later("", domain.DISPATCH.kind, State.COMPLETED))
    order = sold._replace(placing=State.COMPLETED, later=[*before, later_of(saga, task)])
    _write_stage(message, order)
    return message


_LATER = {
    domain.DISPATCH.kind: _Answers(
        pb.DispatchOrderResponse, events_pb2.OrderDispatched, events_pb2.OrderDispatchRefused
    ),
    # A cancellation is never undone: it only goes forward.
    domain.CANCEL.kind: _Answers(pb.CancelOrderResponse, events_pb2.OrderCancelled, events_pb2.OrderParked),
    domain.RETURN.kind: _Answers(
        pb.ReturnOrderResponse, events_pb2.OrderReturned, events_pb2.OrderReturnRefused
    ),
}

PACKS: Mapping[str, Pack[Any]] = {kind: answers.pack() for kind, answers in _LATER.items()}
"""How the answers of the RPCs are kept, by the kind of saga that they begin."""

CONTRACTS: Mapping[str, Contract[Any]] = {
    domain.PLACE.kind: Contract(
        read=pb.PlaceOrderRequest.FromString,
        answer=lambda saga, request: Answer(answer_message(saga, request)),
        event=_event,
    )
} | {kind: answers.contract() for kind, answers in _LATER.items()}
"""By kind of saga."""
