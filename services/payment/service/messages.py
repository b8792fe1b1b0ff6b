"""What requests say, checked, and what responses are made of: the meeting of proto and domain."""

from __future__ import annotations

from typing import Any

from google.protobuf.message import Message

from paymesh.money.v1 import money_pb2
from paymesh.payment.v1 import events_pb2
from paymesh.payment.v1 import payment_pb2 as pb
from services.kit.checks import KEY_LENGTH_MAX, Checks
from services.kit.money import Money
from services.kit.rpc.values import write_money, write_timestamp
from services.payment.domain import (
    Authorize,
    ByKey,
    Event,
    EventType,
    Move,
    Payment,
    State,
    UnknownOutcome,
    Void,
)
from services.payment.store import Record

CARD_TOKEN_LENGTH_MAX = 128
NOTE_LENGTH_MAX = 200

STATES = {state: pb.PaymentState.Value(f"PAYMENT_STATE_{state}") for state in State}
UNKNOWN_OUTCOMES = {
    unknown: pb.UnknownOutcome.Value(f"UNKNOWN_OUTCOME_{unknown or 'UNSPECIFIED'}")
    for unknown in UnknownOutcome
}

# By event and not by state: a refused void leads back to AUTHORIZED, which nobody needs to hear twice.
ANNOUNCED: dict[EventType, Any] = {
    EventType.AUTHORIZED: events_pb2.PaymentAuthorized,
    EventType.DECLINED: events_pb2.PaymentDeclined,
    EventType.REJECTED: events_pb2.PaymentDeclined,
    EventType.FAILED: events_pb2.PaymentDeclined,
    EventType.VOIDED: events_pb2.PaymentVoided,
    EventType.INCREMENTED: events_pb2.PaymentAuthorizationIncremented,
    EventType.CAPTURED: events_pb2.PaymentCaptured,
    EventType.REFUNDED: events_pb2.PaymentRefunded,
    EventType.EXPIRED: events_pb2.PaymentExpired,
    EventType.SETTLED: events_pb2.PaymentSettled,
}


def authorize_wish(request: pb.AuthorizePaymentRequest) -> Authorize:
    """The command in a request. Raises Invalid.

    No less strict than fraud and the processor are: what they would find malformed must not become a payment first."""
    card, customer, amount = request.card, request.customer, request.amount
    checks = Checks()
    checks.text("merchant_id", request.merchant_id)
    checks.text("order_id", request.order_id)
    checks.money("amount", amount.amount_minor, amount.currency)
    checks.text("card.token", card.token, max_length=CARD_TOKEN_LENGTH_MAX)
    checks.card_bin("card.bin", card.bin)
    checks.text("customer.customer_id", customer.customer_id, optional=True)
    checks.email("customer.email", customer.email)
    checks.country("customer.billing_country", customer.billing_country, optional=True)
    checks.ip_address("customer.ip_address", customer.ip_address)
    checks.done()
    return Authorize(
        request.merchant_id,
        request.order_id,
        Money(amount.amount_minor, amount.currency),
        card.token,
        card.bin,
        customer.customer_id,
        customer.email,
        customer.ip_address,
        customer.billing_country,
    )


def void_wish(request: pb.VoidPaymentRequest) -> Void:
    """The command in a request. Raises Invalid."""
    by_key = request.WhichOneof("target") == "authorize_key"
    checks = Checks()
    checks.text("merchant_id", request.merchant_id)
    if by_key:
        key = request.authorize_key
        checks.text("authorize_key", key, max_length=KEY_LENGTH_MAX)
        if not (key.isascii() and (key.isprintable() or "\x00" in key)):
            checks.fail("authorize_key", "is no idempotency key: they are printable ASCII")
    else:
        checks.text("payment_id", request.payment_id)
    checks.text("note", request.note, max_length=NOTE_LENGTH_MAX, optional=True)
    checks.done()
    target = ByKey(request.authorize_key) if by_key else request.payment_id
    return Void(request.merchant_id, target, request.note)


def capture_wish(request: pb.CapturePaymentRequest) -> Move:
    """The command in a request. Raises Invalid."""
    return _move(request, final=request.final)


def refund_wish(request: pb.RefundPaymentRequest) -> Move:
    """The command in a request. Raises Invalid."""
    return _move(request)


def increment_wish(request: pb.IncrementAuthorizationRequest) -> Move:
    """The command in a request; here an amount has to be given. Raises Invalid."""
    return _move(request, amount_required=True)


def _move(
    request: pb.CapturePaymentRequest | pb.RefundPaymentRequest | pb.IncrementAuthorizationRequest,
    *,
    final: bool = False,
    amount_required: bool = False,
) -> Move:
    checks = Checks()
    checks.text("merchant_id", request.merchant_id)
    checks.text("payment_id", request.payment_id)
    amount = None
    if amount_required or request.HasField("amount"):
        checks.money("amount", request.amount.amount_minor, request.amount.currency)
        amount = Money(request.amount.amount_minor, request.amount.currency)
    checks.text("note", request.note, max_length=NOTE_LENGTH_MAX, optional=True)
    checks.done()
    return Move(request.merchant_id, request.payment_id, amount, final, request.note)


def message_of(payment: Payment) -> pb.Payment:
    """The payment on the wire."""
    message = pb.Payment(
        merchant_id=payment.merchant_id,
        payment_id=payment.payment_id,
        order_id=payment.order_id,
        state=STATES[payment.state],
        unknown_outcome=UNKNOWN_OUTCOMES[payment.unknown_outcome],
        auth_code=payment.auth_code,
        processor_reference=payment.processor_reference,
        decline_reason=payment.decline_reason,
        fraud_score_milli=payment.fraud_score_milli,
        version=payment.version,
    )
    currency = payment.amount.currency
    write_money(message.amount, payment.amount)
    write_money(message.held, payment.held)
    write_money(message.authorized, Money(payment.authorized_minor, currency))
    # What is zero is left out: four more messages in each of them would be felt on the way of an authorization.
    if payment.captured_minor:
        write_money(message.captured, Money(payment.captured_minor, currency))
    if payment.refunded_minor:
        write_money(message.refunded, Money(payment.refunded_minor, currency))
    if payment.settled_minor:
        write_money(message.settled, Money(payment.settled_minor, currency))
    if payment.fee_minor:
        write_money(message.fee, Money(payment.fee_minor, currency))
    if payment.pending_minor:
        write_money(message.pending, Money(payment.pending_minor, currency))
    if payment.created_at_ms:
        write_timestamp(message.created_at, payment.created_at_ms)
    if payment.expires_at_ms:
        write_timestamp(message.expires_at, payment.expires_at_ms)
    return message


def announcement_of(event: Event, payment: pb.Payment) -> Message:
    """What other services are told of an event, one of those ANNOUNCED, that led to `payment`."""
    kind = ANNOUNCED[event.type]
    if "amount_minor" not in event.data:
        announced: Message = kind(payment=payment)
        return announced
    currency = payment.amount.currency
    parts = {"amount": money_pb2.Money(amount_minor=event.data["amount_minor"], currency=currency)}
    if event.type is EventType.CAPTURED:
        parts["fee"] = money_pb2.Money(amount_minor=event.data["fee_minor"], currency=currency)
    moved: Message = kind(payment=payment, **parts)
    return moved


def event_of(record: Record) -> pb.PaymentEvent:
    """A stored event on the wire."""
    event = pb.PaymentEvent(version=record.version, type=record.event.type, data_json=record.data_json())
    write_timestamp(event.recorded_at, record.recorded_at_ms)
    return event
