"""What the orchestrator writes down of an order. What is proved: a saga comes back from its row as it was; rows have
the form that they have always had, so that older versions and the audit read them; an event that is made of the
answer's bytes is the event.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from paymesh.orchestrator.v1 import events_pb2, stored_pb2
from paymesh.orchestrator.v1 import orchestrator_pb2 as pb
from services.orchestrator import domain, store
from services.orchestrator.domain import (
    PLACE,
    Attempt,
    Call,
    Direction,
    Finish,
    Outcome,
    Park,
    Position,
    Progress,
    Reason,
    Saga,
    State,
    StepState,
    Turn,
)
from services.orchestrator.interventions import Intervention, Kind
from services.orchestrator.service import CONTRACTS

STEPS = {
    "reserve": ["DONE", 1, {"reservation_id": "res_1"}],
    "authorize": ["REFUSED", 2, {"payment_id": "pay_1"}],
    "ship": ["PENDING", 0, {}],
}
HISTORY: list[dict[str, Any]] = [
    {
        "step": "reserve",
        "direction": "DO",
        "attempt": 1,
        "outcome": "DONE",
        "reason": "",
        "message": "",
        "facts": {"reservation_id": "res_1"},
        "started_at_ms": 10,
        "ended_at_ms": 11,
    },
    {
        "step": "authorize",
        "direction": "DO",
        "attempt": 1,
        "outcome": "UNKNOWN",
        "reason": "LOST",
        "message": 'no "answer"\n',
        "facts": {},
        "started_at_ms": 12,
        "ended_at_ms": 13,
    },
    {
        "step": "authorize",
        "direction": "DO",
        "attempt": 2,
        "outcome": "REFUSED",
        "reason": "INSUFFICIENT_FUNDS",
        "message": "the payment was declined: INSUFFICIENT_FUNDS",
        "facts": {"payment_id": "pay_1"},
        "started_at_ms": 14,
        "ended_at_ms": 15,
    },
]


def _saga() -> Saga:
    """A saga whose steps have come to what STEPS and HISTORY say, before it turns back."""
    saga = domain.begin(PLACE, "mer_1", "saga_1", "ord_1", 1)
    for entry in HISTORY:
        call = Call(entry["step"], Direction.DO)
        if entry["attempt"] == 1:
            assert domain.next_step(saga) == call
            saga = domain.calling(saga, call)
        outcome, facts = Outcome(entry["outcome"]), entry["facts"]
        told = (entry["reason"], entry["message"], facts, entry["started_at_ms"], entry["ended_at_ms"])
        saga, _ = domain.attempted(saga, Attempt(*call, entry["attempt"], outcome, *told))
    return saga


def _row(saga: Saga, steps: str, history: str, reason: str | None) -> tuple[Any, ...]:
    identity = (saga.merchant_id, saga.saga_id, saga.order_id, saga.kind, saga.state.value)
    return (
        *identity,
        steps,
        history,
        reason,
        saga.created_at_ms,
        saga.ended_at_ms or None,
        b"",
        "c",
        "k",
        "",
        1,
        '[{"kind":"RETRIED","actor":"ann","reason":"it is back","at_ms":7}]',
    )


def test_a_row_has_the_form_that_it_has_always_had() -> None:
    saga = _saga()
    assert json.loads(store._dump_steps(saga)) == STEPS
    assert list(json.loads(store._dump_steps(saga))) == ["reserve", "authorize", "ship"]
    assert json.loads(store._dump_history(saga)) == HISTORY


def test_a_saga_comes_back_from_its_row_as_it_was() -> None:
    turned = domain.turned(_saga(), Turn("authorize"))
    row = _row(turned, store._dump_steps(turned), store._dump_history(turned), store._dump_reason(turned))
    stored = store._stored(row)
    assert stored.saga == turned
    assert stored.interventions == (Intervention(Kind.RETRIED, "ann", "it is back", 7),)
    assert store._dump_interventions(stored) == row[-1]


def test_a_row_written_before_positions_were_is_read() -> None:
    saga = _saga()
    row = _row(saga, json.dumps(STEPS), json.dumps(HISTORY), '{"step": "ship", "code": "C", "message": "m"}')
    stored = store._stored(row).saga
    assert stored == saga._replace(reason=Reason("ship", "C", "m"))
    assert domain.facts(stored) == {"reservation_id": "res_1", "payment_id": "pay_1"}


def test_a_row_that_was_never_saved_since_its_start_says_nothing_of_its_steps() -> None:
    begun = domain.begin(PLACE, "mer_1", "saga_1", "ord_1", 1)
    stored = store._stored(_row(begun, "{}", "[]", None)).saga
    assert stored == begun._replace(position=Position(State.RUNNING, ()))
    assert domain.next_step(domain.resumed(stored)) == Call("reserve", Direction.DO)


EVENTS = [
    (State.COMPLETED, Finish(State.COMPLETED), events_pb2.OrderPlaced),
    (State.COMPENSATED, Finish(State.COMPENSATED), events_pb2.OrderCompensated),
    (State.PARKED, Park("authorize"), events_pb2.OrderParked),
]


@pytest.mark.parametrize(("state", "end", "event_type"), EVENTS, ids=[str(state) for state, _, _ in EVENTS])
def test_an_event_is_made_of_the_bytes_of_the_answer(
    state: State, end: Finish | Park, event_type: type[events_pb2.OrderPlaced]
) -> None:
    saga = domain.ended(_saga(), end, 99)
    request = pb.PlaceOrderRequest(order_reference="1001", lines=[pb.OrderLine(sku="mug", quantity=2)])
    contract = CONTRACTS["place"]
    answer = contract.answer(saga, request).message
    event = contract.event(saga, answer)
    assert event.type == event_type.DESCRIPTOR.full_name
    assert event_type.FromString(event.payload) == event_type(order=answer.order)
    assert answer.order.state == pb.SagaState.Value(f"SAGA_STATE_{state}")
    # That holds for whatever they may come to hold one day, as long as the one has the other's fields.
    assert _fields(pb.PlaceOrderResponse) == [(1, "order", pb.Order.DESCRIPTOR)]
    assert _fields(event_type)[:1] == _fields(pb.PlaceOrderResponse)


def _fields(message: Any) -> list[tuple[int, str, Any]]:
    return [(f.number, f.name, f.message_type) for f in message.DESCRIPTOR.fields]


LATER = [
    ("dispatch", State.COMPLETED, pb.DispatchOrderResponse, events_pb2.OrderDispatched, "DISPATCHED"),
    ("dispatch", State.COMPENSATED, pb.DispatchOrderResponse, events_pb2.OrderDispatchRefused, "PLACED"),
    ("dispatch", State.PARKED, pb.DispatchOrderResponse, events_pb2.OrderParked, "DISPATCHING"),
    ("cancel", State.COMPLETED, pb.CancelOrderResponse, events_pb2.OrderCancelled, "CANCELLED"),
    ("cancel", State.PARKED, pb.CancelOrderResponse, events_pb2.OrderParked, "CANCELLING"),
    ("return", State.COMPLETED, pb.ReturnOrderResponse, events_pb2.OrderReturned, "RETURNED"),
    (
        "return",
        State.COMPENSATED,
        pb.ReturnOrderResponse,
        events_pb2.OrderReturnRefused,
        "PARTIALLY_RETURNED",
    ),
    ("return", State.PARKED, pb.ReturnOrderResponse, events_pb2.OrderParked, "PARTIALLY_RETURNED"),
]


@pytest.mark.parametrize(
    ("kind", "state", "response", "event_type", "stage"), LATER, ids=[f"{one[0]}-{one[1]}" for one in LATER]
)
def test_what_is_told_and_announced_of_a_placed_order(
    kind: str, state: State, response: Any, event_type: Any, stage: str
) -> None:
    """The order as it was when the saga began, and what that has made of it."""
    task = stored_pb2.OrderTask(lines=[pb.OrderLine(sku="mug", quantity=1)])
    task.order.order_id = "ord_1"
    task.order.lines.add(sku="mug", quantity=2)
    task.order.amount.amount_minor, task.order.amount.currency = 900, "GBP"
    if kind == "return":
        task.order.returned_lines.add(sku="mug", quantity=1)
        task.order.returned_amount.amount_minor, task.order.returned_amount.currency = 400, "GBP"
        task.amount.amount_minor, task.amount.currency = 500, "GBP"
    begun = domain.begin(domain.PLANS[kind], "mer_1", "saga_2", "ord_1", 1)
    saga = begun._replace(position=begun.position._replace(state=state), ended_at_ms=2)
    contract = CONTRACTS[kind]
    answer = contract.answer(saga, contract.read(task.SerializeToString())).message
    assert isinstance(answer, response)
    assert answer.order.order_state == pb.OrderState.Value(f"ORDER_STATE_{stage}")
    back = 2 if stage == "RETURNED" else int(kind == "return")
    assert [(line.sku, line.quantity) for line in answer.order.returned_lines] == [("mug", back)][
        : min(back, 1)
    ]
    assert answer.order.returned_amount.amount_minor == {0: 0, 1: 400, 2: 900}[back]
    assert (answer.saga.saga_id, answer.saga.state) == ("saga_2", pb.SagaState.Value(f"SAGA_STATE_{state}"))
    event = contract.event(saga, answer)
    assert event.type == event_type.DESCRIPTOR.full_name
    assert event_type.FromString(event.payload) == event_type(order=answer.order, saga=answer.saga)
    assert _fields(event_type) == _fields(response)


def test_facts_of_a_step_are_those_of_its_last_answer_and_of_those_before() -> None:
    saga = _saga()
    assert saga.steps == {
        "reserve": Progress(StepState.DONE, 1),
        "authorize": Progress(StepState.REFUSED, 2),
        "ship": Progress(StepState.PENDING, 0),
    }
    assert saga.facts == {
        "reserve": {"reservation_id": "res_1"},
        "authorize": {"payment_id": "pay_1"},
    }
