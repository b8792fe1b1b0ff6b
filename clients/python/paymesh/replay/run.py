"""Sends a plan to the mesh: products first, then the orders in sets, each until it has its answer.

An item that is retryable, in progress or unknown is sent again with the same key, after the time that the
service names. Each set is given `patience_seconds`; what has no answer by then is unresolved. When a whole
set got nowhere the rest is not sent: the services are gone, and the keys make it safe to run the file again.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from paymesh.channel import current_traceparent, with_key
from paymesh.errors import Kind, PaymeshCallError, failure_error, typed_errors
from paymesh.fraud.v1 import fraud_pb2, fraud_pb2_grpc
from paymesh.inventory.v1 import inventory_pb2, inventory_pb2_grpc
from paymesh.orchestrator.v1 import orchestrator_pb2, orchestrator_pb2_grpc
from paymesh.replay.plan import Plan, make_key
from paymesh.result.v1 import failure_pb2

SET_SIZE = 100
SETS_AT_ONCE = 4
"""Enough to keep the mesh busy while one set waits for its slowest order."""

BATCH_DEADLINE_SECONDS = 30.0
PATIENCE_SECONDS = 60.0
BACKOFF_SECONDS = 0.05
BACKOFF_SECONDS_MAX = 2.0


NOT_SENT = PaymeshCallError(Kind.UNKNOWN, "NOT_SENT", "not sent, since earlier ones had no answer")
NO_STOCK = PaymeshCallError(Kind.UNKNOWN, "NOT_SENT", "not sent, since the products are not all in stock")


class BatchResult(Protocol):
    """What every `…Result` message of a batch has in common."""

    @property
    def failure(self) -> failure_pb2.Failure: ...

    @property
    def replayed(self) -> bool: ...

    def HasField(self, field_name: Any) -> bool: ...  # noqa: N802  (protobuf's own name)


Item = TypeVar("Item")
Result = TypeVar("Result", bound=BatchResult)
OnAnswer = Callable[[int], None]


@dataclass
class Answer(Generic[Result]):
    """What became of one item of a batch."""

    result: Result | None = None
    """The last result; None when no call that carried the item was answered."""
    error: PaymeshCallError | None = None
    """Why it was not carried out; None when it was."""
    attempts: int = 0
    """How many calls carried the item until this answer."""

    @property
    def replayed(self) -> bool:
        """True when an earlier run had been given this answer already. After a lost answer of our own it
        cannot be told, and is not claimed."""
        return self.result is not None and self.result.replayed and self.attempts == 1

    @property
    def settled(self) -> bool:
        """True when sending it again could not change the answer."""
        return self.error is None or not self.error.kind.worth_repeating


@dataclass
class Replayed:
    """The answers to a plan, in the order of its orders and products."""

    orders: list[Answer[orchestrator_pb2.PlaceOrderResult]] = field(default_factory=list)
    products: list[Answer[inventory_pb2.CreateProductResult]] = field(default_factory=list)
    top_ups: list[Answer[inventory_pb2.AddStockResult]] = field(default_factory=list)
    """Only for products that existed."""


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """The services that a replay talks to."""

    orders: orchestrator_pb2_grpc.OrchestratorServiceStub
    inventory: inventory_pb2_grpc.InventoryServiceStub


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How hard to push and how long to wait."""

    set_size: int = SET_SIZE
    """Orders per call, 1 to 1,000."""
    sets_at_once: int = SETS_AT_ONCE
    patience_seconds: float = PATIENCE_SECONDS


async def allow_card(fraud: fraud_pb2_grpc.FraudServiceStub, merchant_id: str, card_token: str) -> None:
    """Put the card on the merchant's allow list: a whole file on one card looks like card testing, and
    velocity rules made for shoppers would turn most of it down. Doing it twice changes nothing."""
    request = fraud_pb2.AddListEntryRequest(
        merchant_id=merchant_id,
        kind=fraud_pb2.LIST_KIND_ALLOW,
        subject=fraud_pb2.LIST_SUBJECT_CARD,
        value=card_token,
        note="paymesh order replay",
    )
    with typed_errors():
        await fraud.AddListEntry(request, metadata=with_key(make_key("replay", "allow", card_token)))


async def check_inventory(inventory: inventory_pb2_grpc.InventoryServiceStub, merchant_id: str) -> None:
    """Ask something harmless, so that a service that is not there is noticed before anything is sent."""
    with typed_errors():
        await inventory.ListProducts(inventory_pb2.ListProductsRequest(merchant_id=merchant_id, page_size=1))


async def check_orders(orders: orchestrator_pb2_grpc.OrchestratorServiceStub, merchant_id: str) -> None:
    """As `check_inventory`."""
    with typed_errors():
        await orders.ListSagas(orchestrator_pb2.ListSagasRequest(merchant_id=merchant_id, page_size=1))


