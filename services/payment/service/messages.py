"""What requests say, checked, and what responses are made of: the meeting of proto and domain."""

from __future__ import annotations

from paymesh.payment.v1 import payment_pb2 as pb
from services.kit.checks import KEY_LENGTH_MAX, Checks
from services.kit.money import Money
from services.kit.rpc.values import write_money, write_timestamp
from services.payment.domain import Authorize, ByKey, Payment, State, UnknownOutcome, Void
from services.payment.store import Record

CARD_TOKEN_LENGTH_MAX = 128
NOTE_LENGTH_MAX = 200

STATES = {
    State.AUTHORIZING: pb.PAYMENT_STATE_AUTHORIZING,
    State.AUTHORIZED: pb.PAYMENT_STATE_AUTHORIZED,
    State.DECLINED: pb.PAYMENT_STATE_DECLINED,
    State.REJECTED: pb.PAYMENT_STATE_REJECTED,
    State.FAILED: pb.PAYMENT_STATE_FAILED,
    State.VOIDING: pb.PAYMENT_STATE_VOIDING,
    State.VOIDED: pb.PAYMENT_STATE_VOIDED,
}
UNKNOWN_OUTCOMES = {
    UnknownOutcome.NONE: pb.UNKNOWN_OUTCOME_UNSPECIFIED,
    UnknownOutcome.AUTHORIZATION: pb.UNKNOWN_OUTCOME_AUTHORIZATION,
    UnknownOutcome.VOID: pb.UNKNOWN_OUTCOME_VOID,
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
    write_money(message.amount, payment.amount)
    write_money(message.held, payment.held)
    if payment.created_at_ms:
        write_timestamp(message.created_at, payment.created_at_ms)
    return message


def event_of(record: Record) -> pb.PaymentEvent:
    """A stored event on the wire."""
    event = pb.PaymentEvent(version=record.version, type=record.event.type, data_json=record.data_json())
    write_timestamp(event.recorded_at, record.recorded_at_ms)
    return event
