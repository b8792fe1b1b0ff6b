"""Keeps one child process alive: start, wait until it serves, wait until it dies, start it again."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from deploy.local import child, mesh, ports
from deploy.local.errors import LocalRunError, last_log_lines
from deploy.local.postgres import EmbeddedPostgres
from deploy.local.restarts import RestartPolicy, RestartRecord
from deploy.local.valkey import EmbeddedValkey

POLL_SECONDS = 0.05
ENDED_POLL_SECONDS = 0.2
"""How often it is looked whether a program is still there: an idle mesh should not be busy with that."""
PROBE_SECONDS = 1.0
READY_SECONDS_MAX = 60.0
STORE_READY_SECONDS_MAX = 330.0
# Longer than the services' own drain, which ends calls in progress.
GRACE_SECONDS = 15.0


class State(StrEnum):
    """What a kept process is doing."""

    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    FAILED = "failed"
    STOPPED = "stopped"


class Program(Protocol):
    """Something that a `Keeper` can keep alive."""

    ready_seconds_max: float
    log: Path

    @property
    def address(self) -> str: ...

    @property
    def pid(self) -> int | None: ...

    @property
    def exit_code(self) -> int | None: ...

    def launch(self) -> None: ...

    async def until_ready(self) -> None: ...

    async def stop(self) -> None: ...


class ServiceProgram:
    """A gRPC service; ready when `grpc.health.v1` says SERVING."""

    ready_seconds_max = READY_SECONDS_MAX

    def __init__(
        self,
        command: Sequence[str],
        address: str,
        log: Path,
        environment: Mapping[str, str],
        folder: Path,
        spawn: child.Spawn = child.spawn,
    ) -> None:
        self.address = address
        self.log = log
        self._command = command
        self._environment = environment
        self._folder = folder
        self._spawn = spawn
        self._process: child.Running | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process and self._process.poll() is None else None

    @property
    def exit_code(self) -> int | None:
        return self._process.poll() if self._process else None

    def launch(self) -> None:
        if self._process is not None:
            child.kill_group(self._process)  # workers that outlived their parent
        self._process = self._spawn(
            self._command,
            log=self.log,
            environment=self._environment,
            death_signal=signal.SIGKILL,
            working_folder=self._folder,
        )

    async def until_ready(self) -> None:
        options = [("grpc.initial_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 200)]
        async with grpc.aio.insecure_channel(self.address, options=options) as channel:
            health: Any = health_pb2_grpc.HealthStub(channel)
            request = health_pb2.HealthCheckRequest(service="")
            while True:
                with contextlib.suppress(grpc.aio.AioRpcError):
                    answer = await health.Check(request, timeout=PROBE_SECONDS, wait_for_ready=True)
                    if answer.status == health_pb2.HealthCheckResponse.SERVING:
                        return
                await asyncio.sleep(POLL_SECONDS)

    async def stop(self) -> None:
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()
        give_up_at = time.monotonic() + GRACE_SECONDS
        while self._process.poll() is None and time.monotonic() < give_up_at:
            await asyncio.sleep(POLL_SECONDS)
        child.kill_group(self._process)
        self._process.wait()


class HttpServiceProgram(ServiceProgram):
    """A service that answers HTTP; ready when /healthz says 200."""

    async def until_ready(self) -> None:
        while not await asyncio.to_thread(ports.answers_http, self.address, "/healthz", PROBE_SECONDS):
            await asyncio.sleep(POLL_SECONDS)


class StoreProgram:
    """An embedded store."""

    ready_seconds_max = STORE_READY_SECONDS_MAX
    exit_code = None

    def __init__(self, store: EmbeddedPostgres | EmbeddedValkey) -> None:
        self._store = store
        self.log = store.log

    @property
    def address(self) -> str:
        return f"{mesh.LOOPBACK}:{self._store.port}"

    @property
    def pid(self) -> int | None:
        return self._store.pid

    def launch(self) -> None:
        self._store.launch()

    async def until_ready(self) -> None:
        await asyncio.to_thread(self._store.wait_ready)

    async def stop(self) -> None:
        await asyncio.to_thread(self._store.stop)


class Keeper:
    """Runs one program until told to stop, or until its restarts run out.

    `after` are the keepers whose programs must serve before this one is started, each time.
    """

    def __init__(
        self,
        name: str,
        program: Program,
        *,
        policy: RestartPolicy,
        on_change: Callable[["Keeper"], None],
        after: Sequence["Keeper"] = (),
    ) -> None:
        self.name = name
        self.program = program
        self.state = State.WAITING
        self.ready = asyncio.Event()
        self.last_end = ""
        self._record = RestartRecord(policy)
        self._on_change = on_change
        self._after = after

    @property
    def restarts(self) -> int:
        return self._record.count

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the program; one that ends it makes it count as not ready at once."""
        pid = self.program.pid
        if pid is None:
            raise ProcessLookupError(f"{self.name} does not run now")
        if number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGABRT):
            self.ready.clear()
        os.kill(pid, number)

    async def run(self) -> None:
        """Keep the program alive; returns never, raises LocalRunError when it gives up."""
        while True:
            for keeper in self._after:
                await keeper.ready.wait()
            self._become(State.STARTING)
            self.program.launch()
            served_seconds = await self._serve()
            self.ready.clear()
            await self._end_what_hangs()
            code = self.program.exit_code
            self.last_end = _ending(code) if self.last_end == "" else self.last_end
            decision = self._record.decide(time.monotonic(), served_seconds=served_seconds, exit_code=code)
            if isinstance(decision, str):
                self._become(State.FAILED)
                raise LocalRunError(
                    f"{self.name} is not restarted any more: {decision} (last: {self.last_end}). "
                    f"{self.program.log} ends:\n{last_log_lines(self.program.log)}"
                )
            self._become(State.RESTARTING)
            await asyncio.sleep(decision)

    async def stop(self) -> None:
        """Stop the program; call after `run` was cancelled."""
        self.ready.clear()
        await self.program.stop()
        self._become(State.STOPPED)

    async def _serve(self) -> float | None:
        """Wait until the program serves and then until it ends; the seconds it served, None for never."""
        self.last_end = ""
        probe = asyncio.create_task(self.program.until_ready())
        ended = asyncio.create_task(self._until_ended())
        try:
            limit = self.program.ready_seconds_max
            await asyncio.wait((probe, ended), timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                return None
            if not probe.done():
                self.last_end = f"did not serve within {limit:g} s"
                return None
            if (error := probe.exception()) is not None:
                self.last_end = str(error)
                return None
            self.ready.set()
            self._become(State.READY)
            since = time.monotonic()
            await ended
            return time.monotonic() - since
        finally:
            probe.cancel()
            ended.cancel()
            await asyncio.gather(probe, ended, return_exceptions=True)

    async def _until_ended(self) -> None:
        while self.program.pid is not None:
            await asyncio.sleep(ENDED_POLL_SECONDS)

    async def _end_what_hangs(self) -> None:
        if self.program.pid is not None:
            await self.program.stop()

    def _become(self, state: State) -> None:
        self.state = state
        self._on_change(self)


def _ending(code: int | None) -> str:
    if code is None:
        return "ended"
    return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"
