"""A wave of due steps, and how it is asked for.

A participant takes a wave of due steps and answers each, in order. A failure of the whole call is every item's answer:
the keys make it safe to ask again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from opentelemetry.trace import Span

from services.kit.deadline import Deadline
from services.kit.errors import Kind, PaymeshError
from services.kit.rpc.client import call
from services.kit.rpc.failures import from_failure
from services.kit.telemetry import traceparent_of
from services.orchestrator.domain import Direction, Outcome, Saga

LINES_PER_CALL_MAX = 20_000
"""Of one call to inventory: well below the message limit even with the longest skus, and few enough that the products
of one huge set are not locked for seconds."""


_KEY_REUSED = "IDEMPOTENCY_KEY_REUSED"


class Wave(NamedTuple):
    """Sagas that are due for the same step, column by column: an object per saga would cost more than the step."""

    step: str
    sagas: Sequence[Saga]
    orders: Sequence[Any]
    """What each saga was begun with: a PlaceOrderRequest, or an OrderTask."""
    spans: Sequence[Span | None]
    """Of this attempt of each; None where it is not traced."""

    def do_keys(self) -> list[str]:
        """Idempotency keys of the dos."""
        return [_after_refusals(f"{s.saga_id}/{self.step}", s, self.step, Direction.DO) for s in self.sagas]

    def undone_keys(self) -> list[str]:
        """Idempotency keys of the dos that are undone. What can be undone is not done again."""
        return [f"{saga.saga_id}/{self.step}" for saga in self.sagas]

    def undo_keys(self) -> list[str]:
        """Idempotency keys of the undos."""
        return [
            _after_refusals(f"{s.saga_id}/{self.step}/undo", s, self.step, Direction.UNDO) for s in self.sagas
        ]

    def part(self, start: int, end: int) -> Wave:
        """Some of them."""
        return Wave(self.step, self.sagas[start:end], self.orders[start:end], self.spans[start:end])


def _after_refusals(key: str, saga: Saga, step: str, direction: Direction) -> str:
    """The key of the next attempt. A no is kept under its key for ever, and says that nothing was done: whoever has a
    person's word that it is worth asking again asks under another one. An attempt of which nobody knows what came of it
    is repeated under its own."""
    if not saga.position.taken_over:  # nobody has asked again
        return key
    noes = sum(
        one.outcome is Outcome.REFUSED and one.step == step and one.direction is direction
        for one in saga.history
    )
    return f"{key}/{noes + 1}" if noes else key


class Result(NamedTuple):
    """What a participant answered."""

    outcome: Outcome
    reason: str = ""
    message: str = ""
    facts: Mapping[str, str] = {}
    retry_after_ms: int = 0


class Participant(Protocol):
    """Takes one kind of step, both ways."""

    async def do(self, wave: Wave, deadline: Deadline) -> list[Result]:
        """Take the step for a wave of sagas."""

    async def undo(self, wave: Wave, deadline: Deadline) -> list[Result]:
        """Undo it, whether or not the do has arrived."""


def items_of(batch: Any, wave: Wave, keys: Sequence[str]) -> Iterator[tuple[Any, Saga, Any]]:
    """A new item of `batch` for each saga, with its key and its trace. Filled field by field, here and by the callers:
    the arguments of a message's constructor, or of `add`, take twice as long."""
    add = batch.items.add
    for saga, order, span, key in zip(wave.sagas, wave.orders, wave.spans, keys, strict=True):
        item = add()
        item.idempotency_key = key
        if span is not None:
            item.traceparent = traceparent_of(span)
        yield item, saga, order


def undos_of(batch: Any, wave: Wave) -> Iterator[tuple[Any, Saga, str]]:
    """A new item of `batch` for each saga, under the key of its undo, with the key of the do that it undoes."""
    items = items_of(batch, wave, wave.undo_keys())
    for (item, saga, _), do_key in zip(items, wave.undone_keys(), strict=True):
        yield item, saga, do_key


def by_weight(wave: Wave, lines_max: int) -> Iterator[Wave]:
    """The wave in parts of at most so many lines; a single order may have more."""
    start = lines = 0
    for place, order in enumerate(wave.orders):
        weight = len(order.lines)
        if place > start and lines + weight > lines_max:
            yield wave.part(start, place)
            start, lines = place, 0
        lines += weight
    if start < len(wave.orders):
        yield wave.part(start, len(wave.orders)) if start else wave


def failed(error: PaymeshError) -> Result:
    """Final noes are refusals; that nothing happened is worth a retry; everything else may have happened."""
    match error.kind:
        case Kind.REFUSED | Kind.INVALID | Kind.NOT_FOUND:
            outcome = Outcome.REFUSED
        case Kind.RETRYABLE:
            outcome = Outcome.RETRYABLE
        case _:
            outcome = Outcome.UNKNOWN
    return Result(outcome, error.reason, error.message, error.facts, error.retry_after_ms or 0)


def failed_for_good(error: PaymeshError) -> Result:
    """For a step that cannot be undone: only what its participant has refused, and keeps under the key, says that
    nothing was done and never will be. That a repeat is malformed, or its key another's, says nothing of the first
    attempt."""
    result = failed(error)
    if result.outcome is Outcome.REFUSED and (error.kind is not Kind.REFUSED or error.reason == _KEY_REUSED):
        return result._replace(outcome=Outcome.UNKNOWN)
    return result


async def ask(
    method: Any,
    batch: Any,
    wave: Wave,
    deadline: Deadline,
    read: Callable[[Any], Result],
    fail: Callable[[PaymeshError], Result] = failed,
) -> list[Result]:
    """Make the call; `read` says what a response means, `fail` what an error does."""
    try:
        response = await call(method, batch, deadline, spans=wave.spans)
    except PaymeshError as error:
        return [fail(error)] * len(wave.sagas)
    return [
        read(result.response) if result.HasField("response") else fail(from_failure(result.failure))
        for result in response.results
    ]


def done(_: Any) -> Result:
    """It was done, and there is nothing to tell."""
    return Result(Outcome.DONE)
