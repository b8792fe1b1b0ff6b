"""What merchants are told, and how long it is tried. Pure.

A *message* is one event as a merchant reads it; a *delivery* is the task of bringing one message to one endpoint; an
*attempt* is one request of a delivery. Deliveries of an endpoint are independent of each other: no order is promised.

    PENDING ──an attempt was answered with 2xx──► DELIVERED
       │  └──it failed: again after a while
       └──tried for three days, or the endpoint is disabled or gone──► GIVEN_UP ──sent again──► PENDING
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from services.kit.backoff import Backoff
from services.kit.errors import Invalid

SECRET_PREFIX = "whsec_"  # noqa: S105 - how every secret begins
SECRET_BYTES = 32
SECRETS_MAX = 2
"""Secrets of an endpoint that sign at a time: the current one and, after a rotation, the one before."""
EVENTS_PER_ENDPOINT_MAX = 50
ALL_OF = ".*"

EVENT_TYPES = (
    "order.cancelled", "order.compensated", "order.dispatch_refused", "order.dispatched", "order.parked",
    "order.placed", "order.return_refused", "order.returned", "payment.authorized", "payment.captured",
    "payment.declined", "payment.expired", "payment.incremented", "payment.refunded", "payment.settled",
    "payment.voided",
)  # fmt: skip
"""Everything that can be told."""
GROUPS = tuple(dict.fromkeys(name.partition(".")[0] + ALL_OF for name in EVENT_TYPES))

RETRY_SECONDS = 259_200.0
"""Three days: a shop that breaks down on a Friday evening is back before its messages are given up."""
RETRY_FIRST_MS = 5_000
RETRY_FACTOR = 4
RETRY_MAX_MS = 21_600_000
"""5 s, 20 s, 80 s, 5 min, 21 min, 85 min, 5.7 h, then every six hours, each less up to a half: about 20 attempts in
three days. What ends them is the time, not their number."""
DISABLE_SHARE = 5 / 6
"""An endpoint is disabled with the first message that is given up, if it has accepted nothing for so much of its time:
two and a half days. The rest is for the first attempt, which may have come to an end late."""
GONE = 410
"""By this answer a receiver asks to be told nothing any more."""


class EndpointState(StrEnum):
    """Whether an endpoint is told anything."""

    ENABLED = "ENABLED"
    DISABLED = "DISABLED"
    """It has failed for days, or said 410 Gone. Its merchant enables it again."""
    DELETED = "DELETED"


class DeliveryState(StrEnum):
    """Where a delivery stands."""

    PENDING = "PENDING"
    DELIVERED = "DELIVERED"
    GIVEN_UP = "GIVEN_UP"


class GivenUp(StrEnum):
    """Why a delivery was given up."""

    RETRIES_EXHAUSTED = "RETRIES_EXHAUSTED"
    ENDPOINT_DISABLED = "ENDPOINT_DISABLED"
    ENDPOINT_DELETED = "ENDPOINT_DELETED"


class Failure(StrEnum):
    """Why an attempt failed."""

    STATUS = "STATUS"
    """It was answered, but not with 2xx."""
    REDIRECT = "REDIRECT"
    """The answer leads elsewhere, and nobody follows: it might lead where nothing may be sent to."""
    TIMEOUT = "TIMEOUT"
    ADDRESS_NOT_ALLOWED = "ADDRESS_NOT_ALLOWED"
    NAME_NOT_FOUND = "NAME_NOT_FOUND"
    CONNECTION = "CONNECTION"
    """No connection, a broken one, a certificate that is not good, or an answer that is not HTTP."""
    INTERRUPTED = "INTERRUPTED"
    """Whoever attempted it died; nobody knows what the receiver has seen."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a merchant wants to be told."""

    merchant_id: str
    endpoint_id: str
    url: str
    events: tuple[str, ...]
    """Names, or "payment.*"; empty for everything."""
    description: str
    state: EndpointState
    reason: str
    """Why it is disabled, for a person; empty otherwise."""
    failing_since_ms: int | None
    """End of the first failed attempt after which none has succeeded."""
    created_at_ms: int
    disabled_at_ms: int | None


