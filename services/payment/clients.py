"""Calls to others: the fraud service, and the processor behind its gateway.

Both take sets and answer one by one, in order. What goes wrong with one item, or with the whole call, comes back as a
value: a lost answer is a fact to be recorded, not an exception to be handled somewhere else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import grpc.aio
from opentelemetry.trace import Span

from paymesh.bank.v1 import bank_pb2, bank_pb2_grpc
from paymesh.fraud.v1 import fraud_pb2, fraud_pb2_grpc
from paymesh.result.v1 import failure_pb2
from services.kit.deadline import Deadline
from services.kit.errors import Kind, NotFound, PaymeshError, Refused
from services.kit.rpc.client import call
from services.kit.rpc.failures import from_failure
from services.kit.rpc.values import write_money
from services.kit.telemetry import traceparent_of
from services.payment.domain import (
    Absent,
    Approved,
    Authorization,
    Authorize,
    Declined,
    Gone,
    Letting,
    Lost,
    Payment,
    RefusedByProcessor,
    Verdict,
    void_number,
)


class Asked(NamedTuple):
    """A payment that others are asked about."""

    payment: Payment
    wish: Authorize
    span: Span | None


class FraudClient:
    """Asks the fraud service for verdicts."""

    def __init__(self, channel: grpc.aio.Channel, seconds: float) -> None:
        self._stub = fraud_pb2_grpc.FraudServiceStub(channel)
        self._seconds = seconds

    async def assess(self, asked: Sequence[Asked], deadline: Deadline) -> list[Verdict | PaymeshError]:
        """A verdict each; asking again about a payment returns the first verdict."""
        request = fraud_pb2.BatchAssessPaymentsRequest()
        for one in asked:
            _write_assessment(request.items.add(), one)
        try:
            response = await call(
                self._stub.BatchAssessPayments,
                request,
                deadline.clamp(self._seconds),
                spans=[a.span for a in asked],
            )
        except PaymeshError as error:
            return [error] * len(asked)
        return [_verdict(result) for result in response.results]


def _write_assessment(item: fraud_pb2.AssessPaymentItem, asked: Asked) -> None:
    wish = asked.wish
    item.idempotency_key = f"{asked.payment.payment_id}/assess"
    item.traceparent = traceparent_of(asked.span)
    request = item.request
    request.merchant_id = wish.merchant_id
    request.payment_id = asked.payment.payment_id
    subject = request.subject
    write_money(subject.amount, wish.amount)
    subject.card_token = wish.card_token
    subject.card_bin = wish.card_bin
    subject.customer_id = wish.customer_id
    subject.email = wish.email
    subject.ip_address = wish.ip_address
    subject.billing_country = wish.billing_country


def _verdict(result: fraud_pb2.AssessPaymentResult) -> Verdict | PaymeshError:
    if result.WhichOneof("outcome") != "response":
        return from_failure(result.failure)
    assessment = result.response.assessment
    rules = assessment.fired_rules
    reason = rules[0].rule.upper() if rules else ""
    approved = assessment.decision == fraud_pb2.DECISION_APPROVE
    return Verdict(
        approved, assessment.score_milli, "" if approved else f"FRAUD_{reason}" if reason else "FRAUD"
    )


class Processor:
    """Asks the processor. Keys are derived from the payment, so that every repeat is recognized."""

    def __init__(self, channel: grpc.aio.Channel, seconds: float) -> None:
        self._stub = bank_pb2_grpc.BankServiceStub(channel)
        self._seconds = seconds

    async def authorize(self, asked: Sequence[Asked], deadline: Deadline) -> list[Authorization]:
        """Hold the amounts."""
        request = bank_pb2.BatchAuthorizeRequest()
        for one in asked:
            _write_authorization(request.items.add(), one)
        try:
            response = await call(
                self._stub.BatchAuthorize,
                request,
                deadline.clamp(self._seconds),
                spans=[a.span for a in asked],
            )
        except PaymeshError as error:
            return [_lost(error)] * len(asked)
        return [
            _authorized(r.response.authorization)
            if r.WhichOneof("outcome") == "response"
            else _failed(r.failure)
            for r in response.results
        ]

    async def void(self, asked: Sequence[tuple[Payment, Span | None]], deadline: Deadline) -> list[Letting]:
        """Let go of holds."""
        request = bank_pb2.BatchVoidRequest(items=[_void(payment, span) for payment, span in asked])
        try:
            response = await call(
                self._stub.BatchVoid,
                request,
                deadline.clamp(self._seconds),
                spans=[span for _, span in asked],
            )
        except PaymeshError as error:
            return [_lost(error)] * len(asked)
        return [
            Gone() if r.WhichOneof("outcome") == "response" else _failed(r.failure) for r in response.results
        ]

    async def look_up(self, payments: Sequence[Payment], deadline: Deadline) -> list[Authorization | Absent]:
        """What became of authorizations, by their keys; changes nothing."""
        request = bank_pb2.BatchLookupByKeyRequest(
            items=[
                bank_pb2.LookupByKeyRequest(merchant_id=p.merchant_id, idempotency_key=_authorize_key(p))
                for p in payments
            ]
        )
        try:
            response = await call(self._stub.BatchLookupByKey, request, deadline.clamp(self._seconds))
        except PaymeshError as error:
            return [_lost(error)] * len(payments)
        return [
            _lost(from_failure(r.failure))
            if r.WhichOneof("outcome") != "response"
            else _authorized(r.response.authorization)
            if r.response.found
            else Absent()
            for r in response.results
        ]

    async def cancel(self, payment: Payment, deadline: Deadline) -> Authorization:
        """See to it that the authorization under the payment's key holds nothing, now or ever."""
        request = bank_pb2.CancelByKeyRequest(
            merchant_id=payment.merchant_id, idempotency_key=_authorize_key(payment)
        )
        try:
            response = await call(self._stub.CancelByKey, request, deadline.clamp(self._seconds))
        except PaymeshError as error:
            return _lost(error)
        return _authorized(response.authorization)


