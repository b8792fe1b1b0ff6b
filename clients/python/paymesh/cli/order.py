"""`paymesh order`: place orders and see what became of them."""

import json
from pathlib import Path
from typing import Annotated

import typer
from google.protobuf.json_format import ParseDict, ParseError

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
    OrderId,
    Patience,
    Target,
    order_line,
)
from paymesh.cli.placed import cancel_order, dispatch_order, return_order
from paymesh.cli.program import EXIT_NO, UserError
from paymesh.cli.replay import replay_file
from paymesh.cli.story import (
    attempt_line,
    console,
    order_heading,
    order_response_tree,
    order_tree,
    print_json,
)
from paymesh.orchestrator.v1 import orchestrator_pb2, orchestrator_pb2_grpc
from paymesh.payment.v1 import payment_pb2
from paymesh.shipping.v1 import shipping_pb2

WATCH_SECONDS = 300.0

commands = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")
commands.command(
    "replay",
    epilog="Examples: `paymesh order replay orders.csv --dry-run` ·"
    " `paymesh order replay orders.csv --currency GBP --country 'Channel Islands=JE' --json`",
)(replay_file)
commands.command("dispatch", epilog="Example: `paymesh order dispatch ord_01jd… --key dispatch-1001`")(
    dispatch_order
)
commands.command("cancel", epilog="Example: `paymesh order cancel ord_01jd… --note 'changed their mind'`")(
    cancel_order
)
commands.command(
    "return",
    epilog="Examples: `paymesh order return ord_01jd…` ·"
    " `paymesh order return ord_01jd… --line 85123A=2 --amount 5.10 --key return-1001`",
)(return_order)


@commands.command(
    "place",
    epilog="Examples: `paymesh order place --line 85123A=6 --amount 15.30 --currency GBP --country GB` ·"
    " `paymesh order place --file order.json --key order-1001`",
)
def place_order(
    line: Annotated[
        list[str] | None, typer.Option("--line", "-l", metavar="SKU=PIECES", help="What is sold. Repeatable.")
    ] = None,
    amount: Annotated[
        str | None, typer.Option("--amount", help="What to charge, in decimals: 15.30 for £15.30.")
    ] = None,
    currency: Annotated[str, typer.Option("--currency", help="ISO 4217 code.")] = "GBP",
    card: Annotated[str, typer.Option("--card", help="The processor's token of the card.")] = "tok_visa",
    card_bin: Annotated[str, typer.Option("--bin", help="First digits of the card, for fraud rules.")] = "",
    customer: Annotated[str, typer.Option("--customer", help="The merchant's number of the customer.")] = "",
    email: Annotated[str, typer.Option("--email", help="The customer's email address.")] = "",
    ip: Annotated[str, typer.Option("--ip", help="IP address of the customer's device.")] = "",
    billing_country: Annotated[
        str | None, typer.Option("--billing-country", help="ISO 3166 code; like --country if not given.")
    ] = None,
    name: Annotated[str, typer.Option("--name", help="Addressee.")] = "Customer",
    street: Annotated[list[str] | None, typer.Option("--street", help="Line of the address.")] = None,
    city: Annotated[str, typer.Option("--city", help="Town.")] = "",
    postal_code: Annotated[str, typer.Option("--postal-code", help="Postal code.")] = "",
    country: Annotated[str, typer.Option("--country", help="ISO 3166 code of the country.")] = "GB",
    reference: Annotated[str, typer.Option("--reference", help="Your own name for the order.")] = "",
    file: Annotated[
        Path | None,
        typer.Option("--file", "-f", help="A PlaceOrderRequest as JSON, in place of the options above."),
    ] = None,
    key: Key = None,
    patience: Patience = PATIENCE,
    merchant: Merchant = MERCHANT,
    target: Target = TARGET,
    as_json: Json = False,
) -> None:
    """Place an order and wait until it has ended.

    The exit code is 0 only for a completed order; an order that was undone or is parked gives 1.
    """
    if file is not None:
        if line or amount:
            raise UserError("give the order either by --file or by --line and --amount")
        request = read_request(file, merchant)
    elif not line or amount is None:
        raise UserError("an order needs --line SKU=PIECES and --amount, or --file")
    else:
        request = orchestrator_pb2.PlaceOrderRequest(
            merchant_id=merchant,
            order_reference=reference,
            lines=[order_line(text) for text in line],
            amount=money_of(amount, currency),
            card=payment_pb2.Card(token=card, bin=card_bin),
            customer=payment_pb2.Customer(
                customer_id=customer,
                email=email,
                ip_address=ip,
                billing_country=country if billing_country is None else billing_country,
            ),
            shipping_address=shipping_pb2.Address(
                name=name, street_lines=street or (), city=city, postal_code=postal_code, country=country
            ),
        )
    order, saga = run(_place(target, request, check_key(key), patience), as_json)
    if as_json:
        print_json(orchestrator_pb2.GetOrderResponse(order=order, saga=saga))
    else:
        console().print(order_tree(order, saga))
    if order.state != orchestrator_pb2.SAGA_STATE_COMPLETED:
        raise typer.Exit(EXIT_NO)


