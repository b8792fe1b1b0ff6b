"""The server around every service: health and reflection, malformed bytes, defects that must not leak, overload, and
the end: calls in progress and sets whose callers have gone are carried out.

A real service in a process of its own, on a real database; to hold its calls in the middle, the test locks a table.
A server inside the test shows what a handler of a certain kind would look like to a caller.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import psycopg
import pytest
import pytest_asyncio
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from deploy.local.stores import EmbeddedPostgres
from paymesh.channel import open_channel, was_replayed, with_key
from paymesh.inventory.v1 import inventory_pb2 as pb
from paymesh.inventory.v1 import inventory_pb2_grpc
from paymesh.inventory.v1.inventory_pb2_grpc import InventoryServiceStub
from services.kit.errors import Invalid, Kind, Overloaded, PaymeshError, Refused, Unknown, Violation
from services.kit.rpc.failures import from_call
from services.kit.rpc.server import Server
from tests.conftest import Services
from tests.processes import ServiceProcess

NAME = "paymesh.inventory.v1.InventoryService"
MERCHANT = "mer_1"
SERVING = health_pb2.HealthCheckResponse.SERVING


def product(sku: str) -> pb.CreateProductRequest:
    return pb.CreateProductRequest(merchant_id=MERCHANT, sku=sku, name=sku, initial_quantity=1)


def get(sku: str) -> pb.GetProductRequest:
    return pb.GetProductRequest(merchant_id=MERCHANT, sku=sku)


@pytest.fixture(scope="module")
def shared(postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """A service for all tests that leave it whole."""
    started = Services(postgres, tmp_path_factory.mktemp("shared"))
    started.start("inventory")
    yield started
    started.stop()


@pytest_asyncio.fixture
async def channel(shared: Services) -> AsyncIterator[grpc.aio.Channel]:
    """To the shared service."""
    async with open_channel(shared.last.target, caller="test", attempts_max=1) as opened:
        yield opened


@pytest.fixture
def stub(channel: grpc.aio.Channel) -> InventoryServiceStub:
    """Of the shared service."""
    return InventoryServiceStub(channel)


@pytest.fixture
def inventory(services: Services) -> ServiceProcess:
    """A service that a test may break or end."""
    return services.start("inventory", concurrent_rpcs_max="4", drain_seconds="5")


@pytest_asyncio.fixture
async def own(inventory: ServiceProcess) -> AsyncIterator[InventoryServiceStub]:
    """A stub of `inventory`."""
    async with open_channel(inventory.target, caller="test", attempts_max=1) as opened:
        yield InventoryServiceStub(opened)


class Hold:
    """A lock on the products: calls that touch them stand still."""

    def __init__(self, holding: psycopg.AsyncConnection[Any], watching: psycopg.AsyncConnection[Any]) -> None:
        self._holding = holding
        self._watching = watching

    async def until_waiting(self, sessions: int = 1) -> None:
        """Wait until so many transactions of the service stand at the lock."""
        query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'relation' AND datname = current_database()"
        async with asyncio.timeout(10):
            while (await (await self._watching.execute(query)).fetchone() or (0,))[0] < sessions:
                await asyncio.sleep(0.01)

    async def release(self) -> None:
        await self._holding.rollback()


@asynccontextmanager
async def products_locked(services: Services) -> AsyncIterator[Hold]:
    dsn = services.dsn("inventory")
    async with (
        await psycopg.AsyncConnection.connect(dsn) as holding,
        await psycopg.AsyncConnection.connect(dsn, autocommit=True) as watching,
    ):
        await holding.execute("LOCK TABLE products IN ACCESS EXCLUSIVE MODE")
        yield Hold(holding, watching)


async def failure(call: Awaitable[Any]) -> tuple[grpc.StatusCode, PaymeshError]:
    """The status and what it tells the caller."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return raised.value.code(), from_call(raised.value)


# --- what comes with every server ---


async def test_health_is_told_for_the_server_and_for_the_service(channel: grpc.aio.Channel) -> None:
    health: Any = health_pb2_grpc.HealthStub(channel)
    for name in ("", NAME):
        assert (await health.Check(health_pb2.HealthCheckRequest(service=name))).status == SERVING
    code, _ = await failure(health.Check(health_pb2.HealthCheckRequest(service="nobody")))
    assert code is grpc.StatusCode.NOT_FOUND


