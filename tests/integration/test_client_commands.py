"""Each command of `paymesh` against a server that answers as the contract says: output and exit code."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf import any_pb2
from google.rpc import status_pb2

from paymesh.inventory.v1 import inventory_pb2, inventory_pb2_grpc
from paymesh.orchestrator.v1 import orchestrator_pb2, orchestrator_pb2_grpc
from paymesh.payment.v1 import payment_pb2, payment_pb2_grpc
from paymesh.result.v1 import failure_pb2

CLIENT = Path(__file__).parents[2] / "clients" / "python"


class Shop(
    inventory_pb2_grpc.InventoryServiceServicer,
    orchestrator_pb2_grpc.OrchestratorServiceServicer,
    payment_pb2_grpc.PaymentServiceServicer,
):
    """One order, one payment and 2,500 products."""

    def __init__(self) -> None:
        self.state = orchestrator_pb2.SAGA_STATE_COMPLETED
        self.later = orchestrator_pb2.SAGA_STATE_COMPLETED
        self.failures: list[failure_pb2.Failure] = []
        self.requests: list[Any] = []
        self.keys: list[str] = []

    async def PlaceOrder(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        self.keys.append(dict(context.invocation_metadata())["idempotency-key"])
        if self.failures:
            await abort(context, self.failures.pop(0))
        return orchestrator_pb2.PlaceOrderResponse(order=self._order())

    async def GetOrder(self, request: Any, context: Any) -> Any:
        if request.order_id != "ord_1":
            nobody = failure_pb2.Failure(
                kind=failure_pb2.KIND_NOT_FOUND, reason="ORDER_NOT_FOUND", message="none"
            )
            await abort(context, nobody)
        return orchestrator_pb2.GetOrderResponse(order=self._order(), saga=self._saga())

    async def WatchOrder(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.state = orchestrator_pb2.SAGA_STATE_RUNNING
        yield orchestrator_pb2.WatchOrderResponse(order=self._order(), saga=orchestrator_pb2.Saga())
        self.state = orchestrator_pb2.SAGA_STATE_COMPLETED
        yield orchestrator_pb2.WatchOrderResponse(order=self._order(), saga=self._saga())

    async def DispatchOrder(self, request: Any, context: Any) -> Any:
        return orchestrator_pb2.DispatchOrderResponse(**await self._later(request, context))

    async def CancelOrder(self, request: Any, context: Any) -> Any:
        return orchestrator_pb2.CancelOrderResponse(**await self._later(request, context))

    async def ReturnOrder(self, request: Any, context: Any) -> Any:
        return orchestrator_pb2.ReturnOrderResponse(**await self._later(request, context))

    async def _later(self, request: Any, context: Any) -> dict[str, Any]:
        self.requests.append(request)
        self.keys.append(dict(context.invocation_metadata())["idempotency-key"])
        if self.failures:
            await abort(context, self.failures.pop(0))
        return {"order": self._order(), "saga": orchestrator_pb2.Saga(state=self.later)}

    async def ListSagas(self, request: Any, context: Any) -> Any:
        self.requests.append(request)
        return orchestrator_pb2.ListSagasResponse(sagas=[self._saga()])

    async def GetSaga(self, request: Any, context: Any) -> Any:
        return orchestrator_pb2.GetSagaResponse(saga=self._saga())

    async def GetPayment(self, request: Any, context: Any) -> Any:
        payment = payment_pb2.Payment(
            payment_id="pay_1", order_id="ord_1", state=payment_pb2.PAYMENT_STATE_AUTHORIZED
        )
        payment.amount.amount_minor, payment.amount.currency = 1530, "GBP"
        event = payment_pb2.PaymentEvent(version=1, type="PaymentAuthorized", data_json='{"code": "[A1]"}')
        return payment_pb2.GetPaymentResponse(payment=payment, events=[event])

    async def CreateProduct(self, request: Any, context: Any) -> Any:
        self.keys.append(dict(context.invocation_metadata())["idempotency-key"])
        return inventory_pb2.CreateProductResponse(product=product(request.sku, request.initial_quantity))

    async def GetProduct(self, request: Any, context: Any) -> Any:
        return inventory_pb2.GetProductResponse(product=product(request.sku, 7))

    async def ListProducts(self, request: Any, context: Any) -> Any:
        start = int(request.page_token or 0)
        end = min(start + request.page_size, 2_500)
        return inventory_pb2.ListProductsResponse(
            products=[product(f"p{number}", number) for number in range(start, end)],
            next_page_token=str(end) if end < 2_500 else "",
        )

    def _order(self) -> orchestrator_pb2.Order:
        order = orchestrator_pb2.Order(merchant_id="demo", order_id="ord_1", state=self.state)
        order.lines.add(sku="85123A", quantity=6)
        return order

    def _saga(self) -> orchestrator_pb2.Saga:
        saga = orchestrator_pb2.Saga(saga_id="saga_1", order_id="ord_1", kind="place", state=self.state)
        saga.history.add(step="reserve", direction=orchestrator_pb2.DIRECTION_DO, attempt=1, outcome=1)
        return saga


def product(sku: str, quantity: int) -> inventory_pb2.Product:
    return inventory_pb2.Product(sku=sku, name="[red]", on_hand_quantity=quantity, reserved_quantity=1)


async def abort(context: Any, failure: failure_pb2.Failure) -> None:
    """End a call the way a paymesh service does: with the failure in the status details."""
    packed = any_pb2.Any()
    packed.Pack(failure)
    details = status_pb2.Status(details=[packed]).SerializeToString()
    await context.abort(grpc.StatusCode.ABORTED, "failed", (("grpc-status-details-bin", details),))


@pytest.fixture
async def shop() -> AsyncIterator[tuple[Shop, str]]:
    """A shop and its address."""
    one = Shop()
    server = grpc.aio.server()
    inventory_pb2_grpc.add_InventoryServiceServicer_to_server(one, server)
    orchestrator_pb2_grpc.add_OrchestratorServiceServicer_to_server(one, server)
    payment_pb2_grpc.add_PaymentServiceServicer_to_server(one, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield one, f"127.0.0.1:{port}"
    await server.stop(None)


async def paymesh(address: str, *words: str) -> tuple[int, str, str]:
    """Run the command as a process: exit code, stdout, stderr."""
    names = ("PAYMESH_TARGET", "PAYMESH_INVENTORY_TARGET", "PAYMESH_PAYMENT_TARGET")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "paymesh.cli",
        *words,
        env={"PYTHONPATH": str(CLIENT), "COLUMNS": "200", **dict.fromkeys(names, address)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


PLACE = ("order", "place", "--line", "85123A=6", "--amount", "15.30")


async def test_order_is_placed_from_options_in_minor_units(shop: tuple[Shop, str]) -> None:
    one, address = shop
    code, out, err = await paymesh(address, *PLACE, "--key", "order-1", "--country", "FR")
    assert (code, err) == (0, "")
    assert "order ord_1 COMPLETED" in out
    assert one.keys == ["order-1"]
    [request] = one.requests
    assert (request.amount.amount_minor, request.amount.currency) == (1530, "GBP")
    assert (request.shipping_address.country, request.customer.billing_country) == ("FR", "FR")


async def test_order_is_placed_from_a_file_that_json_output_could_have_written(
    shop: tuple[Shop, str], tmp_path: Path
) -> None:
    one, address = shop
    file = tmp_path / "order.json"
    file.write_text('{"lines": [{"sku": "s", "quantity": "6"}], "amount": {"amount_minor": 5}}', "utf-8")
    code, out, _ = await paymesh(address, "order", "place", "--file", str(file), "--json", "-m", "me")
    assert code == 0
    assert json.loads(out)["order"]["state"] == "SAGA_STATE_COMPLETED"
    assert one.requests[0].merchant_id == "me"


async def test_order_in_progress_is_asked_for_again_with_the_same_key(shop: tuple[Shop, str]) -> None:
    one, address = shop
    one.failures = [failure_pb2.Failure(kind=failure_pb2.KIND_IN_PROGRESS, reason="IN_PROGRESS")] * 2
    code, _, _ = await paymesh(address, *PLACE)
    assert code == 0
    assert len(one.keys) == 3
    assert len(set(one.keys)) == 1


async def test_undone_order_and_refusal_give_exit_code_1(shop: tuple[Shop, str]) -> None:
    one, address = shop
    one.state = orchestrator_pb2.SAGA_STATE_COMPENSATED
    assert (await paymesh(address, *PLACE))[0] == 1
    one.failures = [
        failure_pb2.Failure(kind=failure_pb2.KIND_REFUSED, reason="IDEMPOTENCY_KEY_REUSED", message="used")
    ]
    assert (await paymesh(address, *PLACE))[::2] == (1, "error: IDEMPOTENCY_KEY_REUSED: used\n")


async def test_invalid_request_names_the_field_and_gives_exit_code_2(shop: tuple[Shop, str]) -> None:
    one, address = shop
    violation = failure_pb2.FieldViolation(field="lines[0].quantity", description="must be 1 or more")
    one.failures = [
        failure_pb2.Failure(kind=failure_pb2.KIND_INVALID, reason="INVALID_REQUEST", violations=[violation])
    ]
    code, out, err = await paymesh(address, *PLACE, "--json")
    assert (code, err) == (2, "error: INVALID_REQUEST: lines[0].quantity: must be 1 or more\n")
    assert json.loads(out)["error"]["violations"][0]["field"] == "lines[0].quantity"


async def test_order_that_does_not_exist_gives_exit_code_1(shop: tuple[Shop, str]) -> None:
    code, _, err = await paymesh(shop[1], "order", "get", "ord_2")
    assert (code, err) == (1, "error: ORDER_NOT_FOUND: none\n")


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("order get ord_1", "6 x 85123A"),
        ("saga show saga_1", "reserve      DONE"),
        ("saga list --state completed", "saga_1"),
        ("payment get pay_1", "PaymentAuthorized  code=[A1]"),
        ("product get 85123A", "[red]"),
        ("product add 85123A --quantity 9", "85123A"),
    ],
)
async def test_commands_show_text_to_people_and_json_to_machines(
    words: str, shown: str, shop: tuple[Shop, str]
) -> None:
    code, out, err = await paymesh(shop[1], *words.split())
    assert (code, err) == (0, "")
    assert shown in out
    code, out, err = await paymesh(shop[1], *words.split(), "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)


@pytest.mark.parametrize("words", ["dispatch ord_1", "cancel ord_1 --note late", "return ord_1"])
async def test_what_is_done_with_a_placed_order_is_repeated_with_its_key_until_it_is_final(
    words: str, shop: tuple[Shop, str]
) -> None:
    one, address = shop
    busy = failure_pb2.Failure(kind=failure_pb2.KIND_IN_PROGRESS, reason="ORDER_BUSY", message="wait")
    one.failures = [busy, busy]
    code, out, err = await paymesh(address, "order", *words.split(), "--key", "k")
    assert (code, err, one.keys) == (0, "", ["k"] * 3)
    assert "order ord_1" in out
    assert one.requests[0] == one.requests[2]
    assert (one.requests[0].merchant_id, one.requests[0].order_id) == ("demo", "ord_1")
    for state in (orchestrator_pb2.SAGA_STATE_COMPENSATED, orchestrator_pb2.SAGA_STATE_PARKED):
        one.later = state
        code, out, _ = await paymesh(address, "order", *words.split(), "--json")
        assert (code, json.loads(out)["order"]["order_id"]) == (1, "ord_1")
    one.failures = [
        failure_pb2.Failure(kind=failure_pb2.KIND_REFUSED, reason="ORDER_CANCELLED", message="gone")
    ]
    code, _, err = await paymesh(address, "order", *words.split())
    assert (code, err) == (1, "error: ORDER_CANCELLED: gone\n")


async def test_a_part_is_returned_for_what_it_is_worth(shop: tuple[Shop, str]) -> None:
    one, address = shop
    words = "return ord_1 --line a=2 --line b=1 --amount 5.10 --note broken"
    assert (await paymesh(address, "order", *words.split()))[0] == 0
    (request,) = one.requests
    assert [(line.sku, line.quantity) for line in request.lines] == [("a", 2), ("b", 1)]
    assert (request.amount.amount_minor, request.amount.currency, request.note) == (510, "GBP", "broken")


async def test_watch_prints_news_until_the_order_has_ended(shop: tuple[Shop, str]) -> None:
    code, out, _ = await paymesh(shop[1], "order", "watch", "ord_1")
    assert code == 0
    assert out.index("RUNNING") < out.index("reserve") < out.index("COMPLETED")
    code, out, _ = await paymesh(shop[1], "order", "watch", "ord_1", "--json")
    assert [json.loads(line)["order"]["state"] for line in out.splitlines()] == [
        "SAGA_STATE_RUNNING",
        "SAGA_STATE_COMPLETED",
    ]


@pytest.mark.parametrize(("limit", "found"), [("3", 3), ("2000", 2_000), ("9999", 2_500)])
async def test_lists_follow_pages_up_to_the_limit(limit: str, found: int, shop: tuple[Shop, str]) -> None:
    code, out, _ = await paymesh(shop[1], "product", "list", "--limit", limit, "--json")
    assert code == 0
    assert len(json.loads(out)["products"]) == found
