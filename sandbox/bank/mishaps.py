"""What goes wrong between a request and its answer: applies faults and slow cards to sets and to single
operations.

An operation is struck before it is carried out, after, or it is carried out late; the neighbours in its set
never notice."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message

from sandbox.bank import store
from sandbox.bank.faults import Fault, FaultKind, Faults, Target
from sandbox.bank.runner import CarryOut, Latecomers
from services.kit.db import Database
from services.kit.deadline import Deadline
from services.kit.errors import Bug, PaymeshError, Retryable, Unknown
from services.kit.sets import Answer, Command, Failed, Pending

R = TypeVar("R")
M = TypeVar("M", bound=Message)
T = TypeVar("T")

Context = grpc.aio.ServicerContext[Any, Any]

LOOK_AGAIN_MS = 500
"""A reader whose answer would come too late asks again after this."""


class Mishaps:
    """Everything that stands between the callers of one process and its books."""

    def __init__(self, database: Database, faults: Faults, latecomers: Latecomers, latency_ms: int) -> None:
        self._database = database
        self._faults = faults
        self._latecomers = latecomers
        self._latency_seconds = latency_ms / 1000

    async def refuses(
        self, target: Target, merchants: Callable[[], Collection[str]], context: Context
    ) -> bool:
        """Let the time pass that a message takes, and say whether the call is refused. Its status is set
        then: a bare UNAVAILABLE, as if nobody had answered, so that the caller cannot conclude anything."""
        if self._latency_seconds:
            await asyncio.sleep(self._latency_seconds)
        if not self._faults.armed or not self._faults.refuses(target, merchants()):
            return False
        # Not `abort`: the server around us would take its exception for a failure of its own and abort again.
        context.set_code(grpc.StatusCode.UNAVAILABLE)
        context.set_details("connection refused")
        return True

    def turns_down(self, target: Target, merchant_id: str) -> bool:
        """Whether an operation that is about to be carried out is refused for good."""
        return self._faults.armed and self._faults.turns_down(target, merchant_id)

    async def on_set(
        self,
        target: Target,
        commands: Sequence[Command[R]],
        deadline: Deadline,
        carry_out: CarryOut[R, M],
        delay_ms_of: Callable[[R], int] | None = None,
    ) -> Sequence[Answer[M] | Failed | Pending[M]]:
        """Carry a set out, except for what is struck. `delay_ms_of` says how slow an operation is by its
        nature."""
        slow = delay_ms_of is not None and any(delay_ms_of(c.request) for c in commands)
        if not slow and not self._faults.armed:
            return await carry_out(commands, deadline)
        outcomes: dict[int, Answer[M] | Failed | Pending[M]] = {}
        lost: set[int] = set()
        prompt: list[int] = []
        late: dict[int, int] = {}
        for place, command in enumerate(commands):
            fault = self._faults.strike(target, command.merchant_id)
            delay_ms = (delay_ms_of(command.request) if delay_ms_of else 0) + (fault.delay_ms if fault else 0)
            if fault and (error := _prevented(fault)):
                outcomes[place] = Failed(error)
                continue
            if fault and fault.kind is FaultKind.ANSWER_LOST_AFTER:
                lost.add(place)
            if delay_ms:
                late[place] = delay_ms
            else:
                prompt.append(place)
        if late:
            prompt += await self._carried_out_before(commands, late)
        if prompt:
            prompt.sort()
            done = await carry_out([commands[place] for place in prompt], deadline)
            outcomes.update(zip(prompt, done, strict=True))
        for delay_ms in sorted(set(late.values())):
            places = [place for place, ms in late.items() if ms == delay_ms]
            outcomes.update(zip(places, self._take(commands, places, delay_ms, carry_out), strict=True))
        outcomes.update((place, Failed(_answer_lost())) for place in lost)
        return [outcomes[place] for place in range(len(commands))]

    async def on_one(self, target: Target, merchant_id: str, carry_out: Callable[[], Awaitable[T]]) -> T:
        """Carry one operation out, unless it is struck. Once begun it is carried to its end, also when its
        caller gives up waiting for a delay. Raises Unknown when the answer is lost, Bug for an ERROR."""
        fault = self._faults.strike(target, merchant_id) if self._faults.armed else None
        if fault is None:
            return await carry_out()
        if error := _prevented(fault):
            raise error

        async def later() -> T:
            await asyncio.sleep(fault.delay_ms / 1000)
            return await carry_out()

        answer = await asyncio.shield(self._latecomers.detach(later()))
        if fault.kind is FaultKind.ANSWER_LOST_AFTER:
            raise _answer_lost()
        return answer

    async def on_reads(self, target: Target, merchants: Sequence[str]) -> list[PaymeshError | None]:
        """Why each of several reads has no answer; None for those that have one. Waits for delays within the
        soft deadline."""
        if not self._faults.armed:
            return [None] * len(merchants)
        struck = [self._faults.strike(target, merchant_id) for merchant_id in merchants]
        soft_ms = self._latecomers.soft_deadline_ms
        wait_ms = max((f.delay_ms for f in struck if f and f.delay_ms < soft_ms), default=0)
        await asyncio.sleep(wait_ms / 1000)
        return [_unread(fault, soft_ms) if fault else None for fault in struck]

    async def _carried_out_before(self, commands: Sequence[Command[R]], late: dict[int, int]) -> list[int]:
        """Take from `late` the places whose operation is in the books: a repeat is answered from there at
        once."""
        identities = {place: (commands[place].merchant_id, commands[place].key) for place in late}
        used = await store.find_used(self._database, identities.values())
        repeats = [place for place, identity in identities.items() if identity in used]
        for place in repeats:
            del late[place]
        return repeats

    def _take(
        self, commands: Sequence[Command[R]], places: Sequence[int], delay_ms: int, carry_out: CarryOut[R, M]
    ) -> list[Pending[M] | Failed]:
        return self._latecomers.take([commands[place] for place in places], delay_ms, carry_out)


def _prevented(fault: Fault) -> PaymeshError | None:
    """Why an operation is not carried out at all."""
    if fault.kind is FaultKind.ANSWER_LOST_BEFORE:
        return _answer_lost()
    return Bug("INTERNAL", "an internal error of the bank") if fault.kind is FaultKind.ERROR else None


def _unread(fault: Fault, soft_deadline_ms: int) -> PaymeshError | None:
    if fault.kind is FaultKind.DELAY:
        if fault.delay_ms < soft_deadline_ms:
            return None
        return Retryable("BANK_SLOW", "the bank is slow; ask again", retry_after_ms=LOOK_AGAIN_MS)
    return _prevented(fault) or _answer_lost()


def _answer_lost() -> Unknown:
    return Unknown("ANSWER_LOST", "the answer was lost; the operation may have been carried out")
