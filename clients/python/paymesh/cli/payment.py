"""`paymesh payment`: what became of a payment."""

import json
from typing import Annotated

import typer
from rich.text import Text
from rich.tree import Tree

from paymesh.cli.calls import connected, run
from paymesh.cli.options import MERCHANT, PAYMENT_TARGET, Json, Merchant, PaymentTarget
from paymesh.cli.story import console, enum_name, print_json, show_amount, show_time
from paymesh.payment.v1 import payment_pb2, payment_pb2_grpc

commands = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")


@commands.callback()
def payment() -> None:
    """Show payments and their events."""


@commands.command("get", epilog="Example: `paymesh payment get pay_01jd…`")
def get_payment(
    payment_id: Annotated[str, typer.Argument(metavar="PAYMENT", help="Identifier, pay_…")],
    merchant: Merchant = MERCHANT,
    target: PaymentTarget = PAYMENT_TARGET,
    as_json: Json = False,
) -> None:
    """Show a payment with all its events."""

    async def work() -> payment_pb2.GetPaymentResponse:
        async with connected(target) as channel:
            stub = payment_pb2_grpc.PaymentServiceStub(channel)
            return await stub.GetPayment(
                payment_pb2.GetPaymentRequest(merchant_id=merchant, payment_id=payment_id)
            )

    response = run(work(), as_json)
    if as_json:
        print_json(response)
    else:
        console().print(payment_tree(response))


def payment_tree(response: payment_pb2.GetPaymentResponse) -> Tree:
    """A payment and its events, oldest first, with what each of them says."""
    shown = response.payment
    state = enum_name(payment_pb2.PaymentState, shown.state, "PAYMENT_STATE_")
    heading = Text(f"payment {shown.payment_id} ").append(state, style="bold")
    heading.append(f"  {show_amount(shown.amount)}")
    if shown.decline_reason:
        heading.append(f"  {shown.decline_reason}", style="red")
    tree = Tree(heading)
    tree.add(Text(f"order    {shown.order_id}"))
    tree.add(f"held     {show_amount(shown.held)}")
    tree.add(f"fraud    {shown.fraud_score_milli} of 1000")
    if shown.auth_code:
        tree.add(Text(f"code     {shown.auth_code}  processor's reference {shown.processor_reference}"))
    if shown.unknown_outcome:
        unknown = enum_name(payment_pb2.UnknownOutcome, shown.unknown_outcome, "UNKNOWN_OUTCOME_")
        tree.add(Text(f"unknown  the outcome of the {unknown.lower()}", style="magenta"))
    events = tree.add(Text("events", style="bold"))
    for event in response.events:
        text = Text(f"{event.version:>2} {show_time(event.recorded_at)}  {event.type}")
        events.add(text.append(f"  {_facts(event.data_json)}", style="dim"))
    return tree


def _facts(data_json: str) -> str:
    """An event's JSON object as `name=value` words; as it is when it is something else."""
    try:
        facts = json.loads(data_json)
    except ValueError:
        return data_json
    if not isinstance(facts, dict):
        return data_json
    return "  ".join(f"{name}={value}" for name, value in facts.items())
