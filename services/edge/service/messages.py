"""Between JSON and the contracts of the services."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import orjson
from google.protobuf.timestamp_pb2 import Timestamp

from paymesh.money.v1 import money_pb2
from paymesh.orchestrator.v1 import orchestrator_pb2
from paymesh.payment.v1 import payment_pb2
from paymesh.shipping.v1 import shipping_pb2
from services.edge.domain.cards import KeptCard
from services.edge.service.bodies import Customer, OrderRequest


def money(amount: int, currency: str) -> money_pb2.Money:
    """An amount on the wire."""
    return money_pb2.Money(amount_minor=amount, currency=currency)


def customer_of(customer: Customer) -> payment_pb2.Customer:
    """Who pays."""
    return payment_pb2.Customer(
        customer_id=customer.id,
        email=customer.email,
        ip_address=customer.ip_address,
        billing_country=customer.billing_country,
    )


def order_request(merchant_id: str, body: OrderRequest, card: payment_pb2.Card) -> Any:
    """The command to place an order."""
    address = body.shipping_address
    return orchestrator_pb2.PlaceOrderRequest(
        merchant_id=merchant_id,
        order_reference=body.reference,
        lines=[orchestrator_pb2.OrderLine(sku=line.sku, quantity=line.quantity) for line in body.lines],
        amount=money(body.amount, body.currency),
        card=card,
        customer=customer_of(body.customer),
        shipping_address=shipping_pb2.Address(
            name=address.name,
            street_lines=address.street_lines,
            city=address.city,
            postal_code=address.postal_code,
            country=address.country,
        ),
    )


def payment_json(payment: payment_pb2.Payment) -> dict[str, Any]:
    """A payment as JSON has it."""
    unknown = (
        payment_pb2.UnknownOutcome.Name(payment.unknown_outcome).removeprefix("UNKNOWN_OUTCOME_").lower()
    )
    return {
        "id": payment.payment_id,
        "status": payment_pb2.PaymentState.Name(payment.state).removeprefix("PAYMENT_STATE_").lower(),
        "order_id": payment.order_id,
        "amount": payment.amount.amount_minor,
        "currency": payment.amount.currency,
        "auth_code": payment.auth_code or None,
        "authorized_amount": payment.authorized.amount_minor,
        "held_amount": payment.held.amount_minor,
        "captured_amount": payment.captured.amount_minor,
        "refunded_amount": payment.refunded.amount_minor,
        "settled_amount": payment.settled.amount_minor,
        "fee_amount": payment.fee.amount_minor,
        "pending_amount": payment.pending.amount_minor,
        "unknown_outcome": unknown if payment.unknown_outcome else None,
        "processor_reference": payment.processor_reference or None,
        "decline_reason": payment.decline_reason or None,
        "fraud_score": payment.fraud_score_milli,
        "created_at": _instant(payment.created_at),
        "expires_at": _instant(payment.expires_at) if payment.HasField("expires_at") else None,
        "version": payment.version,
    }


def card_json(card: KeptCard | None) -> dict[str, Any] | None:
    """What may be shown of a card."""
    if card is None:
        return None
    return {
        "token": card.card_id,
        "brand": card.brand,
        "bin": card.bin,
        "last4": card.last4,
        "exp_month": card.exp_month,
        "exp_year": card.exp_year,
        "fingerprint": card.fingerprint,
    }


def event_json(event: payment_pb2.PaymentEvent) -> dict[str, Any]:
    """One event as JSON has it."""
    return {
        "version": event.version,
        "type": event.type,
        "at": _instant(event.recorded_at),
        "data": orjson.loads(event.data_json),
    }


def order_json(order: orchestrator_pb2.Order) -> dict[str, Any]:
    """An order as JSON has it."""
    return {
        "id": order.order_id,
        "status": _order_status(order),
        "reference": order.order_reference or None,
        "reason": _reason_json(order),
        "amount": order.amount.amount_minor,
        "currency": order.amount.currency,
        "lines": _lines_json(order.lines),
        "returned_lines": _lines_json(order.returned_lines),
        "returned_amount": order.returned_amount.amount_minor,
        "saga_id": order.saga_id,
        "reservation_id": order.reservation_id or None,
        "payment_id": order.payment_id or None,
        "shipment_id": order.shipment_id or None,
        "created_at": _instant(order.created_at),
        "ended_at": _instant(order.ended_at) if order.HasField("ended_at") else None,
    }


def _order_status(order: orchestrator_pb2.Order) -> str:
    """How its placing stands, and once something else was begun with it, where that has brought it."""
    pb = orchestrator_pb2
    if order.order_state < pb.ORDER_STATE_DISPATCHING:
        return pb.SagaState.Name(order.state).removeprefix("SAGA_STATE_").lower()
    return pb.OrderState.Name(order.order_state).removeprefix("ORDER_STATE_").lower()


def _lines_json(lines: Iterable[orchestrator_pb2.OrderLine]) -> list[dict[str, Any]]:
    return [{"sku": line.sku, "quantity": line.quantity} for line in lines]


def _reason_json(about: orchestrator_pb2.Order | orchestrator_pb2.Saga) -> dict[str, Any] | None:
    if not about.HasField("reason"):
        return None
    reason = about.reason
    return {"step": reason.step, "code": reason.code, "message": reason.message}


def saga_json(saga: orchestrator_pb2.Saga) -> dict[str, Any]:
    """A saga as JSON has it, without its history."""
    return {
        "id": saga.saga_id,
        "kind": saga.kind,
        "status": orchestrator_pb2.SagaState.Name(saga.state).removeprefix("SAGA_STATE_").lower(),
        "reason": _reason_json(saga),
        "created_at": _instant(saga.created_at),
        "ended_at": _instant(saga.ended_at) if saga.HasField("ended_at") else None,
    }


def order_story_json(found: orchestrator_pb2.GetOrderResponse) -> dict[str, Any]:
    """An order with its sagas and its payment as JSON has it."""
    return {
        **order_json(found.order),
        "history": [attempt_json(attempt) for attempt in found.saga.history],
        "sagas": [
            {**saga_json(saga), "history": [attempt_json(attempt) for attempt in saga.history]}
            for saga in found.sagas or [found.saga]
        ],
        "payment": payment_json(found.payment) if found.HasField("payment") else None,
    }


def attempt_json(attempt: orchestrator_pb2.Attempt) -> dict[str, Any]:
    """One attempt at a step as JSON has it."""
    pb = orchestrator_pb2
    return {
        "step": attempt.step,
        "direction": pb.Direction.Name(attempt.direction).removeprefix("DIRECTION_").lower(),
        "attempt": attempt.attempt,
        "outcome": pb.AttemptOutcome.Name(attempt.outcome).removeprefix("ATTEMPT_OUTCOME_").lower(),
        "reason": attempt.reason or None,
        "started_at": _instant(attempt.started_at),
        "ended_at": _instant(attempt.ended_at),
    }


def _instant(at: Timestamp) -> datetime:
    return datetime.fromtimestamp(at.seconds, UTC).replace(microsecond=at.nanos // 1000)
