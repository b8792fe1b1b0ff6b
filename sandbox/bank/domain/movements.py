"""Increments, captures and refunds: amounts that change what is held and what was taken."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import NamedTuple

from sandbox.bank.cards import card_of
from sandbox.bank.domain.books import Hold, Identity, Kind, MoveWish, Operation, Result, State
from services.kit.errors import Refused

_DONE = {
    Kind.CAPTURE: Result.CAPTURED,
    Kind.REFUND: Result.REFUNDED,
    Kind.INCREMENT: Result.INCREMENTED,
}


class KeyedMove(NamedTuple):
    """A wish with what tells a repeat, and the id of the operation that it would be."""

    wish: MoveWish
    key: str
    fingerprint: bytes
    operation_id: str


def move_in_order(
    kind: Kind,
    asked: Iterable[KeyedMove],
    standing: Mapping[Identity, Operation],
    holds: Mapping[Identity, Hold],
    at: datetime,
) -> dict[Identity, Operation]:
    """The new operations of a set, by (merchant, key), decided in order: see `void_in_order`."""
    made: dict[Identity, Operation] = {}
    for one in asked:
        wish = one.wish
        identity = (wish.merchant_id, one.key)
        hold = holds.get((wish.merchant_id, wish.authorization_id))
        if identity in standing or identity in made or hold is None:
            continue
        result, reason = _decided(kind, hold, wish)
        made[identity] = Operation(
            wish.merchant_id,
            one.operation_id,
            kind,
            one.key,
            one.fingerprint,
            wish.authorization_id,
            wish.amount_minor,
            wish.currency,
            "",
            "",
            result,
            "",
            reason,
            at,
            wish.final,
        )
        hold.add(made[identity])
    return made


def _decided(kind: Kind, hold: Hold, wish: MoveWish) -> tuple[Result, str]:
    """What a wish comes to, and why it does not."""
    reason = _fault(kind, hold, wish)
    if reason:
        return Result.REFUSED, reason
    card = card_of(hold.made.card_token)
    if kind is Kind.INCREMENT and card.increment_reason:
        return Result.DECLINED, card.increment_reason
    if kind is Kind.CAPTURE and card.capture_reason:
        return Result.REFUSED, card.capture_reason
    if kind is Kind.REFUND and card.refund_reason:
        return Result.REFUSED, card.refund_reason
    return _DONE[kind], ""


def _fault(kind: Kind, hold: Hold, wish: MoveWish) -> str:
    """What the books have against it; empty for nothing."""
    if hold.made.result is not Result.APPROVED:
        return "AUTHORIZATION_DECLINED"
    if wish.currency != hold.made.currency:
        return "CURRENCY_MISMATCH"
    if kind is Kind.REFUND:
        excess = wish.amount_minor > hold.captured_minor - hold.refunded_minor
        return "REFUND_EXCEEDS_CAPTURED" if excess else ""
    if hold.state is State.VOIDED:
        return "AUTHORIZATION_VOIDED"
    if kind is Kind.INCREMENT:
        return "AUTHORIZATION_CAPTURED" if hold.captured_minor else ""
    return "CAPTURE_EXCEEDS_HOLD" if wish.amount_minor > hold.held_minor else ""


def refusal(operation: Operation) -> Refused:
    """What the caller of a REFUSED operation is told."""
    return Refused(
        operation.decline_reason,
        f"authorization {operation.undoes!r} does not allow this {operation.kind.lower()}"
        f" of {operation.amount_minor} {operation.currency}",
    )
