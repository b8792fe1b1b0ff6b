"""What goes over the wire as JSON about webhooks; see `bodies`."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StrictInt

from services.edge.domain.addresses import URL_LENGTH_MAX
from services.edge.domain.webhooks import EVENTS_PER_ENDPOINT_MAX
from services.edge.service.bodies import TEXT_LENGTH_MAX, Order, Payment, RequestBody, Saga, Total

WebhookUrl = Annotated[
    str,
    Field(
        min_length=1,
        max_length=URL_LENGTH_MAX,
        description="An https:// URL at a public address.",
        examples=["https://shop.example/paymesh"],
    ),
]
EndpointStatus = Literal["enabled", "disabled", "deleted"]
DeliveryStatus = Literal["pending", "delivered", "given_up"]
EventType = Literal[
    "order.cancelled", "order.compensated", "order.dispatch_refused", "order.dispatched", "order.parked",
    "order.placed", "order.return_refused", "order.returned", "payment.authorized", "payment.captured",
    "payment.declined", "payment.expired", "payment.incremented", "payment.refunded", "payment.settled",
    "payment.voided",
]  # fmt: skip
EventFilter = Literal[
    "order.*", "payment.*",
    "order.cancelled", "order.compensated", "order.dispatch_refused", "order.dispatched", "order.parked",
    "order.placed", "order.return_refused", "order.returned", "payment.authorized", "payment.captured",
    "payment.declined", "payment.expired", "payment.incremented", "payment.refunded", "payment.settled",
    "payment.voided",
]  # fmt: skip


class WebhookEndpointRequest(RequestBody):
    """Where to tell what."""

    url: WebhookUrl
    events: list[EventFilter] = Field(
        default=[], max_length=EVENTS_PER_ENDPOINT_MAX, description="What to tell; without any: everything."
    )
    description: str = Field(default="", max_length=TEXT_LENGTH_MAX, description="For yourself.")


class RotateSecretRequest(RequestBody):
    """Sign with a new secret."""

    overlap_seconds: StrictInt = Field(
        default=86_400, ge=0, le=2_592_000, description="So long the secret before signs beside the new one."
    )


class NothingToSay(RequestBody):
    """An object without fields."""


class WebhookEndpoint(BaseModel):
    """Where a merchant is told of what happens."""

    id: str = Field(examples=["whe_019ab2c4f3d07c61b6a3f2f1d9a4e5b7"])
    url: str
    events: list[str] = Field(description="Empty: everything.")
    description: str
    status: EndpointStatus
    reason: str | None = Field(description="Why it is disabled.")
    failing_since: datetime | None = Field(
        description="End of the first failed attempt after which none has succeeded."
    )
    disabled_at: datetime | None
    created_at: datetime


class NewWebhookEndpoint(WebhookEndpoint):
    """An endpoint with a secret that was just made."""

    secret: str | None = Field(
        description="What messages are signed with: `whsec_…`. Shown in this answer and its replays only; null in a "
        "replay that comes after the secret has ended."
    )


class WebhookEndpointPage(BaseModel):
    """Endpoints, oldest first."""

    data: list[WebhookEndpoint]
    next_page: str | None = Field(
        description="Send it as `page` for what comes after; null on the last page."
    )


class Resent(BaseModel):
    """What is sent again."""

    count: int


class WebhookDelivery(BaseModel):
    """The task of bringing one message to one endpoint."""

    id: str = Field(examples=["whd_019ab2c4f3d07c61b6a3f2f1d9a4e5b7"])
    endpoint_id: str
    message_id: str = Field(description="The `id` of the message, the same at every attempt.")
    type: str = Field(examples=["payment.captured"])
    status: DeliveryStatus
    reason: Literal["retries_exhausted", "endpoint_disabled", "endpoint_deleted"] | None = Field(
        description="Why it was given up."
    )
    attempts: int
    next_attempt_at: datetime | None
    created_at: datetime
    ended_at: datetime | None


class WebhookAttempt(BaseModel):
    """One request of a delivery."""

    number: int
    outcome: (
        Literal[
            "delivered", "status", "redirect", "timeout", "address_not_allowed", "name_not_found", "connection",
            "interrupted",
        ]
        | None
    ) = Field(description="Null while it is under way.")  # fmt: skip
    http_status: int | None
    detail: str | None = Field(description="The beginning of the answer, or what went wrong.")
    started_at: datetime
    duration_ms: int | None


class MessageChange(BaseModel):
    """What an event has changed, beyond what `data` shows."""

    amount: Total = Field(default=0, description="How much was captured, refunded, settled or held on top.")
    fee: Total = Field(default=0, description="What that capture costs.")
    saga: Saga | None = Field(default=None, description="What was begun with the order.")


class WebhookMessage(BaseModel):
    """What an endpoint is sent. Its signature is in the headers `webhook-id`, `webhook-timestamp` and
    `webhook-signature`."""

    id: str = Field(examples=["evt_5f0c9b7d2e4a418f8f6d3c1b2a09e8d7"], description="Know a repeat by it.")
    type: EventType
    version: int = Field(
        description="Of this form. Fields may be added without another, so pass over what you do not know."
    )
    timestamp: datetime = Field(description="When it happened.")
    data: Payment | Order = Field(
        description="The payment or the order, as it stood then, in the shape of GET."
    )
    change: MessageChange


class WebhookDeliveryStory(WebhookDelivery):
    """A delivery with its message and every attempt, oldest first."""

    message: dict[str, Any]
    attempt_history: list[WebhookAttempt]


class WebhookDeliveryPage(BaseModel):
    """Deliveries, newest first."""

    data: list[WebhookDelivery]
    next_page: str | None = Field(
        description="Send it as `page` for what comes after; null on the last page."
    )
