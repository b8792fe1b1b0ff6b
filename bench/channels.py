"""The connections of a load generator."""

from __future__ import annotations

import asyncio

import grpc.aio

from bench.phases import Task
from paymesh.channel import channel_options


class Channels:
    """As many as the task says, to its target."""

    def __init__(self, task: Task) -> None:
        # Channels of one process share a connection to the same target unless they are told not to.
        options = [*channel_options(), ("grpc.use_local_subchannel_pool", 1)]
        self.all = [grpc.aio.insecure_channel(task.target, options=options) for _ in range(task.channels)]

    async def open(self) -> None:
        """Connect."""
        await asyncio.gather(*(channel.channel_ready() for channel in self.all))

    async def close(self) -> None:
        """Close the connections."""
        for channel in self.all:
            await channel.close()
