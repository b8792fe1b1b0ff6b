"""Between JSON and the contracts of the services."""

from __future__ import annotations

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
    reason = order.reason
    return {
        "id": order.order_id,
        "status": orchestrator_pb2.SagaState.Name(order.state).removeprefix("SAGA_STATE_").lower(),
        "reference": order.order_reference or None,
        "reason": {"step": reason.step, "code": reason.code, "message": reason.message}
        if order.HasField("reason")
        else None,
        "amount": order.amount.amount_minor,
        "currency": order.amount.currency,
        "lines": [{"sku": line.sku, "quantity": line.quantity} for line in order.lines],
        "saga_id": order.saga_id,
        "reservation_id": order.reservation_id or None,
        "payment_id": order.payment_id or None,
        "shipment_id": order.shipment_id or None,
        "created_at": _instant(order.created_at),
        "ended_at": _instant(order.ended_at) if order.HasField("ended_at") else None,
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
