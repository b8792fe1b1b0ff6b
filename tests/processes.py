"""A service as a real process that a test may kill and start again."""

from __future__ import annotations

import atexit
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from deploy.local.ports import answers_http
from tests.nursery import Born, Nursery

ROOT = Path(__file__).resolve().parent.parent
READY_SECONDS = 60.0
# What starts listens within a tenth of a second; gRPC would look again after one second, and then after two.
PROMPT = (("grpc.initial_reconnect_backoff_ms", 20), ("grpc.max_reconnect_backoff_ms", 100))


def free_port() -> int:
    """A TCP port of the loopback interface that nobody uses at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@cache
def nursery() -> Nursery:
    """Where the services of this run are forked."""
    made = Nursery()
    atexit.register(made.close)
    return made


def spawn(
    program: Sequence[str],
    *,
    log: Path,
    environment: Mapping[str, str],
    death_signal: signal.Signals,
    working_folder: Path | None = None,
) -> Born:
    """The nursery as a way for a mesh to start `python -m module`; see `deploy.local.child.spawn`."""
    _, dash_m, module = program
    assert dash_m == "-m"
    assert death_signal == signal.SIGKILL
    return nursery().start(module, environment, log, session=True)


class ServiceProcess:
    """`python -m module` with an environment of its own; its output goes to `log`."""

    def __init__(
        self, module: str, environment: dict[str, str], log: Path, *, speaks_http: bool = False
    ) -> None:
        self._module = module
        self._speaks_http = speaks_http
        self._environment = environment
        self._log = log
        self._process: Born | subprocess.Popen[bytes] | None = None
        self.target = next(value for key, value in environment.items() if key.endswith("_LISTEN"))

    def start(self) -> None:
        """Start and wait until the health service says SERVING, or /healthz answers."""
        environment = {
            k: v for k, v in os.environ.items() if not k.startswith("PAYMESH_")
        } | self._environment
        if self._module.startswith(("services.", "sandbox.")):
            self._process = nursery().start(self._module, environment, self._log)
        else:  # a service that a test has made up, wherever its environment says
            command = [sys.executable, "-m", self._module]
            with self._log.open("ab") as log:
                self._process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
        self._wait_until_ready()

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal and wait for the end."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)
            self._process.wait(30)

    def send(self, number: signal.Signals) -> None:
        """Send a signal and do not wait."""
        assert self._process is not None
        self._process.send_signal(number)

    def exit_code(self, seconds: float = 30.0) -> int:
        """Wait for the end, at most so long."""
        assert self._process is not None
        return self._process.wait(seconds)

    @property
    def pid(self) -> int:
        """Process id of the last start."""
        assert self._process is not None
        return self._process.pid

    def log(self) -> str:
        """What it has written so far."""
        return self._log.read_text(errors="replace")

    def _wait_until_ready(self) -> None:
        assert self._process is not None
        until = time.monotonic() + READY_SECONDS
        if self._speaks_http:
            while not answers_http(self.target, "/healthz", 1.0):
                assert self._process.poll() is None, self.log()
                assert time.monotonic() < until, self.log()
                time.sleep(0.05)
            return
        with grpc.insecure_channel(self.target, options=PROMPT) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)  # generated: its methods have no types
            while True:
                if self._process.poll() is not None:
                    raise AssertionError(
                        f"{self._module} ended with {self._process.returncode}:\n{self.log()}"
                    )
                try:
                    answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=1, wait_for_ready=True)
                    if answer.status == health_pb2.HealthCheckResponse.SERVING:
                        return
                except grpc.RpcError:
                    pass
                if time.monotonic() > until:
                    raise AssertionError(
                        f"{self._module} was not ready in {READY_SECONDS:.0f} s:\n{self.log()}"
                    )
