"""What fraud reads from a request and says in a response: field by field, and nothing of any other."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paymesh.fraud.v1 import fraud_pb2 as pb
from paymesh.money.v1 import money_pb2
from services.fraud.domain import Assessment, Decision, FiredRule, Verdict
from services.fraud.service.messages import assess_payment, assess_response
from services.kit.errors import Invalid

DECISIONS = {Decision.APPROVE: pb.DECISION_APPROVE, Decision.DECLINE: pb.DECISION_DECLINE}
INSTANTS = st.sampled_from(
    [datetime(2030, 5, 17, 12, 0, 0, microsecond, UTC) for microsecond in (0, 999_999)]
)
FIRED = st.builds(FiredRule, st.sampled_from(["a", "b"]), st.integers(0, 1_000), st.sampled_from(["", "why"]))
ASSESSMENTS = st.builds(
    Assessment,
    st.sampled_from(["m", "n"]),
    st.sampled_from(["fra_1", "fra_2"]),
    st.sampled_from(["pay_1", "pay_2"]),
    st.builds(
        Verdict,
        st.sampled_from(Decision),
        st.integers(0, 1_000),
        st.lists(FIRED, max_size=2).map(tuple),
        st.booleans(),
    ),
    INSTANTS,
)


@given(st.lists(ASSESSMENTS, min_size=1, max_size=10))
def test_no_response_has_anything_of_another(assessments: list[Assessment]) -> None:
    responses = [assess_response(assessment) for assessment in assessments]
    for assessment, response in zip(assessments, responses, strict=True):
        message, verdict = response.assessment, assessment.verdict
        assert (message.merchant_id, message.assessment_id, message.payment_id) == assessment[:3]
        assert (message.decision, message.score_milli, message.degraded) == (
            DECISIONS[verdict.decision],
            verdict.score_milli,
            verdict.degraded,
        )
        assert [(f.rule, f.score_milli, f.explanation) for f in message.fired_rules] == list(verdict.fired)
        assert message.created_at.ToDatetime(UTC) == assessment.created_at


def _request() -> pb.AssessPaymentRequest:
    return pb.AssessPaymentRequest(
        merchant_id="mer_1",
        payment_id="pay_1",
        subject=pb.Subject(
            amount=money_pb2.Money(amount_minor=1_234, currency="GBP"),
            card_token="tok_1",
            card_bin="424242",
            customer_id="cus_1",
            email="Ann@Example.com",
            ip_address="::ffff:203.0.113.7",
            billing_country="GB",
        ),
    )


def test_every_field_of_a_request_is_where_it_belongs() -> None:
    read = assess_payment(_request())
    assert read.payment_id == "pay_1"
    assert (read.subject.amount.amount_minor, read.subject.amount.currency) == (1_234, "GBP")
    assert read.subject[1:] == ("tok_1", "424242", "cus_1", "ann@example.com", "203.0.113.7", "GB")


def test_every_field_at_fault_is_named() -> None:
    request = pb.AssessPaymentRequest(
        subject=pb.Subject(
            card_bin="42", customer_id="\x00", email="ann", ip_address="here", billing_country="uk"
        )
    )
    with pytest.raises(Invalid) as raised:
        assess_payment(request)
    assert [violation.field for violation in raised.value.violations] == [
        "merchant_id", "payment_id", "subject.amount.amount_minor", "subject.amount.currency", "subject.card_token",
        "subject.card_bin", "subject.customer_id", "subject.email", "subject.ip_address", "subject.billing_country",
    ]  # fmt: skip