@commands.command("get", epilog="Example: `paymesh order get ord_01jd…`")
def get_order(
    order_id: OrderId, merchant: Merchant = MERCHANT, target: Target = TARGET, as_json: Json = False
) -> None:
    """Show an order as it stands, with its money and the stories of its sagas."""

    async def work() -> orchestrator_pb2.GetOrderResponse:
        async with connected(target) as channel:
            stub = orchestrator_pb2_grpc.OrchestratorServiceStub(channel)
            return await stub.GetOrder(
                orchestrator_pb2.GetOrderRequest(merchant_id=merchant, order_id=order_id)
            )

    response = run(work(), as_json)
    if as_json:
        print_json(response)
    else:
        console().print(order_response_tree(response))


@commands.command("watch", epilog="Example: `paymesh order watch ord_01jd… --seconds 60`")
def watch_order(
    order_id: OrderId,
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.1, help="Watch at most so long.")
    ] = WATCH_SECONDS,
    merchant: Merchant = MERCHANT,
    target: Target = TARGET,
    as_json: Json = False,
) -> None:
    """Follow an order until it has ended. With --json, one object a line."""

    async def work() -> None:
        seen = 0
        async with connected(target) as channel:
            stub = orchestrator_pb2_grpc.OrchestratorServiceStub(channel)
            request = orchestrator_pb2.WatchOrderRequest(merchant_id=merchant, order_id=order_id)
            async for update in stub.WatchOrder(request, timeout=seconds):
                if as_json:
                    print_json(update, indent=None)
                else:
                    seen = _print_news(update, seen)

    run(work(), as_json)


def read_request(file: Path, merchant: str) -> orchestrator_pb2.PlaceOrderRequest:
    """The request in a JSON file; `merchant` fills in a missing merchant. UserError with the reason."""
    try:
        data = json.loads(file.read_text(encoding="utf-8-sig"), parse_float=_no_float)
        if not isinstance(data, dict):
            raise UserError(f"--file {file}: expected an object with the fields of a PlaceOrderRequest")
        request = ParseDict(data, orchestrator_pb2.PlaceOrderRequest())
    except OSError as error:
        raise UserError(f"--file {file}: {error.strerror}") from None
    except (ValueError, ParseError) as error:
        raise UserError(f"--file {file}: {' '.join(str(error).split())}") from None
    if not request.merchant_id:
        request.merchant_id = merchant
    return request


def _no_float(text: str) -> None:
    raise ValueError(f"{text} is not a whole number; amounts are in minor units")


async def _place(
    target: str, request: orchestrator_pb2.PlaceOrderRequest, key: str, patience_seconds: float
) -> tuple[orchestrator_pb2.Order, orchestrator_pb2.Saga]:
    """Place the order and fetch its story."""
    metadata = with_key(key)
    async with connected(target) as channel:
        stub = orchestrator_pb2_grpc.OrchestratorServiceStub(channel)
        placed = await until_settled(lambda: stub.PlaceOrder(request, metadata=metadata), patience_seconds)
        order = placed.order
        story = await stub.GetOrder(
            orchestrator_pb2.GetOrderRequest(merchant_id=order.merchant_id, order_id=order.order_id)
        )
    return order, story.saga


def _print_news(update: orchestrator_pb2.WatchOrderResponse, seen: int) -> int:
    """Print where the order stands and the attempts since the last update; the number of attempts so far."""
    sagas = update.sagas or [update.saga]
    told = [(attempt, saga.created_at) for saga in sagas for attempt in saga.history]
    for attempt, began in told[seen:]:
        console().print(attempt_line(attempt, began, show_direction=True))
    console().print(order_heading(update.order))
    return len(told)