async def test_reflection_lists_the_services_and_knows_their_messages(channel: grpc.aio.Channel) -> None:
    stub: Any = reflection_pb2_grpc.ServerReflectionStub  # its types know the blocking channel only
    reflection = stub(channel)
    questions = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol=NAME),
    ]
    answers = [answer async for answer in reflection.ServerReflectionInfo(iter(questions))]
    names = {service.name for service in answers[0].list_services_response.service}
    assert names == {
        NAME,
        "paymesh.events.v1.EventLogService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    assert answers[1].file_descriptor_response.file_descriptor_proto


# --- what a caller may do wrong ---


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xff\xff\xff",  # no field at all
        b"\x0a\x05abc",  # a text of five bytes that ends after three
        b"\x0a\x02\xff\xfe",  # a text that is not UTF-8
    ],
    ids=["noise", "cut off", "bad UTF-8"],
)
@pytest.mark.parametrize("rpc", ["GetProduct", "CreateProduct", "BatchCreateProducts"])
async def test_malformed_bytes_are_an_invalid_argument(
    channel: grpc.aio.Channel, rpc: str, data: bytes
) -> None:
    call: Any = channel.unary_unary(f"/{NAME}/{rpc}")
    code, error = await failure(call(data, metadata=with_key("k")))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.kind is Kind.INVALID
    assert [violation.field for violation in error.violations] == ["(request)"]


async def test_a_thousand_faults_still_arrive_as_an_invalid_argument(stub: InventoryServiceStub) -> None:
    lines = [pb.StockLine(sku="ü" * 65, quantity=-1) for _ in range(1_000)]
    request = pb.ReserveStockRequest(merchant_id=MERCHANT, order_id="o", lines=lines)
    code, error = await failure(stub.ReserveStock(request, metadata=with_key("k")))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert error.violations[0].field == "lines[0].sku"


async def test_a_call_without_a_key_changes_nothing(stub: InventoryServiceStub) -> None:
    code, error = await failure(stub.CreateProduct(product("keyless")))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert [violation.field for violation in error.violations] == ["idempotency_key"]
    assert (await failure(stub.GetProduct(get("keyless"))))[0] is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("count", [0, 1_001])
async def test_a_batch_has_one_to_a_thousand_items(stub: InventoryServiceStub, count: int) -> None:
    items = [pb.CreateProductItem(idempotency_key=f"k{n}", request=product(f"p{n}")) for n in range(count)]
    code, error = await failure(stub.BatchCreateProducts(pb.BatchCreateProductsRequest(items=items)))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert [violation.field for violation in error.violations] == ["items"]


async def test_an_invalid_item_costs_its_neighbours_nothing(stub: InventoryServiceStub) -> None:
    items = [
        pb.CreateProductItem(idempotency_key="k1", request=product("a")),
        pb.CreateProductItem(idempotency_key="", request=product("b")),
        pb.CreateProductItem(idempotency_key="k3", request=product("")),
        pb.CreateProductItem(idempotency_key="k4", request=product("d")),
    ]
    response = await stub.BatchCreateProducts(pb.BatchCreateProductsRequest(items=items))
    fields = [[violation.field for violation in result.failure.violations] for result in response.results]
    assert fields == [[], ["idempotency_key"], ["sku"], []]
    assert [result.response.product.sku for result in response.results] == ["a", "", "", "d"]


async def test_a_replay_is_marked_whether_answer_or_refusal(stub: InventoryServiceStub) -> None:
    for replayed in (False, True):
        call = stub.CreateProduct(product("again"), metadata=with_key("again 1"))
        await call
        assert await was_replayed(call) is replayed
        call = stub.CreateProduct(product("again"), metadata=with_key("again 2"))
        _, error = await failure(call)
        assert error.reason == "PRODUCT_EXISTS"
        assert await was_replayed(call) is replayed


