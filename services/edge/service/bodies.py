"""What goes over the wire as JSON. Amounts are whole numbers of a currency's minor units, 10000 USD is 100.00 USD;
unknown fields are refused, so that a typing mistake in an optional one does not go unnoticed."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, SecretStr, StrictBool, StrictInt, Tag

from services.kit.checks import EMAIL_LENGTH_MAX, ID_LENGTH_MAX
from services.kit.money import AMOUNT_MINOR_MAX

TOKEN_LENGTH_MAX = 128
NOTE_LENGTH_MAX = 200
TEXT_LENGTH_MAX = 200
LINES_MAX = 1_000
QUANTITY_MAX = 1_000_000
STREET_LINES_MAX = 10
POSTAL_CODE_LENGTH_MAX = 32

Amount = Annotated[
    StrictInt,
    Field(ge=1, le=AMOUNT_MINOR_MAX, description="In minor units of the currency.", examples=[10000]),
]
Total = Annotated[int, Field(description="In minor units of the currency.")]
Currency = Annotated[str, Field(pattern="^[A-Z]{3}$", description="ISO 4217 code.", examples=["USD"])]
Country = Annotated[str, Field(pattern="^[A-Z]{2}$", description="ISO 3166-1 alpha-2 code.", examples=["GB"])]
Note = Annotated[str, Field(max_length=NOTE_LENGTH_MAX, description="Why, for the audit trail.")]
Id = Annotated[str, Field(min_length=1, max_length=ID_LENGTH_MAX)]


class RequestBody(BaseModel):
    """What a client sends."""

    model_config = ConfigDict(extra="forbid")


class CardNumber(RequestBody):
    """A card by its number. The number is exchanged for a token and sealed on arrival; the code is used once and kept
    nowhere."""

    number: SecretStr = Field(
        min_length=12,
        max_length=19,
        description="12 to 19 digits.",
        json_schema_extra={"pattern": "^[0-9]+$", "examples": ["4242424242424242"]},
    )
    exp_month: StrictInt = Field(ge=1, le=12, examples=[12])
    exp_year: StrictInt = Field(ge=2000, le=2100, description="Four digits.", examples=[2031])
    cvc: SecretStr = Field(
        min_length=3,
        max_length=4,
        description="3 or 4 digits.",
        json_schema_extra={"pattern": "^[0-9]+$", "examples": ["123"]},
    )


class CardToken(RequestBody):
    """A card by a token: the processor's (`tok_…`), or one that an earlier answer has given for a number (`card_…`)."""

    token: str = Field(min_length=1, max_length=TOKEN_LENGTH_MAX, examples=["tok_visa"])
    bin: str = Field(
        default="",
        pattern="^([0-9]{6,8})?$",
        description="First six to eight digits of the card, for fraud rules. Of a `card_…` they are known.",
    )


def _which(card: Any) -> str:
    number = "number" in card if isinstance(card, dict) else isinstance(card, CardNumber)
    return BY_NUMBER if number else BY_TOKEN


BY_TOKEN, BY_NUMBER = "by token", "by number"
AnyCard = Annotated[
    Annotated[CardToken, Tag(BY_TOKEN)] | Annotated[CardNumber, Tag(BY_NUMBER)], Discriminator(_which)
]


class Customer(RequestBody):
    """Who pays, as far as the merchant knows."""

    id: str = Field(default="", max_length=ID_LENGTH_MAX)
    email: str = Field(default="", max_length=EMAIL_LENGTH_MAX)
    ip_address: str = Field(default="", max_length=45)
    billing_country: str = Field(default="", pattern="^([A-Z]{2})?$")


class PaymentRequest(RequestBody):
    """Hold an amount on a card."""

    amount: Amount
    currency: Currency
    card: AnyCard
    order_id: Id | None = Field(
        default=None,
        description="The merchant's order, which has at most one live payment. Without one, the payment is for an "
        "order of its own, named after the idempotency key.",
    )
    customer: Customer = Customer()


