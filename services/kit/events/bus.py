"""Streams on Valkey: how sets of events travel. A courier, not a memory: see the package.

Every source has one stream, every listener a consumer group of it. An entry is a whole `EventSet`, for what an entry
costs does not depend on its size. Entries that were read by a process that died are claimed by another one. Streams are
short: whoever was away for longer asks the source.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Sequence
from typing import NamedTuple

from valkey.asyncio import Valkey
from valkey.exceptions import ResponseError, ValkeyError

ENTRIES_MAX = 256
"""Entries that a stream keeps, about. With `SET_BYTES_MAX` a stream takes 128 MB at most, and mostly a tenth of it."""
SET_BYTES_MAX = 512 * 1024
"""Payload of one entry, about; an event that is larger travels alone."""
BLOCK_MS = 2_000
"""How long a read waits for news. Longer saves nothing any more; a process that ends does not want to wait for it."""
TIMEOUT_SECONDS = 5.0
"""For an answer, besides what a read waits. A server that is well answers within a millisecond."""
SEND_SECONDS = 2.0
"""The same for what is sent, which has nothing to wait for; shorter than the lease of the relay who sends."""
CLAIM_IDLE_MS = 10_000
"""An entry that was read so long ago and not applied was read by a process that is gone, or has long lost its turn."""
CONSUMER_IDLE_MS = 3_600_000
"""A consumer without entries that has not been heard of for so long is forgotten."""

BusError = (ValkeyError, OSError, TimeoutError)
"""What says that the bus is away."""


class Entry(NamedTuple):
    """One entry of a stream."""

    id: bytes
    body: bytes


class Bus:
    """Nothing is connected before the first call. All methods raise one of `BusError`."""

    def __init__(self, url: str) -> None:
        self._client = Valkey.from_url(
            url, socket_timeout=BLOCK_MS / 1000 + TIMEOUT_SECONDS, socket_connect_timeout=TIMEOUT_SECONDS
        )
        self._consumer = f"{socket.gethostname()}-{os.getpid()}-{os.urandom(4).hex()}"

    async def send(self, source: str, body: bytes) -> None:
        """Append to the stream of `source`."""
        async with asyncio.timeout(SEND_SECONDS):
            await self._client.xadd(_stream(source), {"set": body}, maxlen=ENTRIES_MAX, approximate=True)

    async def join(self, source: str, listener: str) -> None:
        """Make the listener's group of that stream, if there is none. It begins with the oldest entry: what was applied
        before is recognized."""
        try:
            await self._client.xgroup_create(_stream(source), listener, id="0", mkstream=True)
        except ResponseError as error:
            if not str(error).startswith("BUSYGROUP"):
                raise
        for consumer in await self._client.xinfo_consumers(_stream(source), listener):
            if consumer["pending"] == 0 and consumer["idle"] > CONSUMER_IDLE_MS:
                await self._client.xgroup_delconsumer(_stream(source), listener, consumer["name"])

    async def receive(self, source: str, listener: str, count: int, block_ms: int = BLOCK_MS) -> list[Entry]:
        """Entries that nobody of the group has read, oldest first; waits for one, and may return none. Raises
        ResponseError when the group is gone, as after FLUSHALL."""
        answer = await self._client.xreadgroup(
            listener, self._consumer, {_stream(source): ">"}, count=count, block=block_ms
        )
        return [Entry(id_, fields[b"set"]) for _, entries in answer or [] for id_, fields in entries]

    async def claim(self, source: str, listener: str, count: int) -> list[Entry]:
        """Entries that somebody else has read long ago and not applied."""
        _, entries, *_ = await self._client.xautoclaim(
            _stream(source), listener, self._consumer, CLAIM_IDLE_MS, count=count
        )
        # An entry that was trimmed meanwhile has no fields.
        return [Entry(id_, fields[b"set"]) for id_, fields in entries if fields]

    async def settle(self, source: str, listener: str, ids: Sequence[bytes]) -> None:
        """These entries need not be delivered again."""
        if ids:
            await self._client.xack(_stream(source), listener, *ids)

    async def close(self) -> None:
        """Give the connections back."""
        await self._client.aclose()


def _stream(source: str) -> str:
    return f"paymesh:events:{source}"