async def test_work_not_ready_by_the_deadline_goes_on_and_is_asked_for_again(
    shared: Services, stub: InventoryServiceStub
) -> None:
    async with products_locked(shared) as hold:
        code, error = await failure(stub.CreateProduct(product("late"), metadata=with_key("late"), timeout=1))
        assert code is grpc.StatusCode.ABORTED
        assert error.kind is Kind.IN_PROGRESS
        assert error.retry_after_ms
        await hold.release()
    answer = await stub.CreateProduct(product("late"), metadata=with_key("late"))
    assert answer.product.sku == "late"


# --- what may go wrong here ---


async def test_a_defect_is_logged_here_and_hidden_from_the_caller(
    services: Services, inventory: ServiceProcess, own: InventoryServiceStub
) -> None:
    with psycopg.connect(services.dsn("inventory")) as connection:
        connection.execute("ALTER TABLE products RENAME TO misplaced")
    calls: list[Awaitable[Any]] = [
        own.GetProduct(get("a")),
        own.CreateProduct(product("a"), metadata=with_key("k")),
    ]
    for call in calls:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call
        assert raised.value.code() is grpc.StatusCode.INTERNAL
        assert from_call(raised.value).kind is Kind.BUG
        shown = f"{raised.value.details()} {raised.value.trailing_metadata()}"
        for secret in ("relation", "products", "psycopg", "Traceback", "SELECT"):
            assert secret not in shown
    batch = pb.BatchCreateProductsRequest(
        items=[pb.CreateProductItem(idempotency_key=f"k{n}", request=product("a")) for n in range(2)]
    )
    for result in (await own.BatchCreateProducts(batch)).results:
        assert (result.failure.reason, "products" in result.failure.message) == ("INTERNAL", False)
    assert 'relation \\"products\\" does not exist' in inventory.log()


async def test_calls_past_the_limit_are_shed_and_the_others_served(
    services: Services, inventory: ServiceProcess, own: InventoryServiceStub
) -> None:
    for sku in "abcd":
        await own.CreateProduct(product(sku), metadata=with_key(sku))
    async with products_locked(services) as hold:
        held = [asyncio.ensure_future(own.GetProduct(get(sku))) for sku in "abcd"]
        await hold.until_waiting(4)
        code, error = await failure(own.GetProduct(get("a")))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (
            error.kind is Kind.UNKNOWN
        )  # no service said so: for all a caller knows, an answer was too large
        await hold.release()
        assert [answer.product.sku for answer in await asyncio.gather(*held)] == list("abcd")
    assert (await own.GetProduct(get("a"))).product.sku == "a"


# --- the end ---


async def test_a_call_in_progress_is_answered_before_the_process_ends(
    services: Services, inventory: ServiceProcess, own: InventoryServiceStub
) -> None:
    async with products_locked(services) as hold:
        call = own.CreateProduct(product("a"), metadata=with_key("k"))
        answer = asyncio.ensure_future(call)
        await hold.until_waiting()
        inventory.send(signal.SIGTERM)
        await no_longer_serving(inventory)
        assert not answer.done()
        await hold.release()
        assert (await answer).product.sku == "a"
    assert await asyncio.to_thread(inventory.exit_code, 10) == 0


async def test_a_set_whose_caller_has_gone_is_carried_out_before_the_process_ends(
    services: Services, inventory: ServiceProcess, own: InventoryServiceStub
) -> None:
    async with products_locked(services) as hold:
        call = own.CreateProduct(product("a"), metadata=with_key("k"))
        answer = asyncio.ensure_future(call)
        await hold.until_waiting()
        queued = own.CreateProduct(product("b"), metadata=with_key("l"))
        await hold.until_waiting(2)
        call.cancel()
        queued.cancel()
        with pytest.raises(asyncio.CancelledError):
            await answer
        inventory.send(signal.SIGTERM)
        await no_longer_serving(inventory)
        await asyncio.sleep(0.3)  # all calls have ended; without its sets, the process would be gone by now
        await hold.release()
    assert await asyncio.to_thread(inventory.exit_code, 10) == 0
    with psycopg.connect(services.dsn("inventory")) as connection:
        assert connection.execute("SELECT sku FROM products ORDER BY sku").fetchall() == [("a",), ("b",)]


