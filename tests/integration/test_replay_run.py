"""A replay against services that keep idempotency keys as the contract says and fail on demand.

The stand-ins remember requests by key, so that what is checked is what a shop would see: whatever goes wrong
on the way, each invoice is placed once and counted once, and a second run changes nothing.
"""

import asyncio
import json
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from paymesh.channel import open_channel
from paymesh.errors import Kind, PaymeshCallError
from paymesh.fraud.v1 import fraud_pb2, fraud_pb2_grpc
from paymesh.inventory.v1 import inventory_pb2, inventory_pb2_grpc
from paymesh.orchestrator.v1 import orchestrator_pb2, orchestrator_pb2_grpc
from paymesh.replay.invoices import Invoice, SoldLine
from paymesh.replay.plan import make_plan
from paymesh.replay.run import Mesh, Pace, Replayed, replay
from paymesh.replay.summary import place_invoices
from paymesh.result.v1 import failure_pb2

COMPLETED = orchestrator_pb2.SAGA_STATE_COMPLETED
COMPENSATED = orchestrator_pb2.SAGA_STATE_COMPENSATED
HEADER = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country\n"
CLIENT = Path(__file__).parents[2] / "clients" / "python"


def fail(kind: Any, reason: str, retry_after_ms: int = 0) -> failure_pb2.Failure:
    failure = failure_pb2.Failure(kind=kind, reason=reason, message="told to")
    if retry_after_ms:
        failure.retry_after.FromMilliseconds(retry_after_ms)
    return failure


class Shelf(inventory_pb2_grpc.InventoryServiceServicer, fraud_pb2_grpc.FraudServiceServicer):
    """Products with stock, and the allow list."""

    def __init__(self) -> None:
        self.stock: dict[str, int] = {}
        self.answers: dict[str, Any] = {}
        self.failing = False
        self.allowed: list[str] = []

    async def ListProducts(self, request: Any, context: Any) -> Any:
        return inventory_pb2.ListProductsResponse()

    async def AddListEntry(self, request: Any, context: Any) -> Any:
        self.allowed.append(request.value)
        return fraud_pb2.AddListEntryResponse()

    async def BatchCreateProducts(self, request: Any, context: Any) -> Any:
        return inventory_pb2.BatchCreateProductsResponse(
            results=[self._once(item, self._create) for item in request.items]
        )

    async def BatchAddStock(self, request: Any, context: Any) -> Any:
        return inventory_pb2.BatchAddStockResponse(
            results=[self._once(item, self._add) for item in request.items]
        )

    def _once(self, item: Any, do: Callable[[Any], Any]) -> Any:
        if item.idempotency_key in self.answers:
            result = type(self.answers[item.idempotency_key])()
            result.CopyFrom(self.answers[item.idempotency_key])
            result.replayed = True
            return result
        result = do(item.request)
        if result.failure.kind != failure_pb2.KIND_RETRYABLE:
            self.answers[item.idempotency_key] = result
        return result

    def _create(self, request: Any) -> Any:
        if self.failing:
            busy = fail(failure_pb2.KIND_RETRYABLE, "BUSY")
            return inventory_pb2.CreateProductResult(failure=busy)
        if request.sku in self.stock:
            exists = fail(failure_pb2.KIND_REFUSED, "PRODUCT_EXISTS")
            return inventory_pb2.CreateProductResult(failure=exists)
        self.stock[request.sku] = request.initial_quantity
        return inventory_pb2.CreateProductResult(response=inventory_pb2.CreateProductResponse())

    def _add(self, request: Any) -> Any:
        self.stock[request.sku] += request.quantity
        return inventory_pb2.AddStockResult(response=inventory_pb2.AddStockResponse())


