"""The fraud service."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import grpc.aio
from opentelemetry.trace import Span

from paymesh.fraud.v1 import fraud_pb2, fraud_pb2_grpc
from services.kit.deadline import Deadline
from services.kit.errors import PaymeshError
from services.kit.rpc.client import call
from services.kit.rpc.failures import from_failure
from services.kit.rpc.values import write_money
from services.kit.telemetry import traceparent_of
from services.payment.domain import Authorize, Payment, Verdict


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