def _authorize_key(payment: Payment) -> str:
    return f"{payment.payment_id}/authorize"


def _write_authorization(item: bank_pb2.AuthorizeItem, asked: Asked) -> None:
    item.idempotency_key = _authorize_key(asked.payment)
    item.traceparent = traceparent_of(asked.span)
    request = item.request
    request.merchant_id = asked.payment.merchant_id
    write_money(request.amount, asked.wish.amount)
    request.card_token = asked.wish.card_token
    request.reference = asked.payment.payment_id


def _void(payment: Payment, span: Span | None) -> bank_pb2.VoidItem:
    return bank_pb2.VoidItem(
        idempotency_key=f"{payment.payment_id}/void/{void_number(payment)}",
        traceparent=traceparent_of(span),
        request=bank_pb2.VoidRequest(
            merchant_id=payment.merchant_id, authorization_id=payment.processor_reference
        ),
    )


def _authorized(authorization: bank_pb2.Authorization) -> Authorization:
    match authorization.state:
        case bank_pb2.AUTHORIZATION_STATE_APPROVED:
            return Approved(authorization.authorization_id, authorization.auth_code)
        case bank_pb2.AUTHORIZATION_STATE_DECLINED:
            return Declined(authorization.authorization_id, authorization.decline_reason)
        case bank_pb2.AUTHORIZATION_STATE_VOIDED | bank_pb2.AUTHORIZATION_STATE_CANCELLED:
            return Gone()
    return Lost(f"STATE_{authorization.state}")


def _failed(failure: failure_pb2.Failure) -> Lost | RefusedByProcessor:
    error = from_failure(failure)
    # Our keys are ours alone: another fingerprint under one means that an operation stands there, not that none does.
    stands = error.reason == "IDEMPOTENCY_KEY_REUSED"
    if not stands and (isinstance(error, Refused | NotFound) or error.kind is Kind.INVALID):
        return RefusedByProcessor(error.reason)
    return _lost(error)


def _lost(error: PaymeshError) -> Lost:
    return Lost(error.reason)
