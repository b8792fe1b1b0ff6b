"""Events as merchants read them: everything that can be asked for can be told, in the shape of GET, the same every
time."""

from __future__ import annotations

from typing import Any, get_args

import orjson
import pytest

from paymesh.money.v1.money_pb2 import Money
from paymesh.orchestrator.v1 import events_pb2 as order_events
from paymesh.orchestrator.v1 import orchestrator_pb2
from paymesh.payment.v1 import events_pb2 as payment_events
from paymesh.payment.v1 import payment_pb2
from services.edge.domain.webhooks import EVENT_TYPES
from services.edge.service.bodies import Order, Payment
from services.edge.service.telling import ORDER_EVENTS, PAYMENT_EVENTS, message_id_of, told_of
from services.edge.service.webhook_bodies import EventFilter, EventType

AT_MS = 1_764_176_400_123
PAYMENT = payment_pb2.Payment(
    merchant_id="mer_1",
    payment_id="pay_1",
    state=payment_pb2.PAYMENT_STATE_CAPTURED,
    amount=Money(amount_minor=2_500, currency="USD"),
)
ORDER = orchestrator_pb2.Order(
    merchant_id="mer_1",
    order_id="ord_1",
    state=orchestrator_pb2.SAGA_STATE_COMPLETED,
    order_state=orchestrator_pb2.ORDER_STATE_DISPATCHED,
    amount=Money(amount_minor=2_500, currency="USD"),
    lines=[orchestrator_pb2.OrderLine(sku="cup", quantity=2)],
)
SAGA = orchestrator_pb2.Saga(saga_id="saga_2", kind="dispatch", state=orchestrator_pb2.SAGA_STATE_COMPLETED)


def body(event: Any, position: int = 7) -> Any:
    return orjson.loads(told_of("payment", position, "mer_1", AT_MS, event).write())


def test_everything_that_can_be_asked_for_can_be_told() -> None:
    assert sorted((*PAYMENT_EVENTS.values(), *ORDER_EVENTS.values())) == list(EVENT_TYPES)
    assert set(get_args(EventType)) == set(EVENT_TYPES)
    assert set(get_args(EventFilter)) == {*EVENT_TYPES, "order.*", "payment.*"}
    # Whatever a producer announces of payments and orders is told, or it is forgotten here.
    for module, told in ((payment_events, PAYMENT_EVENTS), (order_events, ORDER_EVENTS)):
        assert {message.DESCRIPTOR.name for message in told} <= set(module.DESCRIPTOR.message_types_by_name)


@pytest.mark.parametrize("message", [*PAYMENT_EVENTS, *ORDER_EVENTS], ids=lambda m: m.DESCRIPTOR.name)
def test_an_event_is_told_in_the_shape_of_get(message: Any) -> None:
    of_payment = message in PAYMENT_EVENTS
    told = body(message(payment=PAYMENT) if of_payment else message(order=ORDER))
    assert told["type"] == (PAYMENT_EVENTS if of_payment else ORDER_EVENTS)[message]
    assert set(told["data"]) == set((Payment if of_payment else Order).model_fields)
    assert (told["id"], told["version"], told["timestamp"]) == (
        message_id_of("payment", 7),
        1,
        "2025-11-26T17:00:00.123000Z",
    )
    assert told["change"] == {}


def test_what_has_changed_is_said() -> None:
    captured = payment_events.PaymentCaptured(
        payment=PAYMENT,
        amount=Money(amount_minor=1_000, currency="USD"),
        fee=Money(amount_minor=59, currency="USD"),
    )
    assert body(captured)["change"] == {"amount": 1_000, "fee": 59}
    refused = body(order_events.OrderDispatchRefused(order=ORDER, saga=SAGA))
    assert (refused["change"]["saga"]["id"], refused["change"]["saga"]["kind"]) == ("saga_2", "dispatch")
    assert (refused["data"]["id"], refused["data"]["status"]) == ("ord_1", "dispatched")


def test_a_message_is_the_same_whenever_it_is_heard_of_and_no_two_are_called_the_same() -> None:
    event = payment_events.PaymentCaptured(payment=PAYMENT)
    first, again = (told_of("payment", 7, "mer_1", AT_MS, event) for _ in range(2))
    assert (first.message_id, first.write()) == (again.message_id, again.write())
    names = {
        message_id_of(source, position) for source in ("payment", "orchestrator") for position in range(50)
    }
    assert len(names) == 100
