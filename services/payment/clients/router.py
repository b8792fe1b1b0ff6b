"""Sends every payment to the processor that it was begun at.

New payments go to the one that was chosen; those from before the choice changed stay where their holds are, as long as
that processor is set up as well.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from opentelemetry.trace import Span

from services.kit.deadline import Deadline
from services.payment.clients.fraud import Asked
from services.payment.clients.processor import CannotRun, NotSetUp, Opener, Processor
from services.payment.config import PaymentConfig
from services.payment.domain import Absent, Authorization, Letting, Lost, Movement, Payment, State

A = TypeVar("A")
R = TypeVar("R")

log = logging.getLogger(__name__)

NOT_SET_UP = Lost("PROCESSOR_NOT_SET_UP")
"""The answer of a processor that payments were begun at and that is not set up any more."""


class Processors:
    """All that are set up, as one `Processor`."""

    def __init__(self, chosen: str, opened: Mapping[str, Processor]) -> None:
        self.chosen = chosen
        self._opened = opened

    async def authorize(self, asked: Sequence[Asked], deadline: Deadline) -> list[Authorization]:
        return await _each(self._opened, asked, _of_asked, lambda p, some: p.authorize(some, deadline))

    async def void(self, asked: Sequence[tuple[Payment, Span | None]], deadline: Deadline) -> list[Letting]:
        return await _each(self._opened, asked, _of_pair, lambda p, some: p.void(some, deadline))

    async def move(
        self, state: State, asked: Sequence[tuple[Payment, Span | None]], deadline: Deadline
    ) -> list[Movement]:
        return await _each(self._opened, asked, _of_pair, lambda p, some: p.move(state, some, deadline))

    async def look_up(self, asked: Sequence[Asked], deadline: Deadline) -> list[Authorization | Absent]:
        return await _each(self._opened, asked, _of_asked, lambda p, some: p.look_up(some, deadline))

    async def look_up_movements(
        self, payments: Sequence[Payment], deadline: Deadline
    ) -> list[Movement | Absent]:
        return await _each(
            self._opened, payments, _of_payment, lambda p, some: p.look_up_movements(some, deadline)
        )

    async def cancel(self, asked: Sequence[Asked], deadline: Deadline) -> list[Authorization]:
        return await _each(self._opened, asked, _of_asked, lambda p, some: p.cancel(some, deadline))

    async def close(self) -> None:
        for processor in self._opened.values():
            await processor.close()


async def open_processors(config: PaymentConfig, known: Mapping[str, Opener]) -> Processors:
    """Open all of `known` that are set up. Raises CannotRun when the chosen one is none of them."""
    chosen = config.processor
    if chosen not in known:
        raise CannotRun(f"PAYMESH_PAYMENT_PROCESSOR is {chosen!r}, which is none of {', '.join(known)}")
    opened: dict[str, Processor] = {}
    for name, open_ in known.items():
        try:
            opened[name] = await open_(config)
        except NotSetUp as missing:
            if name == chosen:
                raise CannotRun(f"the processor {name!r} is chosen and not set up: {missing}") from missing
    return Processors(chosen, opened)


async def _each(
    opened: Mapping[str, Processor],
    items: Sequence[A],
    name_of: Callable[[A], str],
    ask: Callable[[Processor, Sequence[A]], Awaitable[Sequence[R]]],
) -> list[R]:
    """Every item to its processor, all processors at once; answers in the order of the items."""
    names = [name_of(item) for item in items]
    different = set(names)
    answers: dict[str, Any] = {}

    async def ask_one(name: str, some: Sequence[A]) -> None:
        if (processor := opened.get(name)) is None:
            log.error("%d payments were begun at the processor %r, which is not set up", len(some), name)
            answers[name] = iter([NOT_SET_UP] * len(some))
        else:
            answers[name] = iter(await ask(processor, some))

    await asyncio.gather(
        *(
            ask_one(name, [item for item, its in zip(items, names, strict=True) if its == name])
            for name in different
        )
    )
    return [next(answers[name]) for name in names]


def _of_asked(asked: Asked) -> str:
    return asked.payment.processor


def _of_pair(asked: tuple[Payment, Span | None]) -> str:
    return asked[0].processor


def _of_payment(payment: Payment) -> str:
    return payment.processor