class CaptureRequest(RequestBody):
    """Take money that is held."""

    amount: Amount | None = Field(default=None, description="Without one: all that is held.")
    final: StrictBool = Field(default=False, description="The last capture: lets go of the rest.")
    note: Note = ""


class VoidRequest(RequestBody):
    """Let go of what is held."""

    note: Note = ""


class RefundRequest(RequestBody):
    """Give money back."""

    amount: Amount | None = Field(default=None, description="Without one: all that was captured and is left.")
    note: Note = ""


class IncrementRequest(RequestBody):
    """Hold more."""

    amount: Amount
    note: Note = ""


class OrderLine(RequestBody):
    """A product and how much of it."""

    sku: Id
    quantity: StrictInt = Field(ge=1, le=QUANTITY_MAX)


class Address(RequestBody):
    """Where the goods go."""

    name: str = Field(min_length=1, max_length=TEXT_LENGTH_MAX)
    street_lines: list[Annotated[str, Field(max_length=TEXT_LENGTH_MAX)]] = Field(
        default=[], max_length=STREET_LINES_MAX
    )
    city: str = Field(default="", max_length=TEXT_LENGTH_MAX)
    postal_code: str = Field(default="", max_length=POSTAL_CODE_LENGTH_MAX)
    country: Country


class OrderRequest(RequestBody):
    """Sell: reserve the stock, hold the money, book the delivery, or none of it."""

    reference: str = Field(
        default="", max_length=ID_LENGTH_MAX, description="The merchant's own name for the order; unique."
    )
    lines: list[OrderLine] = Field(min_length=1, max_length=LINES_MAX)
    amount: Amount
    currency: Currency
    card: AnyCard
    customer: Customer = Customer()
    shipping_address: Address


class DispatchRequest(RequestBody):
    """Send an order out of the door. There is nothing to say about it."""


class CancelRequest(RequestBody):
    """Undo an order that has not left."""

    note: Note = ""


class ReturnRequest(RequestBody):
    """Take back what has left: lines and what is refunded for them, or neither for all that is left."""

    lines: list[OrderLine] | None = Field(
        default=None,
        min_length=1,
        max_length=LINES_MAX,
        description="What comes back; the same `sku` may stand in several lines. Without any: all that is left.",
    )
    amount: Amount | None = Field(
        default=None,
        description="What is refunded, in the order's currency: required with `lines`, and only with them. An order "
        "does not know what one of its lines costs.",
    )
    note: Note = ""


PaymentStatus = Literal[
    "authorizing", "authorized", "declined", "rejected", "failed", "voiding", "voided", "incrementing", "capturing",
    "partially_captured", "captured", "settled", "refunding", "partially_refunded", "refunded", "expired",
]  # fmt: skip
UnknownOutcome = Literal["authorization", "void", "increment", "capture", "refund"]


class Payment(BaseModel):
    """A payment as it stands. A declined card is no error: read `status`."""

    id: str = Field(examples=["pay_019ab2c4f3d07c61b6a3f2f1d9a4e5b7"])
    status: PaymentStatus
    amount: Total = Field(description="What was asked for at first.")
    currency: str
    auth_code: str | None
    authorized_amount: Total = Field(description="What the card's bank has approved, increments included.")
    held_amount: Total = Field(description="What it holds now.")
    captured_amount: Total
    refunded_amount: Total
    settled_amount: Total = Field(description="What has been paid out by the processor.")
    fee_amount: Total
    pending_amount: Total = Field(description="What is under way: an increment, a capture or a refund.")
    unknown_outcome: UnknownOutcome | None = Field(
        description="Which operation's outcome is not known yet; it is found out without your doing."
    )
    order_id: str
    processor_reference: str | None
    decline_reason: str | None = Field(description="For example INSUFFICIENT_FUNDS.")
    fraud_score: int = Field(description="In thousandths.")
    created_at: datetime
    expires_at: datetime | None
    version: int = Field(description="Number of events so far.")


class ShownCard(BaseModel):
    """What is kept of a card that was sent by its number, and may be shown."""

    token: str = Field(description="May be sent as `card.token` from now on.")
    brand: str
    bin: str
    last4: str
    exp_month: int
    exp_year: int
    fingerprint: str = Field(description="The same for the same number, within one merchant.")


