"""What the fraud check and the processor answer, and the events that their answers cause."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from services.payment.domain.events import Event, EventType
from services.payment.domain.payment import WAITING, Payment, State


class Verdict(NamedTuple):
    """The fraud check's answer."""

    approved: bool
    score_milli: int
    reason: str


class Approved(NamedTuple):
    """The card's bank holds the amount."""

    reference: str
    auth_code: str


class Declined(NamedTuple):
    """The card's bank said no."""

    reference: str
    reason: str


class Done(NamedTuple):
    """The processor has held more, taken money, or given it back."""

    reference: str
    amount_minor: int


@dataclass(frozen=True, slots=True)
class Gone:
    """Nothing is held: a hold was let go, or the authorization was cancelled before it arrived."""


@dataclass(frozen=True, slots=True)
class Absent:
    """The processor knows of no operation under the key."""


class Lost(NamedTuple):
    """The processor's answer did not arrive, or is still to come; the operation may have been carried out."""

    reason: str


class RefusedByProcessor(NamedTuple):
    """The processor will not do it, ever."""

    reason: str


Authorization = Approved | Declined | Gone | Lost | RefusedByProcessor
Letting = Gone | Lost | RefusedByProcessor
Movement = Done | Declined | Lost | RefusedByProcessor
"""The answer to an increment, a capture or a refund."""

_MOVED = {
    State.INCREMENTING: (EventType.INCREMENTED, EventType.INCREMENT_REFUSED),
    State.CAPTURING: (EventType.CAPTURED, EventType.CAPTURE_REFUSED),
    State.REFUNDING: (EventType.REFUNDED, EventType.REFUND_REFUSED),
}


def after_fraud(payment: Payment, verdict: Verdict) -> Event | None:
    """The event that a fraud check causes; None to go on, or when it changes nothing any more."""
    if verdict.approved or payment.state is not State.AUTHORIZING:
        return None
    return Event(EventType.REJECTED, {"reason": verdict.reason, "fraud_score_milli": verdict.score_milli})


def after_authorization(
    payment: Payment, answer: Authorization, score_milli: int, lifetime_ms: int
) -> Event | None:
    """The event that the processor's answer causes; None when it changes nothing any more. The authorization ends
    `lifetime_ms` after the intent: the bank's own clock starts later, so it never ends before ours."""
    if payment.state is State.FAILED and isinstance(answer, Approved):
        return Event(EventType.LATE_APPROVAL, {"processor_reference": answer.reference})
    if payment.state is not State.AUTHORIZING:
        return None
    match answer:
        case Approved(reference, auth_code):
            data = {
                "auth_code": auth_code,
                "processor_reference": reference,
                "fraud_score_milli": score_milli,
                "expires_at_ms": payment.created_at_ms + lifetime_ms,
            }
            return Event(EventType.AUTHORIZED, data)
        case Declined(reference, reason):
            data = {"reason": reason, "processor_reference": reference, "fraud_score_milli": score_milli}
            return Event(EventType.DECLINED, data)
        case Gone():
            return Event(EventType.FAILED, {"reason": "CANCELLED_AT_PROCESSOR"})
        case RefusedByProcessor(reason):
            return Event(EventType.FAILED, {"reason": reason or "REFUSED"})
        case Lost(reason):
            return _unknown(payment, reason)


def same_intent(asked: Payment, now: Payment) -> bool:
    """Whether a payment still waits for the very operation that the processor was asked for: nothing has happened since
    but, at most, that the outcome was marked unknown. After a refused void another may have begun."""
    return now.version == asked.version or (now.version == asked.version + 1 and bool(now.unknown_outcome))


def intent_number(payment: Payment) -> int:
    """The version of the event that began the operation under way: tells a second capture from a first, and a second
    void from one that was refused. Nothing but the mark of an unknown outcome can follow that event."""
    return payment.version - 1 if payment.unknown_outcome else payment.version


def after_void(payment: Payment, asked: Payment, answer: Letting) -> Event | None:
    """The event that the processor's answer to the void of `asked` causes; None when it changes nothing any more."""
    if payment.state is not State.VOIDING or not same_intent(asked, payment):
        return None
    match answer:
        case Gone():
            return Event(EventType.EXPIRED if payment.expiring else EventType.VOIDED, {})
        case RefusedByProcessor(reason) if payment.expiring:
            # The authorization has come to its end there, too: what is refused to be let go is not held any more.
            return Event(EventType.EXPIRED, {"reason": reason})
        case RefusedByProcessor(reason) if not payment.found_late:
            return Event(EventType.VOID_REFUSED, {"reason": reason})
        case RefusedByProcessor(reason) | Lost(reason):
            # A hold that was found late has no AUTHORIZED to go back to; it waits, in sight, and is asked for again.
            return _unknown(payment, reason)


def after_movement(payment: Payment, asked: Payment, answer: Movement) -> Event | None:
    """The event that the processor's answer to the increment, capture or refund of `asked` causes; None when it changes
    nothing any more."""
    if payment.state is not asked.state or not same_intent(asked, payment):
        return None
    done, refused = _MOVED[payment.state]
    match answer:
        case Done(reference, amount_minor) if amount_minor == payment.pending_minor:
            data: dict[str, Any] = {"amount_minor": amount_minor, "processor_reference": reference}
            if done is EventType.CAPTURED:
                data |= {"fee_minor": payment.pending_fee_minor, "final": payment.pending_final}
            return Event(done, data)
        case Done(_, amount_minor):
            # Money has moved, but not as we asked: a person has to look, and nothing more may happen before.
            return _unknown(payment, f"AMOUNT_IS_{amount_minor}")
        case Declined(_, reason) | RefusedByProcessor(reason):
            return Event(refused, {"reason": reason or "REFUSED"})
        case Lost(reason):
            return _unknown(payment, reason)


def _unknown(payment: Payment, reason: str) -> Event | None:
    """Told once; further lost answers add nothing to the story."""
    if payment.unknown_outcome:
        return None
    which = WAITING[payment.state]
    return Event(EventType.OUTCOME_UNKNOWN, {"operation": str(which), "reason": reason})
