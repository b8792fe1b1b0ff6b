"""A queue of due things that are taken in sets.

Every step of a saga has a lane for its do and one for its undo. Whatever is due is worked on as one set; while it is,
the next set gathers by itself. A second set is started beside the first when it is worth it: when it has grown, or when
the first takes its time (a slow bank must not hold up the others). When a set fails as a whole, its members are tried
one by one after a pause: nothing is dropped, one that cannot succeed does not hold up the others, and one broken lane
does not hold up another.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Generic, TypeVar

T = TypeVar("T")

log = logging.getLogger(__name__)

SET_SIZE_MAX = 256
SETS_IN_FLIGHT_MAX = 4
"""A slow set or two leave room for others; more at once would only make them smaller."""
COMPANY = 128
"""A set of this size is worth starting beside one that is under way."""
LINGER_SECONDS = 0.02
"""How long a smaller one waits for that; about what a set takes."""
RETRY_SECONDS = 0.5
"""Pause before the members of a set that failed (a database that is away, a defect) are tried again."""


class Lane(Generic[T]):
    """`work` carries out a set."""

    def __init__(self, name: str, work: Callable[[list[T]], Awaitable[None]]) -> None:
        self.name = name
        self._work = work
        self._due: deque[T] = deque()
        self._suspects: deque[T] = deque()
        self._suspects_at_once = 1
        self._trying_suspects = False
        self._in_flight: set[asyncio.Task[object]] = set()
        self._linger: asyncio.TimerHandle | None = None
        self._woken = False

    def put(self, *items: T) -> None:
        """The items are due now. They are taken at the end of this turn of the event loop, together with what else
        becomes due in it: a wave moves on as a wave."""
        self._due.extend(items)
        if not self._woken:
            self._woken = True
            asyncio.get_running_loop().call_soon(self._wake)

    def _wake(self) -> None:
        self._woken = False
        self._pump()

    def _pump(self, hurry: bool = False) -> None:
        """Start a set if one may start now; else see that somebody will. Suspects come first, one set of them at a
        time: under load there is always something else due."""
        while len(self._in_flight) < SETS_IN_FLIGHT_MAX:
            if self._suspects and not self._trying_suspects:
                self._trying_suspects = True
                self._start(self._try_suspects(self._take(self._suspects, self._suspects_at_once)))
                continue
            if not self._due:
                return
            if self._in_flight and len(self._due) < COMPANY and not hurry:
                if self._linger is None:
                    self._linger = asyncio.get_running_loop().call_later(LINGER_SECONDS, self._lingered)
                return
            hurry = False
            self._start(self._try(self._take(self._due, SET_SIZE_MAX)))

    def _start(self, work: Coroutine[None, None, object]) -> None:
        task = asyncio.create_task(work, name=f"lane {self.name}")
        self._in_flight.add(task)
        task.add_done_callback(self._worked)

    def _lingered(self) -> None:
        self._linger = None
        self._pump(hurry=True)

    def _worked(self, task: asyncio.Task[object]) -> None:
        self._in_flight.discard(task)
        if self._linger is not None and not self._in_flight:
            self._linger.cancel()
            self._linger = None
        self._pump()

    @staticmethod
    def _take(queue: deque[T], size_max: int) -> list[T]:
        return [queue.popleft() for _ in range(min(len(queue), size_max))]

    async def _try(self, taken: list[T]) -> bool:
        """Work on a set; when that fails, its members are suspects. Returns whether it went well."""
        try:
            await self._work(taken)
            return True
        except Exception:
            log.exception("lane %s: a set of %d failed; trying its members again", self.name, len(taken))
            asyncio.get_running_loop().call_later(RETRY_SECONDS, self._suspect, taken)
            return False

    async def _try_suspects(self, taken: list[T]) -> None:
        """One by one at first; as long as that goes well, twice as many each time: after an outage all are innocent."""
        went_well = await self._try(taken)
        self._suspects_at_once = min(self._suspects_at_once * 2, SET_SIZE_MAX) if went_well else 1
        self._trying_suspects = False

    def _suspect(self, items: list[T]) -> None:
        self._suspects.extend(items)
        self._pump()