async def replay(plan: Plan, mesh: Mesh, pace: Pace, on_answer: OnAnswer) -> Replayed:
    """Send the plan. `on_answer` is told how many orders were settled, each time some are.

    Refusals, declines and unresolved orders are answers. PaymeshCallError is raised only for what no
    repetition mends, such as a batch that is refused as a whole.
    """
    replayed = Replayed()

    async def create(items: Sequence[inventory_pb2.CreateProductItem]) -> Sequence[Any]:
        request = inventory_pb2.BatchCreateProductsRequest(items=items)
        response = await mesh.inventory.BatchCreateProducts(request, timeout=BATCH_DEADLINE_SECONDS)
        return response.results

    async def add(items: Sequence[inventory_pb2.AddStockItem]) -> Sequence[Any]:
        request = inventory_pb2.BatchAddStockRequest(items=items)
        response = await mesh.inventory.BatchAddStock(request, timeout=BATCH_DEADLINE_SECONDS)
        return response.results

    async def place(items: Sequence[orchestrator_pb2.PlaceOrderItem]) -> Sequence[Any]:
        request = orchestrator_pb2.BatchPlaceOrdersRequest(items=items)
        for item in request.items:
            item.traceparent = current_traceparent()
        response = await mesh.orders.BatchPlaceOrders(request, timeout=BATCH_DEADLINE_SECONDS)
        return response.results

    replayed.products = await send_in_sets(create, plan.products, pace)
    exists = [
        answer.error is not None and answer.error.reason == "PRODUCT_EXISTS" for answer in replayed.products
    ]
    top_ups = [item for item, needed in zip(plan.top_ups, exists, strict=True) if needed]
    replayed.top_ups = await send_in_sets(add, top_ups, pace)
    stock: list[Answer[Any]] = [*replayed.products, *replayed.top_ups]
    if all(answer.settled for answer in stock):
        replayed.orders = await send_in_sets(place, plan.orders, pace, on_answer)
    else:  # an order without its stock would be undone, and that answer would stand under its key for ever
        replayed.orders = [Answer(error=NO_STOCK) for _ in plan.orders]
    return replayed


async def send_in_sets(
    send: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]],
    items: Sequence[Item],
    pace: Pace,
    on_answer: OnAnswer = lambda _: None,
) -> list[Answer[Result]]:
    """Send all items in sets, a few at once. One answer per item, in the same order."""
    answers: list[Answer[Result]] = [Answer() for _ in items]
    starts = iter(range(0, len(items), pace.set_size))
    stopped = False

    async def work() -> None:
        nonlocal stopped
        for start in starts:
            end = min(start + pace.set_size, len(items))
            if stopped:
                answers[start:end] = [Answer(error=NOT_SENT) for _ in range(start, end)]
                continue
            answers[start:end] = await _send_set(send, items[start:end], pace.patience_seconds, on_answer)
            if not any(answer.settled for answer in answers[start:end]):
                stopped = True

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(pace.sets_at_once):
                group.create_task(work())
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from failed  # callers handle one error, not a group of them
    return answers


async def _send_set(
    send: Callable[[Sequence[Item]], Awaitable[Sequence[Result]]],
    items: Sequence[Item],
    patience_seconds: float,
    on_answer: OnAnswer,
) -> list[Answer[Result]]:
    """Send one set until each item is settled or patience ends."""
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + patience_seconds
    answers: list[Answer[Result]] = [Answer() for _ in items]
    pending = list(range(len(items)))
    attempt = 0
    while True:
        attempt += 1
        try:
            with typed_errors():
                results = await send([items[index] for index in pending])
        except PaymeshCallError as error:
            if not error.kind.worth_repeating:
                raise
            for index in pending:
                answers[index].error = error
        else:
            for index, result in zip(pending, results, strict=True):
                refusal = failure_error(result.failure) if result.HasField("failure") else None
                answers[index] = Answer(result, refusal, attempt)
        before = len(pending)
        pending = [index for index in pending if not answers[index].settled]
        on_answer(before - len(pending))
        wait_seconds = _wait_seconds([answers[index].error for index in pending], attempt)
        if not pending or loop.time() + wait_seconds > give_up_at:
            return answers
        await asyncio.sleep(wait_seconds)


def _wait_seconds(errors: Sequence[PaymeshCallError | None], attempt: int) -> float:
    """The longest wait that a service asked for, or, if longer, our own growing one, with jitter."""
    backoff = min(BACKOFF_SECONDS * 2.0 ** min(attempt - 1, 16), BACKOFF_SECONDS_MAX)
    asked = [error.retry_after.total_seconds() for error in errors if error and error.retry_after]
    return max([backoff * random.uniform(0.5, 1.0), *asked])  # noqa: S311 (jitter guards no secret)
