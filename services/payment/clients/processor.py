"""What payment needs of a processor, and the keys that it sends operations under.

A processor takes sets and answers one by one, in order. An answer is one of three things: yes (`Approved`, `Gone`,
`Done`), no (`Declined`, `RefusedByProcessor`), or unknown (`Lost`), and it never comes as an exception: a lost answer
is a fact to be recorded. A no is final: whoever says it has moved nothing and never will, under this key. When in
doubt, say `Lost`: the resolver asks again.

To add a processor: one file here with a class like this and a function that opens it (`Opener`), and one line in
`PROCESSORS`. Whoever answers one operation at a time, as most do over HTTP, starts from `OneByOne`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeAlias

from opentelemetry.trace import Span

from services.kit.deadline import Deadline
from services.payment.clients.fraud import Asked
from services.payment.config import PaymentConfig
from services.payment.domain import (
    Absent,
    Authorization,
    Letting,
    Movement,
    Payment,
    State,
    intent_number,
)


class Processor(Protocol):
    """Holds, takes and gives back money. Every call may be repeated: what it does has one effect for its key."""

    async def authorize(self, asked: Sequence[Asked], deadline: Deadline) -> list[Authorization]:
        """Hold the amounts, under `authorize_key`."""

    async def void(self, asked: Sequence[tuple[Payment, Span | None]], deadline: Deadline) -> list[Letting]:
        """Let go of holds, or of what is left of them, under `void_key`."""

    async def move(
        self, state: State, asked: Sequence[tuple[Payment, Span | None]], deadline: Deadline
    ) -> list[Movement]:
        """Carry out what payments in `state` (INCREMENTING, CAPTURING, REFUNDING) wait for, under `movement_key`."""

    async def look_up(self, asked: Sequence[Asked], deadline: Deadline) -> list[Authorization | Absent]:
        """What became of authorizations; changes nothing. `Absent` permits to send it again under the same key, and
        says no more than that: whoever cannot look says so only as long as the key remembers what it did."""

    async def look_up_movements(
        self, payments: Sequence[Payment], deadline: Deadline
    ) -> list[Movement | Absent]:
        """What became of the increments, captures and refunds that payments wait for; changes nothing."""

    async def cancel(self, asked: Sequence[Asked], deadline: Deadline) -> list[Authorization]:
        """See to it that the authorizations under the payments' keys hold nothing, now or ever: `Gone` or `Declined`
        promise that a call which is still on its way will be refused, or find the key taken."""

    async def close(self) -> None:
        """Let go of connections."""


Opener: TypeAlias = Callable[[PaymentConfig], Awaitable[Processor]]
"""Opens a processor, whose own settings it reads from the environment. Raises NotSetUp, or CannotRun when the
settings are there and cannot be right."""


class NotSetUp(Exception):
    """A processor was given no settings: the text names the variables that it needs."""


class CannotRun(Exception):
    """A processor does not accept its settings: the text says what to do, and holds no secret."""


_MOVEMENTS = {State.INCREMENTING: "increment", State.CAPTURING: "capture", State.REFUNDING: "refund"}


def authorize_key(payment: Payment) -> str:
    """Of the one authorization that a payment ever has."""
    return f"{payment.payment_id}/authorize"


def void_key(payment: Payment) -> str:
    """Of the void under way: a second one, after one that was refused, has another."""
    return f"{payment.payment_id}/void/{intent_number(payment)}"


def movement_key(payment: Payment) -> str:
    """Of the increment, capture or refund under way."""
    return f"{payment.payment_id}/{_MOVEMENTS[payment.state]}/{intent_number(payment)}"
