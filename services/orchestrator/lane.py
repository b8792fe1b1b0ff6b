"""A queue of due things and the loops that take them in sets.

Every step of a saga has a lane for its do and one for its undo. A loop takes whatever is due, up to a set, and works on
it as one; while it works, the next set gathers by itself. When a set fails as a whole, its members are tried one by one
after a pause: nothing is dropped, one that cannot succeed does not hold up the others, and one broken lane does not
hold up another.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")

log = logging.getLogger(__name__)

SET_SIZE_MAX = 256
LOOPS = 1
"""One set under way per lane: the other lanes keep us busy meanwhile, and the next set grows."""
RETRY_SECONDS = 0.5
"""Pause before a set that failed as a whole (a database that is away, a defect) is tried again."""


class Lane(Generic[T]):
    """`work` carries out a set."""

    def __init__(self, name: str, work: Callable[[list[T]], Awaitable[None]]) -> None:
        self.name = name
        self._work = work
        self._due: deque[T] = deque()
        self._suspects: deque[T] = deque()
        self._more = asyncio.Event()

    def put(self, item: T) -> None:
        """The item is due now."""
        self._due.append(item)
        self._more.set()

    async def run(self) -> None:
        """Work for ever."""
        await asyncio.gather(*(self._loop() for _ in range(LOOPS)))

    async def _loop(self) -> None:
        while True:
            await self._more.wait()
            for taken in (self._take(self._due, SET_SIZE_MAX), self._take(self._suspects, 1)):
                if taken:
                    await self._try(taken)
            if not self._due and not self._suspects:
                self._more.clear()

    @staticmethod
    def _take(queue: deque[T], size_max: int) -> list[T]:
        return [queue.popleft() for _ in range(min(len(queue), size_max))]

    async def _try(self, taken: list[T]) -> None:
        try:
            await self._work(taken)
        except Exception:
            log.exception("lane %s: a set of %d failed; trying its members one by one", self.name, len(taken))
            asyncio.get_running_loop().call_later(RETRY_SECONDS, self._suspect, taken)

    def _suspect(self, items: list[T]) -> None:
        self._suspects.extend(items)
        self._more.set()
