"""The life of a service's process: configure, migrate, wire, serve, drain, exit.

A service's `__main__` is

    run("payment", PaymentConfig, wire)

where `wire(process, config)` constructs its parts and hands them to the `Process`: servicers to serve, loops to run in
the background, things to close. SIGTERM and SIGINT drain: say NOT_SERVING, let calls end, carry out what was accepted
from callers who are gone, stop the loops, close, exit 0.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import sys
from collections.abc import Awaitable, Callable, Collection
from contextlib import AsyncExitStack
from typing import Any, Protocol, TypeVar

import psycopg

from services.kit import logs, metrics, telemetry, workers
from services.kit.config import ServiceConfig, load
from services.kit.db import Database
from services.kit.deadline import Deadline
from services.kit.errors import PaymeshError
from services.kit.migrate import MigrationEdited, grant, migrate
from services.kit.rpc.server import Server

C = TypeVar("C", bound=ServiceConfig)

log = logging.getLogger(__name__)

LOOP_RESTART_SECONDS = 1.0
"""A background loop that failed starts again after this; its failure is logged each time."""
CANCEL_AGAIN_SECONDS = 0.5
SETS_END_SECONDS = 3.0
"""What sets whose callers are gone get on top of the drain. They take far less, unless the database hangs."""


class Listener(Protocol):
    """What answers calls."""

    async def start(self) -> int:
        """Serve; returns the port."""

    async def drain(self, grace_seconds: float) -> None:
        """Take nothing new, let what is in progress end, stop."""


class Servicer(Protocol):
    """Implements a service's RPCs."""

    async def drain(self) -> None:
        """Wait until everything that was accepted has been carried out; see `SetMethod.drain`."""


class Process:
    """What a service's `wire` function fills."""

    def __init__(self, database: Database, config: ServiceConfig) -> None:
        self.database = database
        self._config = config
        self._server: Server | None = None
        self._listener: Listener | None = None
        self._servicers: list[Servicer] = []
        self._loops: list[tuple[str, Callable[[], Awaitable[None]]]] = []
        self._closing = AsyncExitStack()

    def serve(self, register: Callable[[Any, Any], None], servicer: Servicer, full_name: str) -> None:
        """Serve a servicer and drain it at the end; see `Server.add`."""
        if self._server is None:
            self._listener = self._server = Server(
                self._config.listen,
                concurrent_rpcs_max=self._config.concurrent_rpcs_max,
                connection_grace_seconds=self._config.connection_grace_seconds,
            )
        self._server.add(register, servicer, full_name)
        self._servicers.append(servicer)

    def answer(self, listener: Listener) -> None:
        """Serve by this, instead of by gRPC."""
        assert self._listener is None, "a process has one way to be called"
        self._listener = listener

    def background(self, name: str, loop: Callable[[], Awaitable[None]]) -> None:
        """Run `loop` as long as the process serves; should it fail, log that and start it again."""
        self._loops.append((name, loop))

    def closing(self, close: Callable[[], Awaitable[object]]) -> None:
        """Call `close` after the last call has been answered, in reverse order of registration."""
        self._closing.push_async_callback(close)

    async def _live(self, stop: asyncio.Event, drain_seconds: float) -> None:
        listener = self._listener
        assert listener is not None, "nothing was wired that could be called"
        async with self._closing:
            port = await listener.start()
            log.info("serving on port %d", port)
            loops = [asyncio.create_task(_forever(name, loop), name=name) for name, loop in self._loops]
            await stop.wait()
            log.info("draining")
            until = Deadline.after(drain_seconds)
            await listener.drain(drain_seconds)
            await self._end_sets(until.remaining() + SETS_END_SECONDS)
            await end(loops)

    async def _end_sets(self, seconds: float) -> None:
        """Wait for sets that outlived their callers: they need the loops, the channels and the database."""
        try:
            async with asyncio.timeout(seconds):
                await asyncio.gather(*(servicer.drain() for servicer in self._servicers))
        except TimeoutError:
            log.warning("sets did not end within %.0f s; repeats with their keys will", seconds)


async def end(tasks: Collection[asyncio.Task[None]]) -> None:
    """Cancel tasks and wait until they have ended. More than once where need be: in Python 3.11 a cancellation is lost
    if what the task waits for happens in the same moment (`asyncio.wait_for`, which psycopg uses)."""
    while tasks:
        for task in tasks:
            task.cancel()
        _, tasks = await asyncio.wait(tasks, timeout=CANCEL_AGAIN_SECONDS)


async def _forever(name: str, loop: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            await loop()
            return
        except Exception:
            log.exception("background loop %s failed; starting it again", name)
            await asyncio.sleep(LOOP_RESTART_SECONDS)


def run(
    name: str, config_type: type[C], wire: Callable[[Process, C], Awaitable[None]], package: str = ""
) -> None:
    """Be the process `name` until told to stop. `package` holds the migrations; by default services.<name>."""
    config = load(config_type, name)
    logs.set_up(name, config.log_level)
    if (count := getattr(config, "workers", 1)) > 1:
        sys.exit(workers.supervise(name, count, config.metrics_listen))
    telemetry.set_up(name)
    try:
        asyncio.run(_main(config, wire, package or f"services.{name}"))
    except (psycopg.Error, PaymeshError, MigrationEdited, OSError, RuntimeError) as error:
        log.critical("%s cannot run: %s", name, error)
        sys.exit(1)
    finally:
        telemetry.shut_down()


def _tame_the_collector() -> None:
    """Nearly everything that a set leaves behind is freed by reference counts. The cycle collector's default of looking
    through the young objects after every 700 costs a tenth of the throughput and finds next to nothing."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


async def _main(config: C, wire: Callable[[Process, C], Awaitable[None]], package: str) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    workers.stop_with_parent(stop.set)
    for applied in await migrate(config.migration_dsn or config.database_dsn, package):
        log.info("applied migration %s", applied)
    if config.migration_dsn:
        await grant(config.migration_dsn, config.database_dsn)
    database = Database(config.database_dsn, pool_size_max=config.database_pool_size)
    await database.open()
    if config.metrics_listen:
        metrics.serve(config.metrics_listen)
    process = Process(database, config)
    process.closing(database.close)
    await wire(process, config)
    _tame_the_collector()
    await process._live(stop, config.drain_seconds)
