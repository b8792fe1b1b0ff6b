"""What stands in the books, and what an authorization has come to by them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from sandbox.bank.cards import Card

Identity = tuple[str, str]
"""(merchant, key) or (merchant, authorization id)."""


class Kind(StrEnum):
    """What an operation does."""

    AUTHORIZE = "AUTHORIZE"
    VOID = "VOID"
    CAPTURE = "CAPTURE"
    REFUND = "REFUND"
    INCREMENT = "INCREMENT"


class Result(StrEnum):
    """What an operation came to."""

    APPROVED = "APPROVED"
    DECLINED = "DECLINED"
    CANCELLED = "CANCELLED"
    """It was cancelled by key before it arrived."""
    VOIDED = "VOIDED"
    """This void let the hold go."""
    ALREADY_VOIDED = "ALREADY_VOIDED"
    """An earlier void had let it go."""
    CAPTURED = "CAPTURED"
    REFUNDED = "REFUNDED"
    INCREMENTED = "INCREMENTED"
    REFUSED = "REFUSED"
    """There was no hold to let go, or the amount was too much."""


class State(StrEnum):
    """Where an authorization stands."""

    APPROVED = "APPROVED"
    DECLINED = "DECLINED"
    VOIDED = "VOIDED"
    CAPTURED = "CAPTURED"
    CANCELLED = "CANCELLED"


class AuthorizeWish(NamedTuple):
    """A wish for a hold."""

    merchant_id: str
    amount_minor: int
    currency: str
    card_token: str
    reference: str
    card: Card
    """How the bank behind `card_token` behaves."""


class VoidWish(NamedTuple):
    """A wish to let a hold go."""

    merchant_id: str
    authorization_id: str


class MoveWish(NamedTuple):
    """A wish to hold more, to take what is held, or to give back what was taken."""

    merchant_id: str
    authorization_id: str
    amount_minor: int
    currency: str
    final: bool = False
    """For a capture: let go of what it leaves."""


class Operation(NamedTuple):
    """A row of the books; it never changes."""

    merchant_id: str
    operation_id: str
    kind: Kind
    key: str | None
    fingerprint: bytes
    undoes: str | None
    amount_minor: int | None
    currency: str | None
    card_token: str
    reference: str
    result: Result
    auth_code: str
    decline_reason: str
    created_at: datetime
    final: bool = False


class Authorization(NamedTuple):
    """An authorization as it stands, or as it stood when it was made."""

    merchant_id: str
    authorization_id: str
    key: str
    amount_minor: int | None
    """None when it was cancelled before it arrived."""
    currency: str | None
    state: State
    auth_code: str
    decline_reason: str
    created_at: datetime


@dataclass(slots=True)
class Hold:
    """An authorization and what came of it so far. `add` takes one more operation into account."""

    made: Operation
    incremented_minor: int = 0
    captured_minor: int = 0
    refunded_minor: int = 0
    voided: bool = False
    closed: bool = False
    """Whether a final capture has let go of the rest."""

    @property
    def held_minor(self) -> int:
        """What the card's bank holds at this moment."""
        if self.made.result is not Result.APPROVED or self.voided or self.closed:
            return 0
        return (self.made.amount_minor or 0) + self.incremented_minor - self.captured_minor

    @property
    def state(self) -> State:
        """Where it stands."""
        if self.made.result is not Result.APPROVED:
            return State(self.made.result)
        if self.voided:
            return State.VOIDED
        return State.APPROVED if self.held_minor else State.CAPTURED

    def add(self, operation: Operation) -> None:
        """One more operation about it."""
        amount_minor = operation.amount_minor or 0
        match operation.result:
            case Result.INCREMENTED:
                self.incremented_minor += amount_minor
            case Result.CAPTURED:
                self.captured_minor += amount_minor
                self.closed = self.closed or operation.final
            case Result.REFUNDED:
                self.refunded_minor += amount_minor
            case Result.VOIDED:
                self.voided = True


def holds_of(made: Iterable[Operation], about: Iterable[Operation]) -> dict[Identity, Hold]:
    """Authorizations with all that came of them, by (merchant, authorization id)."""
    holds = {(one.merchant_id, one.operation_id): Hold(one) for one in made}
    for one in about:
        holds[(one.merchant_id, one.undoes or "")].add(one)
    return holds
