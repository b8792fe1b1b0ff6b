"""Scripts in Valkey, each run in one round trip and within a budget: who asks goes on without the answer when it is
late. Whether a store that keeps failing is asked at all is the `breaker`'s business."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from typing import Any

from valkey.asyncio import Valkey
from valkey.exceptions import NoScriptError


class Script:
    """A script and the hash that the server knows it by."""

    __slots__ = ("sha", "text")

    def __init__(self, text: bytes) -> None:
        self.text = text
        self.sha = hashlib.sha1(text, usedforsecurity=False).hexdigest()


class Scripts:
    """Runs scripts on one server. Nothing is connected before the first."""

    def __init__(self, url: str, *, connections_max: int, timeout_ms: int) -> None:
        self._client = Valkey.from_url(url, max_connections=connections_max)
        self._timeout_ms = timeout_ms
        self._abandoned: set[asyncio.Task[Any]] = set()

    async def run(self, script: Script, arguments: Sequence[Any], *, keys: int = 0) -> Any:
        """The script's reply; the first `keys` of its arguments are keys. Raises TimeoutError, ValkeyError, OSError.

        Work that is late is cancelled and *not* waited for: closing a connection to a host that is gone can itself take
        long. A reply that has come while the loop was busy with another set still counts, because `wait` looks once
        more when it wakes up; a timeout around the work would not.
        """
        task = asyncio.create_task(self._run(script, arguments, keys))
        try:
            done, _ = await asyncio.wait((task,), timeout=self._timeout_ms / 1000)
        finally:
            if not task.done():
                task.cancel()
                self._abandoned.add(task)
                task.add_done_callback(self._gone)
        if not done:
            raise TimeoutError(f"no answer within {self._timeout_ms} ms")
        return task.result()

    async def close(self) -> None:
        """Give the connections back."""
        await self._client.aclose()

    async def _run(self, script: Script, arguments: Sequence[Any], keys: int) -> Any:
        try:
            return await self._client.evalsha(script.sha, keys, *arguments)
        except NoScriptError:  # the first call, or Valkey started anew; EVAL makes it known
            return await self._client.eval(script.text, keys, *arguments)

    def _gone(self, task: asyncio.Task[Any]) -> None:
        self._abandoned.discard(task)
        if not task.cancelled():
            task.exception()  # seen; nobody is interested any more
