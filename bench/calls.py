"""The other floor: what bare gRPC does here. Health checks, answered by the orchestrator's process without touching any
of our code: no single call to any service written in Python could be faster on this machine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from grpc_health.v1 import health_pb2

from bench.callers import Call
from bench.channels import Channels
from bench.phases import Task
from bench.tally import Tally

_PATH = "/grpc.health.v1.Health/Check"
_REQUEST = health_pb2.HealthCheckRequest().SerializeToString()


class Pings:
    """Callers that ask one health check after the other, over some channels."""

    def __init__(self, task: Task) -> None:
        self._callers = task.callers
        self._channels = Channels(task)

    async def open(self) -> None:
        """Connect."""
        await self._channels.open()

    async def close(self) -> None:
        """Close the connections."""
        await self._channels.close()

    async def run(self, tally: Tally, merchants: Sequence[str], until: float) -> None:
        """Call until then."""
        await asyncio.gather(*(self._call(number, tally, until) for number in range(self._callers)))

    async def _call(self, number: int, tally: Tally, until: float) -> None:
        check: Call = self._channels.all[number % len(self._channels.all)].unary_unary(
            _PATH, request_serializer=None, response_deserializer=health_pb2.HealthCheckResponse.FromString
        )
        while time.perf_counter() < until:
            began = time.perf_counter()
            answer = await check(_REQUEST)
            tally.calls += 1
            if answer.status == health_pb2.HealthCheckResponse.SERVING:
                tally.succeed(time.perf_counter() - began, 1)
            else:
                tally.failed["NOT_SERVING"] += 1
