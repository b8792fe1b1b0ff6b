"""Several processes for one service on one port.

The parent starts `count` copies of its own command, which share the port by SO_REUSEPORT, and does nothing but keep
them alive: it opens no port of the service, no database and no gRPC object. They are started and not forked, so that
nothing of a library's state is inherited half-way, and the metrics of all can be added up on one page, the parent's.

A worker that dies is started again; one that dies young takes all with it, because something is wrong that a restart
does not cure. The workers hold the reading end of a pipe as standard input: when the parent is gone, however it
ended, they drain and end as well.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

from services.kit import metrics

log = logging.getLogger(__name__)

WORKER_VARIABLE = "PAYMESH_WORKER"
"""Set for a worker: it shares its port, and ends with its parent."""
YOUNG_SECONDS = 5.0
"""A worker that ends before this has not served: its configuration or its database is wrong."""
POLL_SECONDS = 0.1


def is_worker() -> bool:
    """Whether this process is one of several that share a port."""
    return WORKER_VARIABLE in os.environ


def stop_with_parent(stop: Callable[[], None]) -> None:
    """Have `stop` called when the parent of this worker is gone; does nothing in a process that is no worker."""
    if not is_worker():
        return
    loop = asyncio.get_running_loop()

    def gone() -> None:
        loop.remove_reader(sys.stdin.fileno())
        stop()

    loop.add_reader(sys.stdin.fileno(), gone)


def supervise(name: str, count: int, metrics_listen: str) -> int:
    """Be the parent of `count` workers of service `name` until told to stop; returns the exit code."""
    folder = tempfile.mkdtemp(prefix=f"paymesh-{name}-metrics-")
    prefix = f"PAYMESH_{name.upper()}_"
    environment = {
        **os.environ,
        WORKER_VARIABLE: "1",
        f"{prefix}WORKERS": "1",
        f"{prefix}METRICS_LISTEN": "",
        "PROMETHEUS_MULTIPROC_DIR": folder,
    }
    asked_to_stop = False

    def on_signal(*_: object) -> None:
        nonlocal asked_to_stop
        asked_to_stop = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    reading, writing = os.pipe()
    started: dict[subprocess.Popen[bytes], float] = {}

    def start() -> None:
        worker = subprocess.Popen(
            [sys.executable, *sys.orig_argv[1:]], env=environment, stdin=reading, pass_fds=()
        )
        started[worker] = time.monotonic()

    try:
        if metrics_listen:
            metrics.serve_workers(metrics_listen, folder)
        for _ in range(count):
            start()
        while not asked_to_stop:
            for worker in [worker for worker in started if worker.poll() is not None]:
                lived_seconds = time.monotonic() - started.pop(worker)
                log.warning(
                    "worker %d ended with %d after %.0f s", worker.pid, worker.returncode, lived_seconds
                )
                if lived_seconds < YOUNG_SECONDS:
                    return worker.returncode or 1
                start()
            time.sleep(POLL_SECONDS)
        return 0
    finally:
        for worker in started:
            worker.terminate()
        for worker in started:
            worker.wait()
        os.close(reading)
        os.close(writing)
        shutil.rmtree(folder, ignore_errors=True)
