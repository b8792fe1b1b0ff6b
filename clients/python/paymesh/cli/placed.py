"""`paymesh order dispatch`, `cancel` and `return`: what is done with an order that is placed."""

from collections.abc import Awaitable, Callable
from typing import Annotated, Any

import typer

from paymesh.channel import with_key
from paymesh.cli.calls import check_key, connected, run, until_settled
from paymesh.cli.money import money_of
from paymesh.cli.options import (
    MERCHANT,
    PATIENCE,
    TARGET,
    Json,
    Key,
    Merchant,
    Note,
    OrderId,
    Patience,
    Target,
    order_line,
)
from paymesh.cli.program import EXIT_NO, UserError
from paymesh.cli.story import console, order_response_tree, print_json
from paymesh.orchestrator.v1 import orchestrator_pb2, orchestrator_pb2_grpc


def dispatch_order(
    order_id: OrderId,
    key: Key = None,
    patience: Patience = PATIENCE,
    merchant: Merchant = MERCHANT,
    target: Target = TARGET,
    as_json: Json = False,
) -> None:
    """Send a placed order out of the door: capture its payment, hand over the shipment, commit the stock.

    The exit code is 0 only when it has left; a payment that cannot be captured, or an order that needs a
    person, gives 1.
    """
    request = orchestrator_pb2.DispatchOrderRequest(merchant_id=merchant, order_id=order_id)
    _carry_out(target, lambda stub: stub.DispatchOrder, request, key, patience, as_json)


def cancel_order(
    order_id: OrderId,
    note: Note = "",
    key: Key = None,
    patience: Patience = PATIENCE,
    merchant: Merchant = MERCHANT,
    target: Target = TARGET,
    as_json: Json = False,
) -> None:
    """Undo a placed order that has not been dispatched: cancel its shipment, let go of the money, give the
    stock back.

    The exit code is 0 only when it holds nothing any more; 1 when it has left, or needs a person.
    """
    request = orchestrator_pb2.CancelOrderRequest(merchant_id=merchant, order_id=order_id, note=note)
    _carry_out(target, lambda stub: stub.CancelOrder, request, key, patience, as_json)


def return_order(
    order_id: OrderId,
    line: Annotated[
        list[str] | None,
        typer.Option(
            "--line", "-l", metavar="SKU=PIECES", help="What comes back. Repeatable. All by default."
        ),
    ] = None,
    amount: Annotated[
        str | None, typer.Option("--amount", help="What to refund for it, in decimals: 5.10 for £5.10.")
    ] = None,
    currency: Annotated[str, typer.Option("--currency", help="ISO 4217 code.")] = "GBP",
    note: Note = "",
    key: Key = None,
    patience: Patience = PATIENCE,
    merchant: Merchant = MERCHANT,
    target: Target = TARGET,
    as_json: Json = False,
) -> None:
    """Take back what was dispatched, all of it or a part: refund the money, then put the goods on the shelf
    again.

    The exit code is 0 only when that is done; 1 when it is refused, or needs a person.
    """
    if bool(line) != (amount is not None):
        raise UserError("give both --line and --amount for a part, or neither for all that is left")
    request = orchestrator_pb2.ReturnOrderRequest(merchant_id=merchant, order_id=order_id, note=note)
    request.lines.extend(order_line(text) for text in line or ())
    if amount is not None:
        request.amount.CopyFrom(money_of(amount, currency))
    _carry_out(target, lambda stub: stub.ReturnOrder, request, key, patience, as_json)


def _carry_out(
    target: str,
    method: Callable[[orchestrator_pb2_grpc.OrchestratorServiceStub], Callable[..., Awaitable[Any]]],
    request: Any,
    key: str | None,
    patience_seconds: float,
    as_json: bool,
) -> None:
    """Make the call, show the order as it then stands, and end with 1 unless it was done."""
    metadata = with_key(check_key(key))

    async def work() -> tuple[orchestrator_pb2.GetOrderResponse, bool]:
        async with connected(target) as channel:
            stub = orchestrator_pb2_grpc.OrchestratorServiceStub(channel)
            call = method(stub)
            answer = await until_settled(lambda: call(request, metadata=metadata), patience_seconds)
            story = await stub.GetOrder(
                orchestrator_pb2.GetOrderRequest(merchant_id=request.merchant_id, order_id=request.order_id)
            )
        return story, answer.saga.state == orchestrator_pb2.SAGA_STATE_COMPLETED

    story, done = run(work(), as_json)
    if as_json:
        print_json(story)
    else:
        console().print(order_response_tree(story))
    if not done:
        raise typer.Exit(EXIT_NO)
