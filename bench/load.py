"""The load generator: `python -m bench.load`, a process of its own.

Reads one `Task` as a line of JSON from standard input and writes lines of JSON to standard output:

{"event": "warming_up"}                 everything is drawn and connected
{"event": "ready"}                      the warm-up is over; waits for a line, so that meters can be read at rest
{"event": "progress", "done": 1200}     items that are through so far, a few times a second
{"event": "finished", "tally": {...}}   see `Tally.to_json`

It shares the machine with the mesh, so it is lean: requests are drawn and encoded before the clock starts, as far as
they last, and travel as bytes; answers are decoded by the generated code. It does without the interceptors of
`open_channel`, which are there for convenience: what is measured is the mesh.
"""

from __future__ import annotations

import asyncio
import gc
import json
import resource
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from itertools import chain, islice
from typing import Any, Protocol

from bench.callers import Call, Caller, Requests
from bench.calls import Pings
from bench.channels import Channels
from bench.floor import Writers
from bench.methods import METHODS
from bench.movements import Movers, read_made
from bench.orders import Buyers
from bench.phases import Task, What
from bench.shops import Shops
from bench.tally import Tally

PREBUILT_PER_SECOND = {
    What.ORDERS: 6_000,
    What.CHOREOGRAPHED_ORDERS: 6_000,
    What.AUTHORIZATIONS: 15_000,
    What.CAPTURES: 15_000,
    What.REFUNDS: 15_000,
}
"""More than two cores do, so that nothing is left to encode while the clock runs."""
WARM_UP_NUMBERS = 1_000_000
"""So many numbers of a task are for its warm-up."""
PROGRESS_SECONDS = 0.25


class Work(Protocol):
    """What is done in a phase."""

    async def open(self) -> None:
        """Connect."""

    async def run(self, tally: Tally, merchants: tuple[str, ...], until: float) -> None:
        """Send on behalf of these merchants until then, and wait for the last answer."""

    async def close(self) -> None:
        """Close the connections."""


def emit(event: str, **fields: Any) -> None:
    """One line to whoever started us."""
    sys.stdout.write(json.dumps({"event": event, **fields}) + "\n")
    sys.stdout.flush()


class Callers:
    """All callers of one method, over some channels."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._method = METHODS[task.what]
        self._channels = Channels(task)
        path = self._method.batch_path if task.batch_size else self._method.single_path
        answer = self._method.batch_response if task.batch_size else self._method.response
        self._calls: list[Call] = [
            channel.unary_unary(path, request_serializer=None, response_deserializer=answer.FromString)
            for channel in self._channels.all
        ]
        warm_up = self._source(task.warm_up_merchants, task.first_number)
        measured = self._source(task.merchants, task.first_number + WARM_UP_NUMBERS)
        self._requests: dict[tuple[str, ...], Requests] = {
            task.warm_up_merchants: self._endless(warm_up),
            task.merchants: self._prebuilt(self._endless(measured)),
        }

    async def open(self) -> None:
        """Connect."""
        await self._channels.open()

    async def close(self) -> None:
        """Close the connections."""
        await self._channels.close()

    async def run(self, tally: Tally, merchants: tuple[str, ...], until: float) -> None:
        """See `Work`."""
        requests = self._requests[merchants]
        callers = []
        for number in range(self._task.callers):
            call = self._calls[number % len(self._calls)]
            caller = Caller(self._method, call, tally, pause_seconds=self._task.pause_seconds)
            run = caller.run_batches if self._task.batch_size else caller.run_single
            callers.append(run(requests, until))
        await asyncio.gather(*callers)

    def _source(self, merchants: tuple[str, ...], first_number: int) -> Buyers | Movers:
        if self._task.made_file:
            return Movers(list(read_made(self._task.made_file, merchants)))
        return Buyers(merchants, self._task.currencies, first_number)

    def _endless(self, source: Buyers | Movers) -> Requests:
        """For buyers without end; for movers as long as whole batches can be had of what there is."""
        size = self._task.batch_size
        with suppress(IndexError):
            while True:
                yield self._method.build_batch(source, size) if size else self._method.build_single(source)

    def _prebuilt(self, endless: Requests) -> Requests:
        task = self._task
        items_per_second = PREBUILT_PER_SECOND[task.what]
        calls_per_second = items_per_second / max(task.batch_size, 1)
        if task.pause_seconds:
            calls_per_second = task.callers / task.pause_seconds
        ready = list(islice(endless, int(calls_per_second * task.seconds) + task.callers))
        return chain(ready, endless)


_WORK: Mapping[What, Callable[[Task], Work]] = {
    What.ROWS: Writers,
    What.CALLS: Pings,
    What.HTTP_PAYMENTS: Shops,
    What.HTTP_READS: Shops,
}


async def carry_out(task: Task) -> None:
    """Warm up, measure, tell."""
    work: Work = _WORK.get(task.what, Callers)(task)
    await work.open()
    try:
        _tame_the_collector()
        emit("warming_up")
        await work.run(Tally(), task.warm_up_merchants, time.perf_counter() + task.warm_up_seconds)
        emit("ready")
        await asyncio.to_thread(sys.stdin.readline)
        tally = Tally()
        telling = asyncio.create_task(_tell_progress(tally))
        cpu_before, began = _cpu_seconds(), time.perf_counter()
        await work.run(tally, task.merchants, began + task.seconds)
        tally.seconds = time.perf_counter() - began
        tally.cpu_seconds = _cpu_seconds() - cpu_before
        telling.cancel()
        emit("finished", tally=tally.to_json())
    finally:
        await work.close()


async def _tell_progress(tally: Tally) -> None:
    while True:
        await asyncio.sleep(PROGRESS_SECONDS)
        emit("progress", done=tally.answered)


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _tame_the_collector() -> None:
    """What was drawn stays until it is sent, and what calls leave behind is freed by reference counts: the cycle
    collector would look through all of it again and again, on the cores that the mesh needs."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def main() -> None:
    """Carry out the task on standard input."""
    asyncio.run(carry_out(Task.from_json(sys.stdin.readline())))


if __name__ == "__main__":
    main()
