"""For processors that carry out one operation at a time: sets of calls, with a limit to how many are under way at once,
a deadline for each, and a breaker that leaves a processor alone which does not answer."""

from __future__ import annotations

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from opentelemetry.trace import Span, SpanKind
from prometheus_client import Counter

from services.kit import telemetry
from services.kit.breaker import Breaker
from services.kit.deadline import Deadline
from services.payment.clients.fraud import Asked
from services.payment.domain import Absent, Authorization, Letting, Lost, Movement, Payment, State

R = TypeVar("R")

log = logging.getLogger(__name__)

LOST = Counter(
    "paymesh_payment_processor_lost_total",
    "Calls to a processor that is called one by one whose outcome nobody knows, by the reason.",
    ("processor", "reason"),
)


class Unanswered(Exception):
    """A call whose outcome is unknown. `alive` says whether the processor answered at all."""

    def __init__(self, reason: str, *, alive: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.alive = alive


@dataclass(frozen=True, kw_only=True)
class CallLimits:
    """What calls to a processor are bounded by."""

    seconds: float
    """The longest call, its wait for a turn included."""
    calls_max: int
    """Calls under way at once."""
    failures_max: int
    """Calls in a row without any answer after which the processor is left alone."""
    probe_seconds: float
    """While it is left alone, one call per this time is made nevertheless."""


class OneByOne(ABC):
    """A `Processor` made of operations on one payment, which raise Unanswered where the outcome is unknown."""

    def __init__(self, name: str, limits: CallLimits) -> None:
        self._name = name
        self._seconds = limits.seconds
        self._turns = asyncio.Semaphore(limits.calls_max)
        self._breaker = Breaker(failures_max=limits.failures_max, probe_seconds=limits.probe_seconds)

    @abstractmethod
    async def authorize_one(self, asked: Asked) -> Authorization:
        """See `Processor.authorize`."""

    @abstractmethod
    async def void_one(self, payment: Payment) -> Letting:
        """See `Processor.void`."""

    @abstractmethod
    async def move_one(self, payment: Payment) -> Movement:
        """See `Processor.move`."""

    @abstractmethod
    async def look_up_one(self, asked: Asked) -> Authorization | Absent:
        """See `Processor.look_up`."""

    @abstractmethod
    async def look_up_movement_one(self, payment: Payment) -> Movement | Absent:
        """See `Processor.look_up_movements`."""

    @abstractmethod
    async def cancel_one(self, asked: Asked) -> Authorization:
        """See `Processor.cancel`."""

    @abstractmethod
    async def close(self) -> None:
        """Let go of connections."""

    async def authorize(self, asked: Sequence[Asked], deadline: Deadline) -> list[Authorization]:
        questions = [(a.span, partial(self.authorize_one, a)) for a in asked]
        return await self._ask_all("authorize", questions, deadline)

    async def void(self, asked: Sequence[tuple[Payment, Span | None]], deadline: Deadline) -> list[Letting]:
        questions = [(span, partial(self.void_one, payment)) for payment, span in asked]
        return await self._ask_all("void", questions, deadline)

    async def move(
        self, state: State, asked: Sequence[tuple[Payment, Span | None]], deadline: Deadline
    ) -> list[Movement]:
        questions = [(span, partial(self.move_one, payment)) for payment, span in asked]
        return await self._ask_all(state.value.lower(), questions, deadline)

    async def look_up(self, asked: Sequence[Asked], deadline: Deadline) -> list[Authorization | Absent]:
        questions = [(a.span, partial(self.look_up_one, a)) for a in asked]
        return await self._ask_all("look up", questions, deadline)

    async def look_up_movements(
        self, payments: Sequence[Payment], deadline: Deadline
    ) -> list[Movement | Absent]:
        questions = [(None, partial(self.look_up_movement_one, payment)) for payment in payments]
        return await self._ask_all("look up", questions, deadline)

    async def cancel(self, asked: Sequence[Asked], deadline: Deadline) -> list[Authorization]:
        questions = [(a.span, partial(self.cancel_one, a)) for a in asked]
        return await self._ask_all("cancel", questions, deadline)

    async def _ask_all(
        self,
        what: str,
        questions: Sequence[tuple[Span | None, Callable[[], Awaitable[R]]]],
        deadline: Deadline,
    ) -> list[R | Lost]:
        until = deadline.clamp(self._seconds)
        return list(
            await asyncio.gather(*(self._ask(what, span, question, until) for span, question in questions))
        )

    async def _ask(
        self, what: str, parent: Span | None, question: Callable[[], Awaitable[R]], until: Deadline
    ) -> R | Lost:
        """The answer to one question, whatever it comes to. A defect of ours in reading it leaves its neighbours alone,
        and the outcome unknown."""
        name = f"{self._name} {what}"
        span = telemetry.start_child(parent, name, {"paymesh.processor": self._name}, kind=SpanKind.CLIENT)
        reason = ""
        try:
            async with asyncio.timeout(until.remaining()), self._turns:
                return await self._admitted(question)
        except TimeoutError:
            reason = "DEADLINE_EXCEEDED"
        except Unanswered as unanswered:
            reason = unanswered.reason
        except Exception:
            log.exception("%s: an answer could not be read", name)
            reason = "UNREADABLE_ANSWER"
        finally:
            telemetry.end(span, reason, failed=bool(reason))
        LOST.labels(self._name, reason).inc()
        return Lost(reason)

    async def _admitted(self, question: Callable[[], Awaitable[R]]) -> R:
        if not self._breaker.admits(time.monotonic()):
            raise Unanswered("LEFT_ALONE")
        try:
            answer = await question()
        except BaseException as error:
            # A call that is cancelled has run out of time.
            if isinstance(error, asyncio.CancelledError) or (
                isinstance(error, Unanswered) and not error.alive
            ):
                self._breaker.failed(time.monotonic())
            else:
                self._breaker.succeeded()
            raise
        self._breaker.succeeded()
        return answer
