"""Gathers concurrent calls of one method into sets.

A commit, a round trip and a Python call per item is what makes item-at-a-time services slow. The coalescer lets
callers stay ordinary: each submits its few commands and waits; while a set is being worked on, what arrives is
gathered into the next one.

What is promised:

* An idle coalescer starts at once. While a set is under way, a small one lingers for company: until that one has ended,
  or `company` commands have come, or `linger_ms` have passed. The same while the work of `waves_max` small sets, begun
  by their handler, goes on elsewhere.
* Single calls that were answered together are expected back together: the first of them wait for the others, at most
  `gather_ms` from the last answer. A caller who is alone is not kept waiting by this, for nobody else is expected.
* Sets hold at most `set_size_max` commands and at most `sets_in_flight_max` are under way.
* The queue holds at most `queue_max` commands; past that a submission is shed with `Overloaded` and nothing of it is
  accepted.
* Work that was accepted is carried out even when the caller goes away: the set is its own task.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from services.kit.deadline import Deadline
from services.kit.errors import Overloaded, PaymeshError

C = TypeVar("C")
O = TypeVar("O")  # noqa: E741 - an outcome

log = logging.getLogger(__name__)

OVERLOADED_RETRY_AFTER_MS = 200
"""Roughly the time in which a full queue empties."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How a method's commands are gathered."""

    set_size_max: int = 256
    """Larger sets gain little more per item and make everyone in them wait longer."""
    sets_in_flight_max: int = 2
    """Two keep both the event loop and the database busy; more only fight for the same rows."""
    company: int = 128
    """A set of this size is worth starting beside one that is under way; a smaller one lingers."""
    linger_ms: float = 20.0
    """How long a small set lingers while another is under way; without one it does not linger at all. About what a set
    takes: a second small one started earlier would only slow down the first, and cost as much as a large one."""
    waves_max: int = 2
    """Small sets whose work goes on after their handler has returned (`Pending`); another small one lingers. Two keep
    two cores busy; five of them, each a fifth as large, would cost twice the processor time for each item."""
    gather_ms: float = 10.0
    """How long single calls wait for those that were answered with them. A caller needs a few milliseconds to come
    back, and a process with dozens of callers sends their calls one after the other."""
    queue_max: int = 8_192
    """About two seconds of work at full speed: beyond that a caller is better off elsewhere or later."""


@dataclass(slots=True)
class _Group(Generic[C, O]):
    """The commands of one submission and where their outcomes are put."""

    commands: Sequence[C]
    deadline: Deadline
    single: bool
    done: asyncio.Future[None]
    outcomes: list[O | None]
    taken: int
    missing: int


async def within(future: asyncio.Future[Any], deadline: Deadline) -> None:
    """Wait until `future` is done, at most until the deadline, and leave it alone. `asyncio.wait` does the same for
    many, and was an eighth of what a single call costs."""
    if future.done():
        return
    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[None] = loop.create_future()

    def wake(_: object = None) -> None:
        if not waiter.done():
            waiter.set_result(None)

    future.add_done_callback(wake)
    timer = loop.call_later(deadline.remaining(), wake)
    try:
        await waiter
    finally:
        timer.cancel()
        if not future.done():
            future.remove_done_callback(wake)


