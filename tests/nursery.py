"""Where the tests' services are born: forked from a process that has loaded their code already.

`python -m services.payment` spends more than a second of processor time on loading libraries, and the tests start
hundreds of services. A nursery loads them once. From it a nursery for each service is forked, which loads what that
service imports and no more, and from that the service itself. What is forked becomes what the command would be: a
process of its own, with its own environment, arguments, output and end, that is killed like any other. It relies on
this, that nothing happens at import.

That the command itself works is said by the tests that use it: those of the local run, of the bench and of the
README, and `test_kit_process`.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import importlib.util
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

LIBRARIES = (
    "cryptography.hazmat.primitives.asymmetric.ed25519",
    "cryptography.hazmat.primitives.serialization",
    "fastapi",
    "google.protobuf.timestamp_pb2",
    "google.rpc.error_details_pb2",
    "grpc_health.v1._async",
    "grpc_reflection.v1alpha.reflection",
    "grpc_status.rpc_status",
    "httpx",
    "opentelemetry.sdk.trace.export",
    "orjson",
    "prometheus_client.multiprocess",
    "psycopg_pool",
    "pydantic_settings",
    "uuid_utils",
    "uvicorn",
    "valkey.asyncio",
)
"""What takes long to load. One that is forgotten here is loaded by those who need it."""
POLL_SECONDS = 0.01
WISH_BYTES_MAX = 128 * 1024
PR_SET_PDEATHSIG = 1


class Born:
    """A process that was forked: as much of `subprocess.Popen` as those need who watch over it."""

    def __init__(self, line: _Line, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._line = line

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs. Its id is its own until this has told its end."""
        if self.returncode is None:
            self.returncode = self._line.ask({"ended": self.pid})
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; raises subprocess.TimeoutExpired."""
        give_up_at = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if give_up_at is not None and time.monotonic() > give_up_at:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            time.sleep(POLL_SECONDS)
        return code

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)


class Nursery:
    """Forks services. All of them end with it, and it ends with us. May be used from any thread."""

    def __init__(self) -> None:
        ours, theirs = _pair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.nursery", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                cwd=Path(__file__).resolve().parent.parent,
                stdin=subprocess.DEVNULL,
            )
        self._libraries = _Line(ours)
        self._services: dict[str, _Line] = {}

    def start(self, module: str, environment: Mapping[str, str], log: Path, *, session: bool = False) -> Born:
        """Be `python -m module` in this environment, its output appended to `log`; in a session of its own if asked."""
        if module not in self._services:
            ours, theirs = _pair()
            with theirs:
                self._libraries.ask({"load": module}, theirs.fileno())
            self._services[module] = _Line(ours)
        line = self._services[module]
        wish = {"become": module, "environment": dict(environment), "log": str(log), "session": session}
        return Born(line, line.ask(wish))

    def close(self) -> None:
        """End it, and all that it has forked."""
        for line in (self._libraries, *self._services.values()):
            line.close()
        self._process.wait()


class _Line:
    """Questions to one nursery, each with its answer."""

    def __init__(self, connected: socket.socket) -> None:
        self._connected = connected
        self._lock = threading.Lock()

    def ask(self, wish: Mapping[str, Any], *descriptors: int) -> Any:
        with self._lock:
            socket.send_fds(self._connected, [json.dumps(wish).encode()], descriptors)
            answer = self._connected.recv(WISH_BYTES_MAX)
        assert answer, f"the nursery died of {wish}"
        return json.loads(answer)

    def close(self) -> None:
        self._connected.close()


def _pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def _serve(line: socket.socket) -> Mapping[str, Any]:
    """Fork what is wished for; returns in a fork only, with the wish that it is to become."""
    parent = os.getpid()
    while True:
        request, descriptors, *_ = socket.recv_fds(line, WISH_BYTES_MAX, 1)
        if not request:
            sys.exit()
        wish: dict[str, Any] = json.loads(request)
        if "ended" in wish:
            pid, status = os.waitpid(wish["ended"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        elif (answer := os.fork()) == 0:
            line.close()
            _die_with(parent)
            if "become" in wish:
                return wish
            _load(wish["load"])
            # What is there by now is there for good: no collector of a fork need look through it and copy its pages.
            gc.freeze()
            return _serve(socket.socket(fileno=descriptors[0]))
        for descriptor in descriptors:
            os.close(descriptor)
        line.send(json.dumps(answer).encode())


def _load(module: str) -> None:
    spec = importlib.util.find_spec(module)
    package = spec is not None and spec.submodule_search_locations is not None
    name = f"{module}.__main__" if package else module
    importlib.import_module(name)
    # It runs in each fork, under the name `__main__`.
    del sys.modules[name]


def _die_with(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def _become(wish: Mapping[str, Any]) -> None:
    """Take on everything by which a fork differs from a program that was just started."""
    if wish["session"]:
        os.setsid()
    log = os.open(wish["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    os.environ.clear()
    os.environ.update(wish["environment"])
    time.tzset()
    sys.argv = [wish["become"]]
    sys.orig_argv = [sys.executable, "-m", wish["become"]]


def main() -> None:
    """Load, then fork. Each fork leaves `_serve` and runs its module to the end, as an interpreter would."""
    for name in LIBRARIES:
        importlib.import_module(name)
    wish = _serve(socket.socket(fileno=int(sys.argv[1])))
    _become(wish)
    runpy.run_module(wish["become"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
