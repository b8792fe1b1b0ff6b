"""Ten thousand callers in one process: `python -m tests.chaos.crowd TARGET MERCHANT CALLERS` places one order each,
all at once, and prints what they were told as one JSON object."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from contextlib import AsyncExitStack

import grpc.aio

from paymesh.channel import open_channel, with_key
from paymesh.errors import Kind, call_error
from paymesh.orchestrator.v1 import orchestrator_pb2 as pb
from paymesh.orchestrator.v1.orchestrator_pb2_grpc import OrchestratorServiceStub
from tests.orders import order

CHANNELS = 8
CALL_SECONDS = 180.0
"""More than all of them take on two cores that others use, too: nobody here is in a hurry."""
REPEATS_MAX = 200


async def _place(
    stub: OrchestratorServiceStub, key: str, request: pb.PlaceOrderRequest, told: Counter[str]
) -> None:
    """Place one order, and ask again as long as the mesh says that this makes sense."""
    for number in range(REPEATS_MAX):
        first = "first " if number == 0 else "later "
        try:
            answer = await stub.PlaceOrder(request, metadata=with_key(key), timeout=CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            failure = call_error(error)
            told[
                f"{first}{error.code().name}{'' if failure.retry_after else f' without RetryInfo: {failure}'}"
            ] += 1
            if failure.retry_after is None or failure.kind not in (Kind.RETRYABLE, Kind.IN_PROGRESS):
                return
            await asyncio.sleep(failure.retry_after.total_seconds())
        else:
            told[f"{first}answer"] += 1
            told[pb.SagaState.Name(answer.order.state)] += 1
            return


async def main(target: str, merchant: str, callers: int) -> None:
    """Everybody at once."""
    told: Counter[str] = Counter()
    async with AsyncExitStack() as channels:
        stubs = [
            # Channels with equal options would share one connection.
            OrchestratorServiceStub(
                await channels.enter_async_context(
                    open_channel(target, caller=f"crowd-{number}", attempts_max=1)
                )
            )
            for number in range(CHANNELS)
        ]
        await asyncio.gather(
            *(
                _place(stubs[number % CHANNELS], f"crowd-{number}", order(merchant), told)
                for number in range(callers)
            )
        )
    print(json.dumps(told))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