class NewPayment(Payment):
    """A payment, and its card if it was sent by number, now or before."""

    card: ShownCard | None


class PaymentEvent(BaseModel):
    """One thing that happened to a payment."""

    version: int
    type: str = Field(examples=["PaymentAuthorized"])
    at: datetime
    data: dict[str, Any]


class PaymentStory(NewPayment):
    """A payment with all its events, oldest first."""

    events: list[PaymentEvent]


class PaymentPage(BaseModel):
    """Payments, newest first."""

    data: list[Payment]
    next_page: str | None = Field(
        description="Send it as `page` for what comes after; null on the last page."
    )


OrderStatus = Literal[
    "running", "completed", "compensating", "compensated", "parked", "dispatching", "dispatched", "cancelling",
    "cancelled", "partially_returned", "returned",
]  # fmt: skip
SagaStatus = Literal["running", "completed", "compensating", "compensated", "parked"]


class Reason(BaseModel):
    """Why something was undone, or waits for a person."""

    step: str
    code: str = Field(examples=["OUT_OF_STOCK"])
    message: str


class SoldLine(BaseModel):
    """A product and how much of it."""

    sku: str
    quantity: int


class Order(BaseModel):
    """An order as it stands. One that could not be carried out is no error: `compensated` means that all of it was
    undone, and `reason` says why. `completed` means that it is placed: its stock is reserved, its money is held and its
    shipment is booked."""

    id: str = Field(examples=["ord_019ab2c4f3d07c61b6a3f2f1d9a4e5b7"])
    status: OrderStatus
    reference: str | None
    reason: Reason | None
    amount: Total
    currency: str
    lines: list[SoldLine]
    returned_lines: list[SoldLine] = Field(description="What came back so far.")
    returned_amount: Total = Field(description="What was refunded for that, in minor units.")
    saga_id: str
    reservation_id: str | None
    payment_id: str | None
    shipment_id: str | None
    created_at: datetime
    ended_at: datetime | None


class Attempt(BaseModel):
    """One attempt at a step."""

    step: str
    direction: Literal["do", "undo"]
    attempt: int
    outcome: Literal["done", "refused", "retryable", "unknown"]
    reason: str | None
    started_at: datetime
    ended_at: datetime


class Saga(BaseModel):
    """One thing that was begun with an order: that it is placed, dispatched, cancelled or returned."""

    id: str = Field(examples=["saga_019ab2c4f3d07c61b6a3f2f1d9a4e5b7"])
    kind: Literal["place", "dispatch", "cancel", "return"]
    status: SagaStatus = Field(
        description="`completed`: it was done. `compensated`: nothing has happened, and `reason` says why. `parked`: "
        "it waits for a person at paymesh."
    )
    reason: Reason | None
    created_at: datetime
    ended_at: datetime | None


class ChangedOrder(Order):
    """An order as it stood after something was done with it, or could not be: read `saga.status`."""

    saga: Saga


class SagaStory(Saga):
    """A saga with every attempt at its steps, oldest first."""

    history: list[Attempt]


class OrderStory(Order):
    """An order with everything that was begun with it, oldest first, and its payment."""

    history: list[Attempt] = Field(description="Every attempt at the steps that place it, oldest first.")
    sagas: list[SagaStory]
    payment: Payment | None = Field(description="Null when there is none, and while it cannot be told.")


class OrderPage(BaseModel):
    """Orders, newest first."""

    data: list[Order]
    next_page: str | None = Field(
        description="Send it as `page` for what comes after; null on the last page."
    )


class FieldError(BaseModel):
    """One field at fault."""

    field: str
    detail: str


class ProblemBody(BaseModel):
    """What went wrong (RFC 9457)."""

    type: str = Field(examples=["urn:paymesh:problem:not_found"])
    title: str
    status: int
    detail: str
    code: str = Field(description="Stable; decide by this, or by the status.", examples=["not_found"])
    errors: list[FieldError] | None = None
    facts: dict[str, str] | None = None