class Outcome(NamedTuple):
    """What an attempt came to."""

    failure: Failure | None
    """None when the message was delivered."""
    status: int | None
    """Of the answer, if there was one."""
    detail: str
    """The beginning of the answer, or what went wrong; for a person."""
    duration_ms: int
    retry_after_ms: int = 0
    """How long the receiver asks to be left alone."""

    @property
    def delivered(self) -> bool:
        """Whether the receiver has the message."""
        return self.failure is None


class Next(NamedTuple):
    """What becomes of a delivery after an attempt."""

    state: DeliveryState
    wait_ms: int = 0
    """Until the next attempt, while it is PENDING."""
    reason: GivenUp | None = None


def check_events(events: Sequence[str]) -> tuple[str, ...]:
    """A filter as a merchant has written it. Raises Invalid."""
    if len(events) > EVENTS_PER_ENDPOINT_MAX:
        raise Invalid.field("events", f"may have {EVENTS_PER_ENDPOINT_MAX} entries at most")
    for place, name in enumerate(events):
        if name not in EVENT_TYPES and name not in GROUPS:
            raise Invalid.field(f"events[{place}]", f"must be one of {', '.join((*GROUPS, *EVENT_TYPES))}")
    return tuple(sorted(set(events)))


def wants(events: Sequence[str], event_type: str) -> bool:
    """Whether a filter lets an event through."""
    group = event_type.partition(".")[0] + ALL_OF
    return not events or event_type in events or group in events


@dataclass(frozen=True, slots=True)
class Policy:
    """How long, and how often, a delivery is tried."""

    retry_seconds: float = RETRY_SECONDS
    first_ms: int = RETRY_FIRST_MS

    @property
    def backoff(self) -> Backoff:
        """The waits between attempts."""
        return Backoff(self.first_ms, RETRY_FACTOR, RETRY_MAX_MS, attempts_max=1_000_000)

    def after(
        self, outcome: Outcome, failures: int, at_ms: int, retry_until_ms: int, jitter: float | None = None
    ) -> Next:
        """What becomes of a delivery whose attempt has ended at `at_ms`. `failures` are those since it was begun or
        sent again, this one included. The last attempt is made at the end of its time, so that whoever comes back in
        the last hour is still told."""
        if outcome.delivered:
            return Next(DeliveryState.DELIVERED)
        if at_ms >= retry_until_ms:
            return Next(DeliveryState.GIVEN_UP, reason=GivenUp.RETRIES_EXHAUSTED)
        wait_ms = max(self.backoff.delay_ms(failures, jitter), min(outcome.retry_after_ms, RETRY_MAX_MS))
        return Next(DeliveryState.PENDING, min(wait_ms, retry_until_ms - at_ms))

    def why_disabled(
        self, outcome: Outcome, then: Next, failing_since_ms: int | None, at_ms: int
    ) -> str | None:
        """Why an endpoint is disabled after an attempt, if it is: it has asked for that, or it has accepted nothing for
        nearly as long as a message is tried."""
        if outcome.status == GONE:
            return "it answered 410 Gone"
        if then.reason is not GivenUp.RETRIES_EXHAUSTED or failing_since_ms is None:
            return None
        if at_ms - failing_since_ms >= DISABLE_SHARE * self.retry_seconds * 1000:
            return "it has accepted nothing for as long as a message is tried"
        return None


def new_secret() -> str:
    """A secret that nobody can guess, as the libraries of receivers take it."""
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def signatures(message_id: str, timestamp: int, body: bytes, keys: Iterable[str]) -> str:
    """The header `webhook-signature` (Standard Webhooks): one signature for each secret. `timestamp` in seconds since
    1970."""
    text = f"{message_id}.{timestamp}.".encode() + body
    signed = (hmac.new(_key_of(secret), text, hashlib.sha256).digest() for secret in keys)
    return " ".join(f"v1,{base64.b64encode(digest).decode()}" for digest in signed)


def _key_of(secret: str) -> bytes:
    return base64.b64decode(secret.removeprefix(SECRET_PREFIX))
