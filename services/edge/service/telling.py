"""Events of the services as merchants read them: the body of a webhook."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import orjson

from paymesh.orchestrator.v1 import events_pb2 as order_events
from paymesh.payment.v1 import events_pb2 as payment_events
from services.edge.service.messages import order_json, payment_json, saga_json
from services.edge.service.webhook_bodies import WebhookMessage
from services.edge.webhooks import Told

BODY_VERSION = 1
"""Of the form of a message. Fields may be added without another."""

PAYMENT_EVENTS: Mapping[Any, str] = {
    payment_events.PaymentAuthorized: "payment.authorized",
    payment_events.PaymentAuthorizationIncremented: "payment.incremented",
    payment_events.PaymentCaptured: "payment.captured",
    payment_events.PaymentDeclined: "payment.declined",
    payment_events.PaymentExpired: "payment.expired",
    payment_events.PaymentRefunded: "payment.refunded",
    payment_events.PaymentSettled: "payment.settled",
    payment_events.PaymentVoided: "payment.voided",
}
"""What merchants are told of their payments, and by which name."""
ORDER_EVENTS: Mapping[Any, str] = {
    order_events.OrderCancelled: "order.cancelled",
    order_events.OrderCompensated: "order.compensated",
    order_events.OrderDispatchRefused: "order.dispatch_refused",
    order_events.OrderDispatched: "order.dispatched",
    order_events.OrderParked: "order.parked",
    order_events.OrderPlaced: "order.placed",
    order_events.OrderReturnRefused: "order.return_refused",
    order_events.OrderReturned: "order.returned",
}
"""… of their orders."""
_NAMES = {**PAYMENT_EVENTS, **ORDER_EVENTS}


def told_of(source: str, position: int, merchant_id: str, announced_at_ms: int, event: Any) -> Told:
    """An event of a service as its merchant may be told. The same event is the same message, byte for byte, as long as
    the code is; after that the first one stays."""
    name = _NAMES[type(event)]
    message_id = message_id_of(source, position)
    write = functools.partial(_write, message_id, name, announced_at_ms, event)
    return Told(merchant_id, message_id, name, announced_at_ms, write)


def _write(message_id: str, name: str, announced_at_ms: int, event: Any) -> bytes:
    thing, change = _payment(event) if type(event) in PAYMENT_EVENTS else _order(event)
    body = WebhookMessage.model_validate(
        {
            "id": message_id,
            "type": name,
            "version": BODY_VERSION,
            "timestamp": datetime.fromtimestamp(announced_at_ms / 1000, UTC),
            "data": thing,
            "change": change,
        }
    )
    return orjson.dumps(body.model_dump(mode="json", exclude_unset=True))


def message_id_of(source: str, position: int) -> str:
    """What a message is called at every attempt and every endpoint: source and position name an event for ever."""
    text = f"{source}/{position}".encode()
    return f"evt_{hashlib.blake2b(text, digest_size=16, person=b'paymesh-message').hexdigest()}"


def _payment(event: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the payment as it stood, what has changed)."""
    fields = {field.name for field, _ in event.ListFields()}
    change = {name: getattr(event, name).amount_minor for name in ("amount", "fee") if name in fields}
    return payment_json(event.payment), change


def _order(event: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the order as it stood, what has changed)."""
    fields = {field.name for field, _ in event.ListFields()}
    return order_json(event.order), {"saga": saga_json(event.saga)} if "saga" in fields else {}
