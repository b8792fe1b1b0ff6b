"""Authorizations, voids and cancellations: holds that come and go."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import NamedTuple

from sandbox.bank.domain.books import (
    Authorization,
    AuthorizeWish,
    Hold,
    Identity,
    Kind,
    Operation,
    Result,
    State,
    VoidWish,
)
from services.kit.errors import NotFound, Refused, key_reused
from services.kit.ids import new_id

AUTH_CODE_LENGTH = 6
_AUTH_CODE_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
_AUTH_CODE_PAIRS = [a + b for a in _AUTH_CODE_ALPHABET for b in _AUTH_CODE_ALPHABET]


def authorize(
    wish: AuthorizeWish, operation_id: str, key: str, fingerprint: bytes, at: datetime
) -> Operation:
    """The card decides."""
    declined = wish.card.decline_reason
    return Operation(
        wish.merchant_id,
        operation_id,
        Kind.AUTHORIZE,
        key,
        fingerprint,
        None,
        wish.amount_minor,
        wish.currency,
        wish.card_token,
        wish.reference,
        Result.DECLINED if declined else Result.APPROVED,
        "" if declined else _auth_code(),
        declined,
        at,
    )


def _auth_code() -> str:
    """Six characters for people to read out; not a secret. One throw of the dice, two characters at a time:
    `random.choices` costs as much as all the rest of an authorization."""
    number = random.getrandbits(64)
    pairs = len(_AUTH_CODE_PAIRS)
    return (
        _AUTH_CODE_PAIRS[number % pairs]
        + _AUTH_CODE_PAIRS[number // pairs % pairs]
        + _AUTH_CODE_PAIRS[number // pairs**2 % pairs]
    )


def void(hold: Hold, *, key: str | None, fingerprint: bytes, at: datetime) -> Operation:
    """Let go of what is held, unless it is gone or there never was anything."""
    held = hold.made
    rest = hold.held_minor
    if hold.voided:
        result = Result.ALREADY_VOIDED
    else:
        result = Result.VOIDED if rest else Result.REFUSED
    return Operation(
        held.merchant_id,
        new_id("void"),
        Kind.VOID,
        key,
        fingerprint,
        held.operation_id,
        rest or held.amount_minor,
        held.currency,
        "",
        "",
        result,
        "",
        "",
        at,
    )


def cancelled(merchant_id: str, key: str, at: datetime) -> Operation:
    """The row that keeps an authorization that has not arrived from ever holding anything."""
    return Operation(
        merchant_id,
        new_id("auth"),
        Kind.AUTHORIZE,
        key,
        b"",
        None,
        None,
        None,
        "",
        "",
        Result.CANCELLED,
        "",
        "",
        at,
    )


class KeyedVoid(NamedTuple):
    """A wish to let a hold go, with what tells a repeat."""

    wish: VoidWish
    key: str
    fingerprint: bytes


def void_in_order(
    asked: Iterable[KeyedVoid],
    standing: Mapping[Identity, Operation],
    holds: Mapping[Identity, Hold],
    at: datetime,
) -> dict[Identity, Operation]:
    """The new operations of a set of voids, by (merchant, key), decided in order.

    `standing` are the operations that the keys were used for before, `holds` the authorizations by (merchant,
    authorization id), which are changed. A wish whose key stands, or whose authorization is unknown, makes no
    operation."""
    made: dict[Identity, Operation] = {}
    for one in asked:
        identity = (one.wish.merchant_id, one.key)
        hold = holds.get((one.wish.merchant_id, one.wish.authorization_id))
        if identity in standing or identity in made or hold is None:
            continue
        made[identity] = void(hold, key=one.key, fingerprint=one.fingerprint, at=at)
        hold.add(made[identity])
    return made


def repeat_refusal(standing: Operation, kind: Kind, key: str, fingerprint: bytes) -> Refused | None:
    """Why a call cannot have the answer of the operation that stands under its key; None when it can."""
    if standing.kind is not kind:
        return key_reused(key)
    if standing.result is Result.CANCELLED:
        return Refused(
            "CANCELLED_BEFORE_ARRIVAL", "this authorization was cancelled before it arrived; it holds nothing"
        )
    return None if standing.fingerprint == fingerprint else key_reused(key)


_STATES = {
    Result.APPROVED: State.APPROVED,
    Result.DECLINED: State.DECLINED,
    Result.CANCELLED: State.CANCELLED,
}
"""What an authorization is before anything comes of it."""


def authorization(made: Operation, *, voided: bool = False) -> Authorization:
    """The authorization that an operation made."""
    return Authorization(
        made.merchant_id,
        made.operation_id,
        made.key or "",
        made.amount_minor,
        made.currency,
        State.VOIDED if voided else _STATES[made.result],
        made.auth_code,
        made.decline_reason,
        made.created_at,
    )


def nothing_held(made: Operation) -> Refused:
    """A void of something that was declined or cancelled before it arrived, or that captures have used up."""
    why = f"authorization {made.operation_id!r} holds nothing to let go"
    return Refused("NOTHING_HELD" if made.result is Result.APPROVED else "AUTHORIZATION_DECLINED", why)


def unknown_authorization(authorization_id: str) -> NotFound:
    """A void of nothing we know."""
    return NotFound("UNKNOWN_AUTHORIZATION", f"there is no authorization {authorization_id!r}")
