"""The errors of every operation, as the OpenAPI document states them."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from services.edge.domain.problems import TITLES
from services.edge.service.bodies import ProblemBody
from services.edge.service.gate import PROBLEM_TYPE

_RETRY_AFTER = {"schema": {"type": "integer", "minimum": 1}, "description": "Seconds.", "required": True}

READS = ("400 invalid_request", "401 unauthenticated", "429 rate_limited", "500 internal", "503 unavailable")
CHANGES = (
    "400 invalid_request",
    "400 idempotency_key_missing",
    "400 idempotency_key_invalid",
    "401 unauthenticated",
    "403 key_is_read_only",
    "408 request_timeout",
    "409 in_progress",
    "413 body_too_large",
    "422 idempotency_key_reused",
    "429 rate_limited",
    "500 internal",
    "503 unavailable",
    "504 outcome_unknown",
)
REMOVES = (
    "400 invalid_request",
    "401 unauthenticated",
    "403 key_is_read_only",
    "408 request_timeout",
    "413 body_too_large",
    "429 rate_limited",
    "500 internal",
    "503 unavailable",
    "504 outcome_unknown",
)
"""Of what may be repeated without a key: gone is gone."""
NOT_FOUND = "404 not_found"

AUTHORIZE = ("422 order_already_paid",)
CAPTURE = (
    NOT_FOUND,
    "422 payment_of_an_order",
    "422 nothing_to_capture",
    "422 capture_exceeds_hold",
    "422 authorization_expired",
    "422 capture_refused",
    "422 too_many_events",
)
VOID = (NOT_FOUND, "422 payment_captured", "422 payment_of_an_order", "422 void_refused")
REFUND = (
    NOT_FOUND,
    "422 payment_of_an_order",
    "422 nothing_to_refund",
    "422 refund_exceeds_captured",
    "422 refund_refused",
    "422 too_many_events",
)
INCREMENT = (
    NOT_FOUND,
    "422 payment_of_an_order",
    "422 not_authorized",
    "422 increment_declined",
    "422 increment_too_large",
    "422 authorization_expired",
    "422 too_many_events",
)
PLACE = ("422 order_reference_exists",)
DISPATCH = (
    NOT_FOUND,
    "422 order_dispatched",
    "422 order_cancelled",
    "422 order_not_placed",
    "422 order_parked",
)
CANCEL = DISPATCH
RETURN = (
    NOT_FOUND,
    "422 order_not_dispatched",
    "422 order_cancelled",
    "422 order_returned",
    "422 return_exceeds_sold",
    "422 return_exceeds_charged",
    "422 order_not_placed",
    "422 order_parked",
)
CREATE_ENDPOINT = ("422 too_many_webhook_endpoints",)
RESEND = ("422 webhook_endpoint_not_enabled",)

_HINTS = {
    "in_progress": "ask again with the same key",
    "order_not_placed": "its placing was undone, or waits for a person",
    "order_parked": "what was begun with it before waits for a person",
    "payment_of_an_order": "dispatch, cancel or return the order instead",
    "idempotency_key_reused": "the key was used for another request",
    "outcome_unknown": "it may have been done: send it again with the same key",
    "unavailable": "nothing was done, or nothing can be read now",
}


def responses(*errors: str) -> dict[int | str, dict[str, Any]]:
    """The `responses` of an operation: every status with its codes."""
    codes: dict[int, list[str]] = defaultdict(list)
    for error in errors:
        status, _, code = error.partition(" ")
        codes[int(status)].append(code)
    return {status: _response(status, codes[status]) for status in sorted(codes)}


def replay_header() -> dict[str, Any]:
    """The header of an answer that was given before."""
    return {
        "Idempotent-Replayed": {
            "schema": {"type": "string", "enum": ["true"]},
            "description": "The answer is that of an earlier request with this key.",
        }
    }


def _response(status: int, codes: list[str]) -> dict[str, Any]:
    lines = [f"`{code}`" + (f": {_HINTS[code]}" if code in _HINTS else "") for code in codes]
    headers: dict[str, Any] = {}
    if status in {408, 409, 429, 503, 504}:
        headers["Retry-After"] = _RETRY_AFTER
    if status == 401:
        headers["WWW-Authenticate"] = {"schema": {"type": "string"}, "required": True}
    if status == 422:
        headers |= replay_header()
    schema = {"$ref": f"#/components/schemas/{ProblemBody.__name__}"}
    return {
        "description": f"{TITLES[status]}: {', '.join(lines)}",
        "headers": headers,
        "content": {PROBLEM_TYPE: {"schema": schema}},
    }