class Coalescer(Generic[C, O]):
    """One per method. `handle` gets a set and the latest deadline among its callers."""

    def __init__(
        self,
        name: str,
        handle: Callable[[Sequence[C], Deadline], Awaitable[Sequence[O]]],
        fail: Callable[[BaseException], O],
        limits: Limits,
        rest: Callable[[O], asyncio.Future[Any] | None] = lambda _: None,
    ) -> None:
        self._name = name
        self._handle = handle
        self._fail = fail
        self._rest = rest
        self._limits = limits
        self._worth_starting = min(limits.company, limits.set_size_max)
        self._queue: deque[_Group[C, O]] = deque()
        self._queued = 0
        self._in_flight: set[asyncio.Task[None]] = set()
        self._waves: set[asyncio.Task[Any]] = set()
        self._linger: asyncio.TimerHandle | None = None
        self._expected = 0
        self._expected_until = float("-inf")

    @property
    def queued(self) -> int:
        """Commands that wait for a set."""
        return self._queued

    async def submit(
        self, commands: Sequence[C], deadline: Deadline, *, single: bool = False
    ) -> list[O | None]:
        """The outcomes of `commands`, in order; None for those that are not ready by the deadline. Raises Overloaded
        when the queue is full. A caller that goes away leaves its commands to be carried out. `single` says that others
        like it are likely to come, each by itself; the caller then says when it was `answered`."""
        if self._queued + len(commands) > self._limits.queue_max:
            raise Overloaded(
                "OVERLOADED",
                f"{self._name} has {self._queued} commands waiting; try again later",
                retry_after_ms=OVERLOADED_RETRY_AFTER_MS,
            )
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        group: _Group[C, O] = _Group(
            commands, deadline, single, done, [None] * len(commands), 0, len(commands)
        )
        self._queue.append(group)
        self._queued += len(commands)
        if single and self._expected:
            self._expected -= 1
        self._pump()
        await within(done, deadline)
        return group.outcomes

    def answered(self) -> None:
        """A single call is being answered: its caller may well be back in a moment."""
        now = asyncio.get_running_loop().time()
        self._expected = self._expected + 1 if now < self._expected_until else 1
        self._expected_until = now + self._limits.gather_ms / 1000

    async def drain(self) -> None:
        """Wait until everything accepted has been carried out."""
        while self._in_flight or self._queue:
            self._pump(hurry=True)
            await asyncio.wait(self._in_flight)

    def _pump(self, hurry: bool = False) -> None:
        """Start a set if one may start now; else see that somebody will."""
        while self._queue and len(self._in_flight) < self._limits.sets_in_flight_max:
            linger_ms = 0.0 if hurry else self._linger_for_ms()
            if linger_ms:
                loop = asyncio.get_running_loop()
                until = loop.time() + linger_ms / 1000
                if self._linger is None or self._linger.when() > until:
                    self._stop_lingering()
                    self._linger = loop.call_at(until, self._lingered)
                return
            self._start()

    def _linger_for_ms(self) -> float:
        """How long what is queued should wait for company."""
        if self._queued >= self._worth_starting:
            return 0.0
        if self._in_flight or len(self._waves) >= self._limits.waves_max:
            return self._limits.linger_ms
        if self._expected and all(group.single for group in self._queue):
            return max(0.0, (self._expected_until - asyncio.get_running_loop().time()) * 1000)
        return 0.0

    def _stop_lingering(self) -> None:
        if self._linger is not None:
            self._linger.cancel()
            self._linger = None

    def _lingered(self) -> None:
        self._linger = None
        self._expected = 0
        self._pump(hurry=True)

    def _start(self) -> None:
        """Take a set from the front of the queue; a group that is too large is split over several sets."""
        self._stop_lingering()
        slices: list[tuple[_Group[C, O], int, int]] = []
        room = self._limits.set_size_max
        while self._queue and room:
            group = self._queue[0]
            start = group.taken
            end = min(len(group.commands), start + room)
            group.taken = end
            room -= end - start
            slices.append((group, start, end))
            if end == len(group.commands):
                self._queue.popleft()
        self._queued -= self._limits.set_size_max - room
        task = asyncio.create_task(self._work(slices), name=f"set:{self._name}")
        self._in_flight.add(task)
        task.add_done_callback(self._worked)

    def _worked(self, task: asyncio.Task[None]) -> None:
        self._in_flight.discard(task)
        self._pump()

    def _watch(self, outcomes: Sequence[O]) -> None:
        """A small set whose work goes on elsewhere is a wave until all of it has ended, or for as long as one lingers:
        a straggler holds up nobody."""
        rests = [rest for outcome in outcomes if (rest := self._rest(outcome)) is not None]
        if rests:
            ended = asyncio.wait(rests, timeout=self._limits.linger_ms / 1000)
            wave = asyncio.create_task(ended, name=f"wave:{self._name}")
            self._waves.add(wave)
            wave.add_done_callback(self._ended)

    def _ended(self, wave: asyncio.Task[Any]) -> None:
        self._waves.discard(wave)
        self._pump()

    async def _work(self, slices: list[tuple[_Group[C, O], int, int]]) -> None:
        commands = [c for group, start, end in slices for c in group.commands[start:end]]
        deadline = max((group.deadline for group, _, _ in slices), key=lambda d: d.at)
        try:
            outcomes = await self._handle(commands, deadline)
            if len(outcomes) != len(commands):
                raise AssertionError(f"{self._name}: {len(commands)} commands, {len(outcomes)} outcomes")
        except (Exception, asyncio.CancelledError) as error:
            # Nobody cancels a set: a CancelledError is a defect of the handler like any other.
            if not isinstance(error, PaymeshError):
                log.exception("set of %d in %s failed", len(commands), self._name)
            outcomes = [self._fail(error)] * len(commands)
        at = 0
        for group, start, end in slices:
            group.outcomes[start:end] = outcomes[at : at + end - start]
            at += end - start
            group.missing -= end - start
            if not group.missing and not group.done.done():
                group.done.set_result(None)
        if len(commands) < self._worth_starting:
            self._watch(outcomes)
