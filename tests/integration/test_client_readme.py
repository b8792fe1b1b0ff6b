"""The program in the client's README runs as it stands and does what the text says."""

import asyncio
import re
import sys
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from paymesh.orchestrator.v1 import orchestrator_pb2, orchestrator_pb2_grpc

CLIENT = Path(__file__).parents[2] / "clients" / "python"


class Desk(orchestrator_pb2_grpc.OrchestratorServiceServicer):
    """Completes every order, or refuses it when `full`."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        self.full = False

    async def PlaceOrder(self, request: Any, context: Any) -> Any:
        self.seen.append(dict(context.invocation_metadata()))
        if self.full:
            await context.abort(grpc.StatusCode.ABORTED, "not yet")
        order = orchestrator_pb2.Order(order_id="ord_1", state=orchestrator_pb2.SAGA_STATE_COMPLETED)
        return orchestrator_pb2.PlaceOrderResponse(order=order)


@pytest.mark.parametrize(
    ("full", "printed"),
    [(False, "ord_1 SAGA_STATE_COMPLETED"), (True, "ABORTED send it again with the same key")],
)
async def test_program_of_the_readme_places_an_order(full: bool, printed: str) -> None:
    [program] = re.findall(r"```python\n(.*?)```", (CLIENT / "README.md").read_text("utf-8"), re.DOTALL)
    desk = Desk()
    desk.full = full
    server = grpc.aio.server()
    orchestrator_pb2_grpc.add_OrchestratorServiceServicer_to_server(desk, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            program.replace("127.0.0.1:7100", f"127.0.0.1:{port}"),
            env={"PYTHONPATH": str(CLIENT)},
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await process.communicate()
    finally:
        await server.stop(None)
    assert process.returncode == 0
    assert out.decode().strip() == printed
    assert desk.seen[0]["idempotency-key"] == "order-1001"
    assert desk.seen[0]["paymesh-caller"] == "my-shop"
