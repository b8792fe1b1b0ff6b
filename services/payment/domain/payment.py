"""A payment: where it stands, and what was held, taken and given back."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from services.kit.money import Money

PaymentKey = tuple[str, str]
"""(merchant, payment id)."""


FIRST_PROCESSOR = "bank"
"""Where payments were begun before there was a choice: their events do not tell."""


class State(StrEnum):
    """Where a payment stands."""

    AUTHORIZING = "AUTHORIZING"
    AUTHORIZED = "AUTHORIZED"
    DECLINED = "DECLINED"
    REJECTED = "REJECTED"
    FAILED = "FAILED"
    VOIDING = "VOIDING"
    VOIDED = "VOIDED"
    INCREMENTING = "INCREMENTING"
    CAPTURING = "CAPTURING"
    PARTIALLY_CAPTURED = "PARTIALLY_CAPTURED"
    CAPTURED = "CAPTURED"
    SETTLED = "SETTLED"
    REFUNDING = "REFUNDING"
    PARTIALLY_REFUNDED = "PARTIALLY_REFUNDED"
    REFUNDED = "REFUNDED"
    EXPIRED = "EXPIRED"


class UnknownOutcome(StrEnum):
    """The operation whose outcome at the processor is not known."""

    NONE = ""
    AUTHORIZATION = "AUTHORIZATION"
    VOID = "VOID"
    INCREMENT = "INCREMENT"
    CAPTURE = "CAPTURE"
    REFUND = "REFUND"


WAITING = {
    State.AUTHORIZING: UnknownOutcome.AUTHORIZATION,
    State.VOIDING: UnknownOutcome.VOID,
    State.INCREMENTING: UnknownOutcome.INCREMENT,
    State.CAPTURING: UnknownOutcome.CAPTURE,
    State.REFUNDING: UnknownOutcome.REFUND,
}
"""The states that wait for the processor, and what is not known should its answer be lost."""

NEVER_APPROVED = frozenset({State.AUTHORIZING, State.DECLINED, State.REJECTED, State.FAILED})
_MAY_HOLD = frozenset(
    {
        State.AUTHORIZED,
        State.INCREMENTING,
        State.CAPTURING,
        State.PARTIALLY_CAPTURED,
        State.REFUNDING,
        State.VOIDING,
    }
)


class Authorize(NamedTuple):
    """A wish to hold money on a card."""

    merchant_id: str
    order_id: str
    amount: Money
    card_token: str
    card_bin: str
    customer_id: str
    email: str
    ip_address: str
    billing_country: str


class Payment(NamedTuple):
    """A payment as its events add up to it. Amounts in minor units are of the currency of `amount`."""

    merchant_id: str
    payment_id: str
    order_id: str
    amount: Money
    """What was asked for at first."""
    state: State
    version: int
    created_at_ms: int
    unknown_outcome: UnknownOutcome = UnknownOutcome.NONE
    auth_code: str = ""
    processor_reference: str = ""
    decline_reason: str = ""
    fraud_score_milli: int = 0
    incremented_minor: int = 0
    """What was authorized on top of `amount`."""
    captured_minor: int = 0
    refunded_minor: int = 0
    settled_minor: int = 0
    """What the processor has paid out, less what it took off for refunds."""
    fee_minor: int = 0
    """What the merchant was charged for the captures."""
    rest_released: bool = False
    """Whether what was not captured has been let go. Only told of payments with captures: without any, the state
    does."""
    pending_minor: int = 0
    """Amount of the increment, capture or refund under way."""
    pending_fee_minor: int = 0
    """What the merchant will be charged for the capture under way."""
    pending_final: bool = False
    """Whether the capture under way lets go of what it leaves."""
    expiring: bool = False
    """Whether the void under way is that of an authorization that has come to its end."""
    expires_at_ms: int = 0
    """When the authorization ends; 0 without one, or when it is from before there was an expiry."""
    processor: str = FIRST_PROCESSOR
    """Where it was begun, and where its money is asked for ever after."""
    event_hash: bytes = b""
    """Where its chain of events ended when it was locked: what its next event is chained to. Only known under the
    lock."""

    @property
    def key(self) -> PaymentKey:
        """What it is stored under."""
        return (self.merchant_id, self.payment_id)

    @property
    def authorized_minor(self) -> int:
        """What the card's bank has approved, increments included."""
        return 0 if self.state in NEVER_APPROVED else self.amount.amount_minor + self.incremented_minor

    @property
    def uncaptured_minor(self) -> int:
        """What of the authorization was neither captured nor let go, in a state that may hold something."""
        return (
            0
            if self.rest_released
            else self.amount.amount_minor + self.incremented_minor - self.captured_minor
        )

    @property
    def held_minor(self) -> int:
        """What the card's bank holds for us, as far as is known."""
        return self.uncaptured_minor if self.state in _MAY_HOLD else 0

    @property
    def held(self) -> Money:
        """`held_minor`, as money."""
        return Money(self.held_minor, self.amount.currency)

    @property
    def refundable_minor(self) -> int:
        """What was captured and not given back."""
        return self.captured_minor - self.refunded_minor

    @property
    def found_late(self) -> bool:
        """Whether its hold was found after it had failed: only then it has both a hold and a reason for failing."""
        return self.state is State.VOIDING and self.decline_reason != ""

    def at_rest(self) -> Payment:
        """The payment where its amounts say that it stands once nothing is under way: for one that was approved, and
        holds or has taken something."""
        return self._replace(
            state=self._resting_state(),
            unknown_outcome=UnknownOutcome.NONE,
            pending_minor=0,
            pending_fee_minor=0,
            pending_final=False,
            expiring=False,
        )

    def _resting_state(self) -> State:
        if not self.captured_minor:
            return State.AUTHORIZED
        if self.uncaptured_minor:
            return State.PARTIALLY_CAPTURED
        if self.refunded_minor:
            everything = self.refunded_minor == self.captured_minor
            return State.REFUNDED if everything else State.PARTIALLY_REFUNDED
        return State.SETTLED if self.settled_minor == self.captured_minor else State.CAPTURED
