"""Starting, finding and stopping one child process of the local run."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from deploy.local import tether
from deploy.local.account import Account


class Running(Protocol):
    """A process that was started: what we use of `subprocess.Popen`."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def terminate(self) -> None: ...


class Spawn(Protocol):
    """A way to start a service; `spawn` is the one, and tests have a quicker one."""

    def __call__(
        self,
        program: Sequence[str],
        *,
        log: Path,
        environment: Mapping[str, str],
        death_signal: signal.Signals,
        working_folder: Path | None = None,
    ) -> Running: ...


def spawn(
    program: Sequence[str],
    *,
    log: Path,
    environment: Mapping[str, str],
    death_signal: signal.Signals,
    account: Account | None = None,
    working_folder: Path | None = None,
) -> subprocess.Popen[bytes]:
    """Start a program that dies with us, its output appended to `log`.

    It gets a session of its own, so that Ctrl-C in a terminal reaches only the supervisor, which then stops
    everything in order. Call it from a thread that lives as long as the program should (see `tether`).
    """
    identity = [str(account.uid), str(account.gid)] if account else ["-", "-"]
    tied = [sys.executable, "-I", "-S", tether.__file__, str(os.getpid()), str(int(death_signal)), *identity]
    with log.open("ab") as output:
        return subprocess.Popen(
            [*tied, "--", *program],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            cwd=working_folder,
            start_new_session=True,
        )


def stop(process: subprocess.Popen[bytes], steps: Sequence[tuple[signal.Signals, float]]) -> None:
    """Send each signal in turn and wait its seconds until the process has ended; then kill its group."""
    for step, grace_seconds in steps:
        if process.poll() is not None:
            break
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(step)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(grace_seconds)
    kill_group(process)
    process.wait()


def kill_group(process: Running) -> None:
    """Kill whatever is left of the process and of its own children."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def orphans(name: str, working_folder: Path) -> list[int]:
    """Ids of processes of that name whose working folder is the given one: what a killed run left behind.

    Read from /proc; on a system without it nothing is found, and the port that is still taken tells the user.
    """
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        # A process may end while it is looked at, or belong to somebody else.
        with contextlib.suppress(OSError):
            if (entry / "comm").read_text().strip() == name and (entry / "cwd").readlink() == working_folder:
                found.append(int(entry.name))
    return found


def end_orphans(name: str, working_folder: Path, polite: signal.Signals, grace_seconds: float) -> None:
    """Stop what a killed run left behind, politely first; only call while holding the folder's lock."""
    for step, seconds in ((polite, grace_seconds), (signal.SIGKILL, 5.0)):
        give_up_at = time.monotonic() + seconds
        for pid in orphans(name, working_folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, step)
        while orphans(name, working_folder) and time.monotonic() < give_up_at:
            time.sleep(0.05)