class Desk(orchestrator_pb2_grpc.OrchestratorServiceServicer):
    """Places orders, each invoice's as `script` says; everything else completes at once."""

    def __init__(self) -> None:
        self.orders: dict[str, orchestrator_pb2.Order] = {}
        self.later: dict[str, tuple[Any, Any]] = {}
        """By key: what a dispatch or return has come to, and what was asked for."""
        self.calls: Counter[str] = Counter()
        self.script: dict[str, list[Any]] = {}
        """By reference: what the first calls come to; a Failure is answered and not remembered."""
        self.lose_answers = 0
        """So many batches are carried out and then not answered."""
        self.down = False

    async def ListSagas(self, request: Any, context: Any) -> Any:
        return orchestrator_pb2.ListSagasResponse()

    async def BatchDispatchOrders(self, request: Any, context: Any) -> Any:
        results = [
            self._later(item, orchestrator_pb2.DispatchOrderResult, orchestrator_pb2.DispatchOrderResponse)
            for item in request.items
        ]
        return orchestrator_pb2.BatchDispatchOrdersResponse(results=results)

    async def BatchReturnOrders(self, request: Any, context: Any) -> Any:
        results = [
            self._later(item, orchestrator_pb2.ReturnOrderResult, orchestrator_pb2.ReturnOrderResponse)
            for item in request.items
        ]
        return orchestrator_pb2.BatchReturnOrdersResponse(results=results)

    def _later(self, item: Any, result: Any, response: Any) -> Any:
        """By the key, as for orders: once, and as scripted."""
        key = item.idempotency_key
        replayed = key in self.later
        script = self.script.get(key) or [COMPLETED]
        act = self.later[key][0] if replayed else script.pop(0)
        if isinstance(act, failure_pb2.Failure):
            return result(failure=act)
        self.later.setdefault(key, (act, item.request))
        saga = orchestrator_pb2.Saga(state=act)
        if act != COMPLETED:
            saga.reason.code = "NOTHING_TO_CAPTURE"
        return result(response=response(saga=saga), replayed=replayed)

    async def BatchPlaceOrders(self, request: Any, context: Any) -> Any:
        if self.down:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        results = [self._place(item) for item in request.items]
        if self.lose_answers:
            self.lose_answers -= 1
            await context.abort(grpc.StatusCode.UNKNOWN, "Stream removed")
        return orchestrator_pb2.BatchPlaceOrdersResponse(results=results)

    def _place(self, item: Any) -> orchestrator_pb2.PlaceOrderResult:
        reference = item.request.order_reference
        self.calls[reference] += 1
        before = self.orders.get(item.idempotency_key)
        if before is not None:
            response = orchestrator_pb2.PlaceOrderResponse(order=before)
            return orchestrator_pb2.PlaceOrderResult(response=response, replayed=True)
        script = self.script.get(reference) or [COMPLETED]
        act = script.pop(0)
        if isinstance(act, failure_pb2.Failure):
            return orchestrator_pb2.PlaceOrderResult(failure=act)
        order = orchestrator_pb2.Order(order_id=f"ord_{reference}", order_reference=reference, state=act)
        if act != COMPLETED:
            order.reason.code = "INSUFFICIENT_FUNDS"
        self.orders[item.idempotency_key] = order
        response = orchestrator_pb2.PlaceOrderResponse(order=order)
        return orchestrator_pb2.PlaceOrderResult(response=response)


def new_services() -> tuple[Desk, Shelf]:
    return Desk(), Shelf()


