"""Callers in a closed loop: each sends its next call when it has the answer to the last one.

A caller behaves as one should: what is shed, in progress or unknown is sent again with the same key, and the time until
the answer counts from the first send.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import grpc.aio

from bench.methods import Method
from bench.tally import Tally
from paymesh.channel import CALLER_KEY, IDEMPOTENCY_KEY
from paymesh.errors import PaymeshCallError, call_error, failure_error

CALLER = (CALLER_KEY, "bench")
CALL_SECONDS_MAX = 30.0
"""An answer that takes longer is none."""
PATIENCE_SECONDS = 60.0
"""How long an item is sent again."""
REPEAT_SECONDS = 0.2
"""Until then, when the answer does not say."""

Call = Callable[..., Awaitable[Any]]
Requests = Iterator[tuple[str, bytes]]


class Caller:
    """One caller. `until` is on the clock of `time.perf_counter`."""

    def __init__(self, method: Method, call: Call, tally: Tally, *, pause_seconds: float) -> None:
        self._method = method
        self._call = call
        self._tally = tally
        self._pause_seconds = pause_seconds

    async def run_single(self, requests: Requests, until: float) -> None:
        """Single calls, the last of which is sent before `until`, or as long as there is something to send."""
        while time.perf_counter() < until:
            drawn = next(requests, None)
            if drawn is None:
                return
            await self._single(*drawn)
            if self._pause_seconds:
                await asyncio.sleep(self._pause_seconds)

    async def run_batches(self, requests: Requests, until: float) -> None:
        """Batch calls, the last of which is sent before `until`, or as long as there is something to send."""
        while time.perf_counter() < until:
            drawn = next(requests, None)
            if drawn is None:
                return
            await self._batch(drawn[1])

    async def _single(self, key: str, request: bytes) -> None:
        tally, method = self._tally, self._method
        began = time.perf_counter()
        while True:
            tally.calls += 1
            try:
                answer = await self._call(
                    request, metadata=(CALLER, (IDEMPOTENCY_KEY, key)), timeout=CALL_SECONDS_MAX
                )
            except grpc.aio.AioRpcError as error:
                if not await self._worth_repeating(call_error(error), began, 1):
                    return
                continue
            if method.state_of(answer) == method.wanted:
                tally.succeed(time.perf_counter() - began, 1)
            else:
                tally.failed[method.state_name(answer)] += 1
            return

    async def _batch(self, request: bytes) -> None:
        tally, method = self._tally, self._method
        began = time.perf_counter()
        while True:
            tally.calls += 1
            try:
                answer = await self._call(request, metadata=(CALLER,), timeout=CALL_SECONDS_MAX)
            except grpc.aio.AioRpcError as error:
                items = len(method.batch_request.FromString(request).items)
                if not await self._worth_repeating(call_error(error), began, items):
                    return
                continue
            # A failure has no response, and the state of none is none that is wanted.
            good = sum(method.state_of(result.response) == method.wanted for result in answer.results)
            if good:
                tally.succeed(time.perf_counter() - began, good)
            if good == len(answer.results):
                return
            rest = await self._rest(request, answer, began)
            if rest is None:
                return
            request = rest

    async def _rest(self, request: bytes, answer: Any, began: float) -> bytes | None:
        """The items that are worth repeating, as a batch of their own, after the wait that they ask for."""
        method = self._method
        again = method.batch_request()
        error = None
        for item, result in zip(method.batch_request.FromString(request).items, answer.results, strict=True):
            if not result.HasField("failure"):
                if method.state_of(result.response) != method.wanted:
                    self._tally.failed[method.state_name(result.response)] += 1
                continue
            failure = failure_error(result.failure)
            if self._note(failure, began, 1):
                error = failure
                again.items.add().CopyFrom(item)
        if error is None:
            return None
        await asyncio.sleep(_wait_seconds(error))
        encoded: bytes = again.SerializeToString()
        return encoded

    async def _worth_repeating(self, error: PaymeshCallError, began: float, items: int) -> bool:
        """Count a failed call, and wait before the next if there should be one."""
        if not self._note(error, began, items):
            return False
        await asyncio.sleep(_wait_seconds(error))
        return True

    def _note(self, error: PaymeshCallError, began: float, items: int) -> bool:
        """Count items that failed; whether they should be sent again."""
        if error.kind.worth_repeating and time.perf_counter() - began < PATIENCE_SECONDS:
            self._tally.repeated[error.reason] += items
            return True
        self._tally.failed[error.reason] += items
        return False


def _wait_seconds(error: PaymeshCallError) -> float:
    return REPEAT_SECONDS if error.retry_after is None else error.retry_after.total_seconds()