async def test_work_that_does_not_end_does_not_keep_the_process_for_ever(services: Services) -> None:
    inventory = services.start("inventory", drain_seconds="0.2")
    async with open_channel(inventory.target, attempts_max=1) as channel, products_locked(services) as hold:
        call = InventoryServiceStub(channel).CreateProduct(product("a"), metadata=with_key("k"))
        answer = asyncio.ensure_future(call)
        await hold.until_waiting()
        started = time.monotonic()
        inventory.send(signal.SIGTERM)
        code, error = await failure(answer)
        assert error.kind is Kind.UNKNOWN, code
        assert await asyncio.to_thread(inventory.exit_code, 15) == 0
        assert time.monotonic() - started < 9
    assert "sets did not end" in inventory.log()


async def no_longer_serving(process: ServiceProcess) -> None:
    """Wait until a new caller is turned away."""
    async with asyncio.timeout(10):
        while True:
            async with grpc.aio.insecure_channel(process.target) as channel:
                health: Any = health_pb2_grpc.HealthStub(channel)
                try:
                    answer = await health.Check(health_pb2.HealthCheckRequest(), timeout=1)
                except grpc.aio.AioRpcError:
                    return
                if answer.status != SERVING:
                    return
            await asyncio.sleep(0.02)


# --- what a handler's words look like to a caller ---


class Speaker(inventory_pb2_grpc.InventoryServiceServicer):
    """Does in GetProduct whatever a test asks for."""

    def __init__(self) -> None:
        self.does: Callable[[Any], Awaitable[Message]]

    async def GetProduct(self, request: Any, context: Any) -> Any:
        return await self.does(context)


@asynccontextmanager
async def speaking(does: Callable[[Any], Awaitable[Message]]) -> AsyncIterator[InventoryServiceStub]:
    server = Server("127.0.0.1:0", concurrent_rpcs_max=100)
    speaker = Speaker()
    speaker.does = does
    server.add(inventory_pb2_grpc.add_InventoryServiceServicer_to_server, speaker, NAME)
    port = await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield InventoryServiceStub(channel)
    await server.drain(0)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (
            Refused("OUT_OF_STOCK", "nothing left: 0 %", facts={"sku": "größe"}),
            grpc.StatusCode.FAILED_PRECONDITION,
        ),
        (Unknown("COMMIT_UNKNOWN", "the connection broke"), grpc.StatusCode.UNKNOWN),
        (Overloaded("OVERLOADED", "full", retry_after_ms=200), grpc.StatusCode.RESOURCE_EXHAUSTED),
        (Invalid([Violation("a", "鍵" * 5_000)] * 500), grpc.StatusCode.INVALID_ARGUMENT),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, PaymeshError) else "",
)
async def test_an_error_that_a_handler_raises_reaches_the_caller(
    error: PaymeshError, code: grpc.StatusCode
) -> None:
    async def does(context: Any) -> Message:
        context.set_trailing_metadata((("idempotent-replayed", "true"),))
        raise error

    async with speaking(does) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.GetProduct(get("a"))
    assert raised.value.code() is code
    arrived = from_call(raised.value)
    assert (arrived.kind, arrived.reason, arrived.facts) == (error.kind, error.reason, error.facts)
    assert dict(raised.value.trailing_metadata() or ())["idempotent-replayed"] == "true"


async def test_an_exception_that_nobody_foresaw_tells_nothing() -> None:
    async def does(context: Any) -> Message:
        raise ValueError("password=hushhush")

    async with speaking(does) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.GetProduct(get("a"))
    assert raised.value.code() is grpc.StatusCode.INTERNAL
    assert "hushhush" not in f"{raised.value.details()} {raised.value.trailing_metadata()}"


async def test_a_handler_may_abort_by_itself(caplog: pytest.LogCaptureFixture) -> None:
    async def does(context: Any) -> Message:
        await context.abort(grpc.StatusCode.UNAVAILABLE, "as asked")
        raise AssertionError("abort returned")

    async with speaking(does) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.GetProduct(get("a"))
    assert (raised.value.code(), raised.value.details()) == (grpc.StatusCode.UNAVAILABLE, "as asked")
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
