"""What requests say, checked, and what responses are made of: the meeting of proto and domain."""

from __future__ import annotations

import base64
from datetime import datetime
from functools import lru_cache

import orjson

from paymesh.fraud.v1 import fraud_pb2 as pb
from services.fraud import domain
from services.fraud.domain import Assessment, AssessPayment, Decision, ListEntry, ListKind, Subject
from services.fraud.rules import Trait
from services.fraud.store import EntryKey
from services.kit.checks import Checks
from services.kit.errors import Invalid
from services.kit.money import Money

CARD_TOKEN_LENGTH_MAX = 128
IP_LENGTH_MAX = 45
"""The longest IPv6 address, with an IPv4 address written at its end."""
LIST_VALUE_LENGTH_MAX = 200
NOTE_LENGTH_MAX = 500
SHARED_REMEMBERED = 256
"""More merchants than a set has."""


def assess_payment(request: pb.AssessPaymentRequest) -> AssessPayment:
    """The command in a request. Raises Invalid. Every field is read once: the message makes a text anew each time."""
    subject = request.subject
    amount = subject.amount
    amount_minor, currency = amount.amount_minor, amount.currency
    payment_id, card_token, card_bin = request.payment_id, subject.card_token, subject.card_bin
    customer_id, email, country = subject.customer_id, subject.email, subject.billing_country
    checks = Checks()
    checks.text("merchant_id", request.merchant_id)
    checks.text("payment_id", payment_id)
    checks.money("subject.amount", amount_minor, currency)
    checks.text("subject.card_token", card_token, max_length=CARD_TOKEN_LENGTH_MAX)
    checks.card_bin("subject.card_bin", card_bin)
    checks.text("subject.customer_id", customer_id, optional=True)
    checks.email("subject.email", email)
    ip_address = _read_ip(checks, "subject.ip_address", subject.ip_address)
    checks.country("subject.billing_country", country, optional=True)
    checks.done()
    return AssessPayment(
        payment_id,
        Subject(
            Money(amount_minor, currency),
            card_token,
            card_bin,
            customer_id,
            email.lower(),
            ip_address,
            country,
        ),
    )


def _read_ip(checks: Checks, field: str, text: str) -> str:
    """The address in its one form; empty when there is none or it is at fault."""
    if not text:
        return ""
    try:
        return domain.normal_ip(text[: IP_LENGTH_MAX + 1])[0]  # cut: no address is that long
    except ValueError:
        checks.fail(field, "must be an IPv4 or IPv6 address such as '203.0.113.7' or '2001:db8::7', or empty")
        return ""


def new_entry(request: pb.AddListEntryRequest) -> tuple[EntryKey, str]:
    """The entry and the note in a request. Raises Invalid."""
    checks = Checks()
    checks.text("note", request.note, max_length=NOTE_LENGTH_MAX, optional=True)
    return _key(checks, request), request.note


def entry_key(request: pb.RemoveListEntryRequest) -> EntryKey:
    """The entry in a request. Raises Invalid."""
    return _key(Checks(), request)


def _key(checks: Checks, request: pb.AddListEntryRequest | pb.RemoveListEntryRequest) -> EntryKey:
    checks.text("merchant_id", request.merchant_id)
    kind, trait = _KINDS.get(request.kind), _TRAITS.get(request.subject)
    if kind is None:
        checks.fail("kind", "must be LIST_KIND_BLOCK or LIST_KIND_ALLOW")
    if trait is None:
        checks.fail("subject", "must be one of LIST_SUBJECT_CARD, _CUSTOMER, _EMAIL and _IP")
    value = request.value
    checks.text("value", value, max_length=LIST_VALUE_LENGTH_MAX)
    if trait is Trait.EMAIL:
        checks.email("value", value)
        value = value.lower()
    elif trait is Trait.IP:
        value = _read_ip(checks, "value", value)
    checks.done()
    assert kind is not None
    assert trait is not None
    return request.merchant_id, kind, trait, value


def page_token(entry: ListEntry) -> str:
    return base64.urlsafe_b64encode(orjson.dumps([entry.kind, entry.trait, entry.value])).decode()


def read_page_token(token: str) -> tuple[str, str, str]:
    """What a page comes behind. Raises Invalid."""
    if not token:
        return ("", "", "")
    try:
        parts = orjson.loads(base64.b64decode(token, altchars=b"-_", validate=True))
    except ValueError:
        parts = None
    match parts:
        case [str(kind), str(trait), str(value)] if "\x00" not in kind + trait + value:
            return kind, trait, value
    raise Invalid.field("page_token", "is not a token that an earlier page gave")


def assess_response(assessment: Assessment) -> pb.AssessPaymentResponse:
    """The answer of AssessPayment and GetAssessment's content."""
    verdict = assessment.verdict
    response = pb.AssessPaymentResponse()
    response.CopyFrom(
        _shared(
            assessment.merchant_id,
            verdict.decision,
            verdict.score_milli,
            verdict.degraded,
            assessment.created_at,
        )
    )
    message = response.assessment
    message.assessment_id = assessment.assessment_id
    message.payment_id = assessment.payment_id
    for rule in verdict.fired:
        message.fired_rules.add(rule=rule.rule, score_milli=rule.score_milli, explanation=rule.explanation)
    return response


@lru_cache(maxsize=SHARED_REMEMBERED)
def _shared(
    merchant_id: str, decision: Decision, score_milli: int, degraded: bool, created_at: datetime
) -> pb.AssessPaymentResponse:
    """What most assessments of a set have in common, only ever to be copied: a copy with two fields more takes a
    quarter of the time of a message filled field by field."""
    response = pb.AssessPaymentResponse(
        assessment=pb.Assessment(
            merchant_id=merchant_id,
            decision=_DECISIONS[decision],
            score_milli=score_milli,
            degraded=degraded,
        )
    )
    response.assessment.created_at.FromDatetime(created_at)
    return response


def entry_message(entry: ListEntry) -> pb.ListEntry:
    message = pb.ListEntry(
        merchant_id=entry.merchant_id,
        kind=_KIND_NUMBERS[entry.kind],
        subject=_TRAIT_NUMBERS[entry.trait],
        value=entry.value,
        note=entry.note,
    )
    message.created_at.FromDatetime(entry.created_at)
    return message


_DECISIONS = {Decision.APPROVE: pb.DECISION_APPROVE, Decision.DECLINE: pb.DECISION_DECLINE}
_KINDS = {pb.LIST_KIND_BLOCK: ListKind.BLOCK, pb.LIST_KIND_ALLOW: ListKind.ALLOW}
_TRAITS = {
    pb.LIST_SUBJECT_CARD: Trait.CARD,
    pb.LIST_SUBJECT_CUSTOMER: Trait.CUSTOMER,
    pb.LIST_SUBJECT_EMAIL: Trait.EMAIL,
    pb.LIST_SUBJECT_IP: Trait.IP,
}
_KIND_NUMBERS = {kind: number for number, kind in _KINDS.items()}
_TRAIT_NUMBERS = {trait: number for number, trait in _TRAITS.items()}
