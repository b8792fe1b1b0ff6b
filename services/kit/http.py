"""An HTTP server for an ASGI application, with the life of a kit process: it starts and it drains."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import uvicorn

from services.kit import workers

BACKLOG = 2_048
"""Connections that the kernel holds until they are taken."""
KEEP_ALIVE_SECONDS = 30
"""How long a quiet connection of a client is kept: longer than the pause between two requests of a busy shop."""
HEADER_BYTES_MAX = 16_384
"""Request line and headers together. A key, a token and what proxies add fit many times over."""
START_POLL_SECONDS = 0.01


class _Uvicorn(uvicorn.Server):
    """Leaves signals to the process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class HttpServer:
    """Serves `app` on `listen` ("host:port"); workers of one service share that port."""

    def __init__(self, listen: str, app: Any) -> None:
        self._listen = listen
        config = uvicorn.Config(
            app,
            lifespan="off",
            ws="none",
            access_log=False,
            log_config=None,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            h11_max_incomplete_event_size=HEADER_BYTES_MAX,
        )
        self._server = _Uvicorn(config)
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> int:
        """Bind and serve. Returns the port. Raises OSError."""
        bound = _bound(self._listen)
        self._task = asyncio.create_task(self._server.serve(sockets=[bound]), name="http")
        while not self._server.started:
            if self._task.done():
                raise RuntimeError("the HTTP server has ended at its start")
            await asyncio.sleep(START_POLL_SECONDS)
        port: int = bound.getsockname()[1]
        return port

    async def drain(self, grace_seconds: float) -> None:
        """Close the port, let requests in progress end, stop."""
        assert self._task is not None
        self._server.should_exit = True
        done, _ = await asyncio.wait((self._task,), timeout=grace_seconds)
        if not done:
            self._server.force_exit = True
            await self._task


def _bound(listen: str) -> socket.socket:
    host, _, port = listen.rpartition(":")
    host = host.strip("[]")
    # The protocol is named, because asyncio turns Nagle's algorithm off only where it is: an answer leaves in two
    # writes, and the second would wait 40 ms for the client's delayed acknowledgement of the first.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if workers.is_worker():
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    bound.bind((host, int(port)))
    bound.listen(BACKLOG)
    bound.setblocking(False)
    return bound
