"""Operations that take their time: carried out in the background while their set is answered.

Such an operation lives in memory until its time has come and is in the books after that, with nothing in
between: did the process end before, it never happened, and its key is free."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from google.protobuf.message import Message

from services.kit.deadline import Deadline
from services.kit.errors import InProgress, Overloaded
from services.kit.rpc.failures import as_error
from services.kit.sets import Answer, Command, Failed, Outcome, Pending

R = TypeVar("R")
M = TypeVar("M", bound=Message)
T = TypeVar("T")

CarryOut: TypeAlias = Callable[[Sequence[Command[R]], Deadline], Awaitable[Sequence["Outcome[M]"]]]

log = logging.getLogger(__name__)

UNDER_WAY_MAX = 20_000
"""Slow operations at once: two seconds of them at full speed, a few dozen megabytes. What comes on top is
shed."""
CARRY_OUT_SECONDS = 10.0
"""Deadline of an operation whose caller has been answered already."""
ASK_AGAIN_MS_MAX = 1_000
"""Callers are told to ask again after the delay of their operation, or after this if it is longer."""
OVERLOADED_RETRY_AFTER_MS = 1_000


@dataclass(frozen=True, slots=True)
class _UnderWay:
    """A slow operation: what was asked, and where its outcome is put."""

    fingerprint: bytes
    outcome: asyncio.Future[Any]


class Latecomers:
    """The slow operations of one process."""

    def __init__(self, soft_deadline_ms: int) -> None:
        self._soft_deadline_ms = soft_deadline_ms
        self._under_way: dict[tuple[str, str], _UnderWay] = {}
        self._tasks: set[asyncio.Task[Any]] = set()

    @property
    def soft_deadline_ms(self) -> int:
        """What takes longer than this is answered IN_PROGRESS."""
        return self._soft_deadline_ms

    def take(
        self, commands: Sequence[Command[R]], delay_ms: int, carry_out: CarryOut[R, M]
    ) -> list[Pending[M] | Failed]:
        """Carry commands out `delay_ms` from now. What is known already to outlast the soft deadline is
        answered at once; nobody waits for an answer that cannot come in time. A repeat of a command that is
        under way joins it."""
        fresh: list[Command[R]] = []
        answers: list[Pending[M] | Failed] = []
        for command in commands:
            identity = (command.merchant_id, command.key)
            known = self._under_way.get(identity)
            if known is None and len(self._under_way) >= UNDER_WAY_MAX:
                answers.append(Failed(_overloaded()))
                continue
            if known is None:
                known = _UnderWay(command.fingerprint, asyncio.get_running_loop().create_future())
                self._under_way[identity] = known
                fresh.append(command)
            if delay_ms < self._soft_deadline_ms and known.fingerprint == command.fingerprint:
                answers.append(Pending(known.outcome))
            else:
                answers.append(Failed(_in_progress(delay_ms)))
        if fresh:
            self.detach(self._later(fresh, delay_ms, carry_out))
        return answers

    def detach(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run `work` to its end, whoever waits for it; only the end of the process cuts it short."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def close(self) -> None:
        """Drop what has not begun: it never happened."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _later(self, commands: Sequence[Command[R]], delay_ms: int, carry_out: CarryOut[R, M]) -> None:
        loop = asyncio.get_running_loop()
        soft = loop.call_later(self._soft_deadline_ms / 1000, self._give_up_waiting, commands, delay_ms)
        try:
            await asyncio.sleep(delay_ms / 1000)
            self._settle(commands, await carry_out(commands, Deadline.after(CARRY_OUT_SECONDS)))
        except Exception as error:
            log.exception("%d slow operations failed", len(commands))
            self._settle(commands, [Failed(as_error(error))] * len(commands))
        finally:
            soft.cancel()
            for command in commands:
                self._under_way.pop((command.merchant_id, command.key), None)

    def _settle(self, commands: Sequence[Command[Any]], outcomes: Sequence[Answer[Any] | Failed]) -> None:
        for command, outcome in zip(commands, outcomes, strict=True):
            future = self._under_way[(command.merchant_id, command.key)].outcome
            if not future.done():
                future.set_result(outcome)

    def _give_up_waiting(self, commands: Sequence[Command[Any]], delay_ms: int) -> None:
        self._settle(commands, [Failed(_in_progress(delay_ms))] * len(commands))


def _in_progress(delay_ms: int) -> InProgress:
    return InProgress(
        "IN_PROGRESS",
        "the card's bank takes its time; look the operation up by its key, or ask again with the same key",
        retry_after_ms=min(delay_ms, ASK_AGAIN_MS_MAX),
    )


def _overloaded() -> Overloaded:
    return Overloaded(
        "OVERLOADED", "too many slow operations are under way", retry_after_ms=OVERLOADED_RETRY_AFTER_MS
    )