@asynccontextmanager
async def serving(desk: Desk, shelf: Shelf) -> AsyncIterator[str]:
    """The address of one server for both."""
    server = grpc.aio.server()
    orchestrator_pb2_grpc.add_OrchestratorServiceServicer_to_server(desk, server)
    inventory_pb2_grpc.add_InventoryServiceServicer_to_server(shelf, server)
    fraud_pb2_grpc.add_FraudServiceServicer_to_server(shelf, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


def invoices(count: int, sku: str = "85123A") -> list[Invoice]:
    line = SoldLine(2, sku, "HOLDER", 6, 1530, "17850", "United Kingdom")
    return [
        Invoice(str(number), (line,), {sku: 6}, 1530, "GBP", "17850", "GB") for number in range(1, count + 1)
    ]


async def run(desk: Desk, shelf: Shelf, sold: list[Invoice], **pace: Any) -> Replayed:
    async with serving(desk, shelf) as address, open_channel(address, attempts_max=1) as channel:
        mesh = Mesh(
            orders=orchestrator_pb2_grpc.OrchestratorServiceStub(channel),
            inventory=inventory_pb2_grpc.InventoryServiceStub(channel),
        )
        plan = make_plan(sold, "m", "tok_visa")
        answered: list[int] = []
        replayed = await replay(plan, mesh, Pace(**{"patience_seconds": 5.0, **pace}), answered.append)
        assert sum(answered) == sum(answer.settled for answer in replayed.orders if answer.attempts)
        return replayed


def buckets(sold: list[Invoice], replayed: Replayed) -> dict[str, int]:
    return dict(Counter(one.bucket for one in place_invoices(sold, replayed)))


async def test_every_invoice_is_placed_once_and_a_second_run_changes_nothing() -> None:
    desk, shelf = new_services()
    sold = invoices(250)
    first = await run(desk, shelf, sold, set_size=20)
    assert buckets(sold, first) == {"completed": 250}
    assert shelf.stock == {"85123A": 1_500}
    assert not any(one.replayed for one in place_invoices(sold, first))
    second = await run(desk, shelf, sold, set_size=100)
    assert buckets(sold, second) == {"completed": 250}
    assert shelf.stock == {"85123A": 1_500}
    assert all(one.replayed for one in place_invoices(sold, second))
    assert len(desk.orders) == 250


async def test_product_that_exists_gets_the_stock_once() -> None:
    desk, shelf = new_services()
    shelf.stock["85123A"] = 1
    await run(desk, shelf, invoices(10))
    await run(desk, shelf, invoices(10))
    assert shelf.stock == {"85123A": 61}


async def test_another_file_with_the_same_product_adds_what_it_needs() -> None:
    desk, shelf = new_services()
    await run(desk, shelf, invoices(10))
    await run(desk, shelf, invoices(10)[:3])
    assert shelf.stock == {"85123A": 78}


async def test_orders_in_progress_and_retryable_are_asked_again_until_they_end() -> None:
    desk, shelf = new_services()
    busy = fail(failure_pb2.KIND_RETRYABLE, "OVERLOADED")
    slow = fail(failure_pb2.KIND_IN_PROGRESS, "IN_PROGRESS", retry_after_ms=200)
    desk.script = {"3": [busy, busy, COMPLETED], "7": [slow, COMPENSATED]}
    sold = invoices(10)
    loop = asyncio.get_running_loop()
    began = loop.time()
    replayed = await run(desk, shelf, sold)
    assert buckets(sold, replayed) == {"completed": 9, "compensated": 1}
    assert (desk.calls["3"], desk.calls["7"], desk.calls["1"]) == (3, 2, 1)
    assert loop.time() - began >= 0.2, "the time to wait was not honoured"


async def test_lost_answer_is_asked_for_again_and_not_taken_for_an_earlier_run() -> None:
    desk, shelf = new_services()
    desk.lose_answers = 2
    sold = invoices(10)
    replayed = await run(desk, shelf, sold, set_size=5)
    assert buckets(sold, replayed) == {"completed": 10}
    assert len(desk.orders) == 10
    assert not any(one.replayed for one in place_invoices(sold, replayed))


async def test_refusal_of_one_invoice_costs_its_neighbours_nothing() -> None:
    desk, shelf = new_services()
    desk.script = {"2": [fail(failure_pb2.KIND_REFUSED, "ORDER_REFERENCE_EXISTS")]}
    sold = invoices(3)
    replayed = await run(desk, shelf, sold)
    placed = place_invoices(sold, replayed)
    assert [one.bucket for one in placed] == ["completed", "refused", "completed"]
    assert placed[1].reason == "ORDER_REFERENCE_EXISTS"


async def test_order_that_never_ends_is_unresolved_after_patience() -> None:
    desk, shelf = new_services()
    desk.script = {"1": [fail(failure_pb2.KIND_IN_PROGRESS, "IN_PROGRESS")] * 1_000}
    sold = invoices(3)
    replayed = await run(desk, shelf, sold, patience_seconds=0.5)
    assert buckets(sold, replayed) == {"unresolved": 1, "completed": 2}


async def test_services_that_are_gone_are_not_hammered_with_the_rest_of_the_file() -> None:
    desk, shelf = new_services()
    desk.down = True
    sold = invoices(1_000)
    replayed = await run(desk, shelf, sold, set_size=10, sets_at_once=2, patience_seconds=0.2)
    assert buckets(sold, replayed) == {"unresolved": 1_000}
    assert Counter(answer.error.reason for answer in replayed.orders if answer.error)["NOT_SENT"] == 980


async def test_no_order_is_sent_before_its_products_are_in_stock() -> None:
    desk, shelf = new_services()
    shelf.failing = True
    sold = invoices(3)
    replayed = await run(desk, shelf, sold, patience_seconds=0.2)
    assert buckets(sold, replayed) == {"unresolved": 3}
    assert not desk.calls


async def test_batch_that_is_refused_as_a_whole_is_raised() -> None:
    desk, shelf = new_services()

    async def refuse(request: Any, context: Any) -> Any:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no")

    desk.BatchPlaceOrders = refuse  # type: ignore[method-assign]
    with pytest.raises(PaymeshCallError) as caught:
        await run(desk, shelf, invoices(3))
    assert caught.value.kind is Kind.INVALID


# The command


async def paymesh(*words: str, **environment: str) -> tuple[int, str, str]:
    """Run the command as a process: exit code, stdout, stderr."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "paymesh.cli", *words,
        env={"PYTHONPATH": str(CLIENT), "COLUMNS": "200", **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


def targets(address: str) -> dict[str, str]:
    names = ("PAYMESH_TARGET", "PAYMESH_INVENTORY_TARGET", "PAYMESH_FRAUD_TARGET")
    return dict.fromkeys(names, address)


async def test_command_reports_every_line_and_says_the_same_twice(tmp_path: Path) -> None:
    file = tmp_path / "orders.csv"
    file.write_text(
        HEADER
        + "1,a,A,2,x,1.50,,United Kingdom\n"
        + "1,b,B,0,x,1.50,,United Kingdom\n"
        + "C2,a,A,-1,x,1.50,,United Kingdom\n"
        + "\n"
        + "3,a,A,1,x,1.50,,Atlantis\n"
        + "4,a,A,1,x,1.50,,France\n"
        + "broken\n",
        encoding="utf-8",
    )
    desk, shelf = new_services()
    desk.script = {"4": [COMPENSATED]}
    async with serving(desk, shelf) as address:
        code, out, err = await paymesh("order", "replay", str(file), "--json", **targets(address))
        assert (code, err) == (0, "")
        again, out_again, _ = await paymesh("order", "replay", str(file), "--json", **targets(address))
        text_code, text, _ = await paymesh("order", "replay", str(file), **targets(address))
    first, second = json.loads(out), json.loads(out_again)
    assert first["adds_up"] is True
    assert first["lines"] == {
        "total": 8, "header": 1, "blank": 1, "continuation": 0, "rows": 6, "not_utf8": 0
    }  # fmt: skip
    assert first["rows"] == {
        "total": 6,
        "ordered": 2,
        "taken_back": 0,
        "rejected": {"QUANTITY_ZERO": 1, "CANCELLATION": 1, "WRONG_COLUMN_COUNT": 1},
        "of_rejected_invoices": 1,
    }
    assert first["invoices"] == {
        "total": 4,
        "to_place": 2,
        "taken_back": 0,
        "rejected": {"CANCELLATION": 1, "COUNTRY_UNKNOWN": 1},
        "completed": 1,
        "compensated": {"INSUFFICIENT_FUNDS": 1},
        "parked": {},
        "refused": {},
        "unresolved": {},
        "replayed": 0,
    }
    assert [(row["line"], row["reason"]) for row in first["rejected_rows"]] == [
        (3, "QUANTITY_ZERO"),
        (4, "CANCELLATION"),
        (8, "WRONG_COLUMN_COUNT"),
    ]
    assert first["amount"] == {
        "currency": "GBP", "to_place_minor": 450, "completed_minor": 300, "to_return_minor": 0, "returned_minor": 0
    }  # fmt: skip
    assert again == 0
    assert second["invoices"] == first["invoices"] | {"replayed": 2}
    assert len(desk.orders) == 2
    assert shelf.stock == {"a": 3}
    assert shelf.allowed == ["tok_visa"] * 3
    assert text_code == 0
    assert "QUANTITY_ZERO: 3" in text
    assert "COUNTRY_UNKNOWN: 3 (1 good rows)" in text


CANCELLED = (
    HEADER
    + "1,a,A,3,x,1.50,x,France\n"
    + "2,b,B,1,x,2.00,y,France\n"
    + "3,c,C,1,x,1.00,z,France\n"
    + "4,d,D,1,x,1.00,w,France\n"
    + "C5,a,A,-1,x,1.50,x,France\n"
    + "C6,a,A,-2,x,1.50,x,France\n"
    + "C7,b,B,-1,x,2.00,y,France\n"
    + "C8,c,C,-1,x,1.00,z,France\n"
    + "C9,d,D,-1,x,1.00,w,France\n"
    + "C9,d,D,-1,x,1.00,w,France\n"
)


async def test_cancellations_are_taken_back_once_from_orders_that_were_dispatched_for_it(
    tmp_path: Path,
) -> None:
    file = tmp_path / "orders.csv"
    file.write_text(CANCELLED, encoding="utf-8")
    desk, shelf = new_services()
    busy = fail(failure_pb2.KIND_IN_PROGRESS, "ORDER_BUSY")
    desk.script = {
        "2": [COMPENSATED],
        "invoice/1/dispatch": [busy, COMPLETED],
        "invoice/C6/return/1": [busy, busy, COMPLETED],
        "invoice/3/dispatch": [COMPENSATED],
        "invoice/4/dispatch": [fail(failure_pb2.KIND_REFUSED, "ORDER_DISPATCHED")],
    }
    async with serving(desk, shelf) as address:
        code, out, err = await paymesh("order", "replay", str(file), "--json", **targets(address))
        assert (code, err) == (0, "")
        before = dict(desk.later)
        desk.script = {"invoice/4/dispatch": [fail(failure_pb2.KIND_REFUSED, "ORDER_DISPATCHED")] * 2}
        again, out_again, _ = await paymesh("order", "replay", str(file), "--json", **targets(address))
        text_code, text, _ = await paymesh("order", "replay", str(file), **targets(address))
    first, second = json.loads(out), json.loads(out_again)
    assert first["adds_up"]
    assert second["adds_up"]
    assert (again, text_code, desk.later) == (0, 0, before), "a second run changes nothing"
    assert first["rows"] == {
        "total": 10, "ordered": 4, "taken_back": 5, "rejected": {"CANCELLATION": 1}, "of_rejected_invoices": 0
    }  # fmt: skip
    assert (first["invoices"]["taken_back"], first["invoices"]["rejected"]) == (5, {})
    assert first["returns"] == {
        "total": 5,
        "returned": 3,
        "parked": {},
        "refused": {"ORDER_NOT_COMPLETED": 1, "NOTHING_TO_CAPTURE": 1},
        "unresolved": {},
    }
    assert second["returns"] == first["returns"]
    assert (first["amount"]["to_return_minor"], first["amount"]["returned_minor"]) == (850, 550)
    asked = {key: request for key, (_, request) in before.items()}
    assert asked.keys() == {
        "invoice/1/dispatch",
        "invoice/3/dispatch",
        "invoice/C5/return/1",
        "invoice/C6/return/1",
        "invoice/C9/return/4",
    }
    assert asked["invoice/C6/return/1"].order_id == asked["invoice/1/dispatch"].order_id == "ord_1"
    assert [(line.sku, line.quantity) for line in asked["invoice/C6/return/1"].lines] == [("a", 2)]
    assert "C7 of 2  refused  ORDER_NOT_COMPLETED" in text
    assert "returns come to 5.50 GBP of 8.50 GBP" in text


async def test_command_exits_with_1_while_a_return_has_no_answer(tmp_path: Path) -> None:
    file = tmp_path / "orders.csv"
    file.write_text(CANCELLED, encoding="utf-8")
    desk, shelf = new_services()
    desk.script = {"invoice/C5/return/1": [fail(failure_pb2.KIND_IN_PROGRESS, "ORDER_BUSY")] * 1_000}
    async with serving(desk, shelf) as address:
        code, out, _ = await paymesh("order", "replay", str(file), "--patience", "0.3", **targets(address))
    assert code == 1
    assert "run the same file again" in out
    assert "C5 of 1  unresolved  ORDER_BUSY" in out


async def test_command_exits_with_1_while_orders_have_no_answer(tmp_path: Path) -> None:
    file = tmp_path / "orders.csv"
    file.write_text(HEADER + "1,a,A,2,x,1.50,,France\n", encoding="utf-8")
    desk, shelf = new_services()
    desk.script = {"1": [fail(failure_pb2.KIND_IN_PROGRESS, "IN_PROGRESS")] * 1_000}
    async with serving(desk, shelf) as address:
        code, out, _ = await paymesh("order", "replay", str(file), "--patience", "0.3", **targets(address))
    assert code == 1
    assert "run the same file again" in out


async def test_command_says_which_service_does_not_answer_and_sends_nothing(tmp_path: Path) -> None:
    file = tmp_path / "orders.csv"
    file.write_text(HEADER + "1,a,A,2,x,1.50,,France\n", encoding="utf-8")
    desk, shelf = new_services()
    async with serving(*new_services()) as gone:
        pass
    async with serving(desk, shelf) as address:
        environment = targets(address) | {"PAYMESH_TARGET": gone}
        code, _, err = await paymesh("order", "replay", str(file), **environment)
    assert code == 3
    assert err.startswith(f"error: no service answers at {gone}: start the mesh with `paymesh up`")
    assert len(err.splitlines()) == 1
    assert not shelf.stock
