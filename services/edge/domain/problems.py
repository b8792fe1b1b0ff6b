"""The one table from our errors to HTTP.

Every refusal of the edge is a problem (RFC 9457) with a stable `code`. What a client may do follows from the status and
the code, never from a text:

400 401 403 404 405 413 422     it will not work like this, however often it is sent
408 409 429 503                 nothing was done, or not yet: send it again, with the same key, after Retry-After
500 504                         it may have been done: send it again with the same key, or look
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from services.kit.errors import Kind, PaymeshError

ORDER_PREFIX = "ord_"
"""Of the identifiers of orders that the orchestrator carries out."""
RETRY_AFTER_SECONDS = 1
"""For whoever is to come again when nobody has said when: Retry-After knows whole seconds only."""

TITLES = {
    400: "The request is malformed",
    401: "No valid API key",
    403: "The API key may not do this",
    404: "There is no such thing",
    405: "This cannot be done here",
    408: "The request did not arrive in time",
    409: "An earlier request has not ended",
    413: "The request is too large",
    422: "Refused",
    429: "Too many requests",
    500: "An internal error",
    503: "Not possible right now",
    504: "The outcome is not known",
}

_STATUSES = {
    Kind.INVALID: 400,
    Kind.REFUSED: 422,
    Kind.NOT_FOUND: 404,
    Kind.RETRYABLE: 503,
    Kind.IN_PROGRESS: 409,
    Kind.UNKNOWN: 504,
    Kind.BUG: 500,
}
_CODES = {
    Kind.INVALID: "invalid_request",
    Kind.NOT_FOUND: "not_found",
    Kind.RETRYABLE: "unavailable",
    Kind.IN_PROGRESS: "in_progress",
    Kind.UNKNOWN: "outcome_unknown",
    Kind.BUG: "internal",
}
"""By kind, where the reasons of services are more than a client can use. A refusal has its own reason as its code."""

_FIELDS = {
    "amount.amount_minor": "amount",
    "amount.currency": "currency",
    "order_reference": "reference",
    "idempotency_key": "Idempotency-Key",
    "page_token": "page",
    "page_size": "limit",
}
"""What a field of a contract is called over HTTP, where the two differ."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What a client is told when it does not get what it wanted."""

    status: int
    code: str
    detail: str
    errors: tuple[tuple[str, str], ...] = ()
    """(field, what would be right), for 400."""
    facts: Mapping[str, str] = field(default_factory=dict)
    retry_after_seconds: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def body(self) -> dict[str, object]:
        """The JSON object of RFC 9457."""
        body: dict[str, object] = {
            "type": f"urn:paymesh:problem:{self.code}",
            "title": TITLES[self.status],
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
        }
        if self.errors:
            body["errors"] = [{"field": name, "detail": detail} for name, detail in self.errors]
        if self.facts:
            body["facts"] = dict(self.facts)
        return body

    @property
    def all_headers(self) -> dict[str, str]:
        """Its headers, Retry-After among them."""
        if self.retry_after_seconds is None:
            return dict(self.headers)
        return {**self.headers, "Retry-After": str(self.retry_after_seconds)}


class Declined(Exception):
    """A request that the edge itself turns away."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.code)
        self.problem = problem


def problem_of(error: PaymeshError) -> Problem:
    """What an error is over HTTP."""
    retry_after = None
    if error.kind in {Kind.RETRYABLE, Kind.IN_PROGRESS, Kind.UNKNOWN}:
        retry_after = max(RETRY_AFTER_SECONDS, -(-(error.retry_after_ms or 0) // 1000))
    return Problem(
        _STATUSES[error.kind],
        _CODES.get(error.kind) or error.reason.lower(),
        error.message,
        tuple((_FIELDS.get(v.field, v.field), v.description) for v in error.violations),
        error.facts if error.kind in {Kind.REFUSED, Kind.IN_PROGRESS} else {},
        retry_after,
    )


def malformed(field_name: str, description: str, code: str = "invalid_request") -> Problem:
    """One field is wrong."""
    return Problem(400, code, f"{field_name}: {description}", ((field_name, description),))


def order_id_taken() -> Problem:
    """A payment of its own must not look like that of an order: nobody could tell what the order holds."""
    return malformed("order_id", f"may not begin with {ORDER_PREFIX}, as the orders do that are placed here")


def lines_and_amount(missing: str) -> Problem:
    """A part of an order comes back for an amount that the shop names, or all of it for all that is left."""
    text = "is required with lines" if missing == "amount" else "are required with an amount"
    return malformed(missing, f"{text}: an order does not know what one of its lines costs")


def key_missing() -> Problem:
    """A request that changes something came without a key."""
    return malformed(
        "Idempotency-Key",
        "is required: a value of your choice, the same for every repeat of this request",
        "idempotency_key_missing",
    )


def key_malformed() -> Problem:
    """What was sent as a key is none."""
    return malformed(
        "Idempotency-Key",
        "must be one value of 1 to 255 printable ASCII characters, quoted or bare",
        "idempotency_key_invalid",
    )


def unauthenticated(detail: str) -> Problem:
    """Nobody knows who is asking."""
    challenge = {"WWW-Authenticate": 'Bearer realm="paymesh"'}
    return Problem(401, "unauthenticated", detail, headers=challenge)


def read_only() -> Problem:
    """The key looks and does not touch."""
    return Problem(403, "key_is_read_only", "this API key may read and change nothing")


def rate_limited(retry_after_seconds: int) -> Problem:
    """The key has used up what it may."""
    return Problem(
        429,
        "rate_limited",
        "this API key has sent too many requests",
        retry_after_seconds=retry_after_seconds,
    )


def too_large(bytes_max: int) -> Problem:
    """The body is larger than any request has to be."""
    return Problem(413, "body_too_large", f"the body may have {bytes_max:,} bytes at most")


def too_slow(seconds: float) -> Problem:
    """The body did not come."""
    return Problem(
        408,
        "request_timeout",
        f"the body did not arrive within {seconds:g} s",
        retry_after_seconds=RETRY_AFTER_SECONDS,
    )


def overloaded() -> Problem:
    """More requests are in progress than this process takes."""
    return Problem(
        503, "unavailable", "too many requests are in progress", retry_after_seconds=RETRY_AFTER_SECONDS
    )


def no_such_path() -> Problem:
    """Nothing is served there."""
    return Problem(404, "not_found", "nothing is served at this path")


def no_such_method(allowed: str) -> Problem:
    """Something is served there, but not by this method."""
    return Problem(405, "method_not_allowed", f"allowed here: {allowed}", headers={"Allow": allowed})


def internal() -> Problem:
    """A defect; nothing of it is shown."""
    return Problem(500, "internal", "an internal error; the details are in the service's log")
