"""The closed family of errors that a handler may raise or put into a command's outcome.

A `Kind` says what the caller may conclude; retries and compensation are decided by it and never by a message.
`services.kit.rpc.failures` is the one table that maps the family to and from the wire.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Kind(StrEnum):
    """What a caller may conclude from a failure."""

    INVALID = "INVALID"
    """The request is malformed; nothing happened, nothing was stored."""
    REFUSED = "REFUSED"
    """A final business no; the answer is stored and replays."""
    NOT_FOUND = "NOT_FOUND"
    """The thing that was named does not exist; nothing was stored."""
    RETRYABLE = "RETRYABLE"
    """Nothing happened; send it again with the same key."""
    IN_PROGRESS = "IN_PROGRESS"
    """An earlier call with the key has not ended; ask again with the same key."""
    UNKNOWN = "UNKNOWN"
    """It may have happened; repeat with the same key or ask for the state."""
    BUG = "BUG"
    """A defect here; it may have happened."""


@dataclass(frozen=True, slots=True)
class Violation:
    """One field at fault, by its path in the request, and what would be right."""

    field: str
    description: str


class PaymeshError(Exception):
    """Base of the family; raise one of the subclasses.

    `reason` is a stable UPPER_SNAKE identifier, `facts` are strings by name for the caller, `retry_after_ms` is how
    long to wait before the next attempt.
    """

    kind: Kind = Kind.BUG

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        facts: Mapping[str, str] | None = None,
        violations: Sequence[Violation] = (),
        retry_after_ms: int | None = None,
    ) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.message = message
        self.facts = dict(facts or {})
        self.violations = tuple(violations)
        self.retry_after_ms = retry_after_ms


class Invalid(PaymeshError):
    """The request is malformed."""

    kind = Kind.INVALID

    def __init__(self, violations: Sequence[Violation], message: str | None = None) -> None:
        text = message or "; ".join(f"{v.field}: {v.description}" for v in violations)
        super().__init__("INVALID_REQUEST", text, violations=violations)

    @classmethod
    def field(cls, field: str, description: str) -> Invalid:
        """The request has one fault."""
        return cls([Violation(field, description)])


class Refused(PaymeshError):
    """A final business no."""

    kind = Kind.REFUSED


class NotFound(PaymeshError):
    """The thing that was named does not exist."""

    kind = Kind.NOT_FOUND


class Retryable(PaymeshError):
    """Nothing happened; worth another attempt."""

    kind = Kind.RETRYABLE


class Overloaded(Retryable):
    """A queue is full and the work was shed."""


class InProgress(PaymeshError):
    """An earlier call with the same key has not ended."""

    kind = Kind.IN_PROGRESS


class Unknown(PaymeshError):
    """It may have happened."""

    kind = Kind.UNKNOWN


class Bug(PaymeshError):
    """A defect of ours; the details are in the log."""

    kind = Kind.BUG


def key_reused(key: str) -> Refused:
    """The idempotency key was used for another request before."""
    return Refused(
        "IDEMPOTENCY_KEY_REUSED",
        f"the idempotency key {key!r} was used for a different request; use a new key for a new request",
    )


def undone_before_arrival() -> Refused:
    """The undo of this call came before the call itself, so the call must never take effect."""
    return Refused(
        "UNDONE_BEFORE_ARRIVAL", "this call was undone before it arrived; it had no effect and never will"
    )
