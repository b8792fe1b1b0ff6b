"""What `open_channel` adds to a call, seen from a real gRPC server in the same process.

The server answers as each test tells it and keeps what it saw: metadata, time left, number of attempts.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags

from paymesh.channel import (
    ATTEMPTS_MAX,
    MESSAGE_BYTES_MAX,
    current_traceparent,
    open_channel,
    was_replayed,
    with_key,
)
from paymesh.errors import Kind, PaymeshCallError, typed_errors
from paymesh.inventory.v1 import inventory_pb2, inventory_pb2_grpc
from paymesh.orchestrator.v1 import orchestrator_pb2, orchestrator_pb2_grpc

Context = Any
GET = inventory_pb2.GetProductRequest(merchant_id="m", sku="s")
TRACE_ID = 0x4BF92F3577B34DA6A3CE929D0E0E4736
SPAN_ID = 0x00F067AA0BA902B7


class Witness(inventory_pb2_grpc.InventoryServiceServicer, orchestrator_pb2_grpc.OrchestratorServiceServicer):
    """Remembers every call; fails the first `failures` of them with `code`."""

    def __init__(self) -> None:
        self.metadata: list[dict[str, Any]] = []
        self.seconds_left: list[float] = []
        self.failures = 0
        self.code = grpc.StatusCode.UNAVAILABLE
        self.name = ""

    async def GetProduct(self, request: Any, context: Context) -> Any:
        await self._seen(context)
        return inventory_pb2.GetProductResponse(product=inventory_pb2.Product(sku="s", name=self.name))

    async def CreateProduct(self, request: Any, context: Context) -> Any:
        await self._seen(context)
        context.set_trailing_metadata((("idempotent-replayed", "true"),))
        return inventory_pb2.CreateProductResponse()

    async def WatchOrder(self, request: Any, context: Context) -> AsyncIterator[Any]:
        await self._seen(context)
        yield orchestrator_pb2.WatchOrderResponse()
        yield orchestrator_pb2.WatchOrderResponse()

    async def _seen(self, context: Context) -> None:
        self.metadata.append(dict(context.invocation_metadata()))
        self.seconds_left.append(context.time_remaining())
        if len(self.metadata) <= self.failures:
            await context.abort(self.code, "told to")


@asynccontextmanager
async def serving(witness: Witness) -> AsyncIterator[str]:
    """The address of a server for `witness`."""
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", MESSAGE_BYTES_MAX)])
    inventory_pb2_grpc.add_InventoryServiceServicer_to_server(witness, server)
    orchestrator_pb2_grpc.add_OrchestratorServiceServicer_to_server(witness, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


async def call(
    witness: Witness, make: Callable[[Any], Any] = lambda stub: stub.GetProduct(GET), **settings: Any
) -> Any:
    """One call to the inventory service over a channel with `settings`."""
    async with serving(witness) as address, open_channel(address, **settings) as channel:
        return await make(inventory_pb2_grpc.InventoryServiceStub(channel))


async def test_call_without_a_timeout_gets_the_deadline_of_the_channel() -> None:
    witness = Witness()
    await call(witness, deadline_seconds=30.0)
    assert 20.0 < witness.seconds_left[0] < 30.5


async def test_timeout_of_the_call_wins_over_the_deadline_of_the_channel() -> None:
    witness = Witness()
    await call(witness, lambda stub: stub.GetProduct(GET, timeout=10.0), deadline_seconds=60.0)
    assert witness.seconds_left[0] < 10.5


async def test_stream_gets_deadline_and_caller_too() -> None:
    witness = Witness()
    async with (
        serving(witness) as address,
        open_channel(address, caller="shop", deadline_seconds=30.0) as channel,
    ):
        stub = orchestrator_pb2_grpc.OrchestratorServiceStub(channel)
        updates = [update async for update in stub.WatchOrder(orchestrator_pb2.WatchOrderRequest())]
    assert len(updates) == 2
    assert 20.0 < witness.seconds_left[0] < 30.5
    assert witness.metadata[0]["paymesh-caller"] == "shop"


async def test_unavailable_is_retried_until_it_works() -> None:
    witness = Witness()
    witness.failures = ATTEMPTS_MAX - 1
    await call(witness)
    assert len(witness.metadata) == ATTEMPTS_MAX
    assert witness.metadata[-1]["grpc-previous-rpc-attempts"] == str(ATTEMPTS_MAX - 1)


async def test_unavailable_for_ever_is_given_up_after_the_last_attempt() -> None:
    witness = Witness()
    witness.failures = 100
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(witness)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert len(witness.metadata) == ATTEMPTS_MAX


@pytest.mark.parametrize(
    "code",
    [code for code in grpc.StatusCode if code not in (grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE)],
    ids=lambda code: code.name,
)
async def test_no_other_status_is_retried(code: grpc.StatusCode) -> None:
    witness = Witness()
    witness.failures, witness.code = 1, code
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(witness)
    assert caught.value.code() == code
    assert len(witness.metadata) == 1


async def test_retries_can_be_turned_off() -> None:
    witness = Witness()
    witness.failures = 1
    with pytest.raises(grpc.aio.AioRpcError):
        await call(witness, attempts_max=1)
    assert len(witness.metadata) == 1


async def test_every_attempt_carries_the_same_key_and_caller() -> None:
    witness = Witness()
    witness.failures = 2
    request = inventory_pb2.CreateProductRequest(merchant_id="m", sku="s")
    await call(
        witness,
        lambda stub: stub.CreateProduct(request, metadata=with_key("invoice/536365")),
        caller="shop",
    )
    keys = {seen["idempotency-key"] for seen in witness.metadata}
    assert keys == {"invoice/536365"}
    assert {seen["paymesh-caller"] for seen in witness.metadata} == {"shop"}


async def test_caller_named_by_the_call_is_kept() -> None:
    witness = Witness()
    metadata = (("paymesh-caller", "other"),)
    await call(witness, lambda stub: stub.GetProduct(GET, metadata=metadata), caller="shop")
    assert witness.metadata[0]["paymesh-caller"] == "other"


async def test_caller_is_anonymous_by_default() -> None:
    witness = Witness()
    await call(witness)
    assert witness.metadata[0]["paymesh-caller"] == "anonymous"


async def test_metadata_object_of_the_caller_is_not_changed() -> None:
    witness = Witness()
    metadata = grpc.aio.Metadata(("x-own", "1"))
    await call(witness, lambda stub: stub.GetProduct(GET, metadata=metadata))
    assert list(metadata) == [("x-own", "1")]
    assert witness.metadata[0]["x-own"] == "1"


async def test_replay_is_told_from_a_first_result() -> None:
    witness = Witness()
    request = inventory_pb2.CreateProductRequest(merchant_id="m", sku="s")
    async with serving(witness) as address, open_channel(address) as channel:
        stub = inventory_pb2_grpc.InventoryServiceStub(channel)
        replayed, first = stub.CreateProduct(request, metadata=with_key("k")), stub.GetProduct(GET)
        await asyncio.gather(replayed, first)
        assert await was_replayed(replayed)
        assert not await was_replayed(first)


async def test_current_trace_context_travels_and_a_traceparent_set_by_hand_stands() -> None:
    witness = Witness()
    expected = f"00-{TRACE_ID:032x}-{SPAN_ID:016x}-01"
    span = NonRecordingSpan(SpanContext(TRACE_ID, SPAN_ID, False, TraceFlags(TraceFlags.SAMPLED)))
    async with serving(witness) as address, open_channel(address) as channel:
        stub = inventory_pb2_grpc.InventoryServiceStub(channel)
        await stub.GetProduct(GET)
        assert current_traceparent() == ""
        with trace.use_span(span):
            await stub.GetProduct(GET)
            assert current_traceparent() == expected
            await stub.GetProduct(GET, metadata=(("traceparent", "by-hand"),))
    assert [seen.get("traceparent") for seen in witness.metadata] == [None, expected, "by-hand"]


async def test_messages_above_the_default_limit_of_grpc_fit() -> None:
    witness = Witness()
    witness.name = "x" * (6 * 1024 * 1024)
    response = await call(witness)
    assert len(response.product.name) == len(witness.name)


async def test_nobody_there_fails_soon_and_says_so() -> None:
    async with serving(Witness()) as address:
        pass
    began = time.monotonic()
    async with open_channel(address) as channel:
        with pytest.raises(PaymeshCallError) as caught, typed_errors():
            await inventory_pb2_grpc.InventoryServiceStub(channel).GetProduct(GET)
    assert caught.value.unreachable
    assert caught.value.kind is Kind.UNKNOWN
    assert time.monotonic() - began < 5.0


async def test_wait_for_ready_waits_for_a_server_that_starts_late() -> None:
    witness = Witness()
    async with serving(Witness()) as address:
        pass
    async with open_channel(address, wait_for_ready=True, deadline_seconds=10.0) as channel:
        pending = asyncio.ensure_future(inventory_pb2_grpc.InventoryServiceStub(channel).GetProduct(GET))
        await asyncio.sleep(0.3)
        server = grpc.aio.server()
        inventory_pb2_grpc.add_InventoryServiceServicer_to_server(witness, server)
        server.add_insecure_port(address)
        await server.start()
        try:
            await pending
        finally:
            await server.stop(None)
    assert len(witness.metadata) == 1


@pytest.mark.parametrize("key", ["", "x" * 256, "tab\t", "ä", " leading", "trailing "])
def test_key_that_a_server_would_refuse_is_refused_before_it_is_sent(key: str) -> None:
    with pytest.raises(ValueError, match="key"):
        with_key(key)


@pytest.mark.parametrize("settings", [{"deadline_seconds": 0.0}, {"attempts_max": 0}, {"attempts_max": 6}])
async def test_channel_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        open_channel("127.0.0.1:1", **settings)
