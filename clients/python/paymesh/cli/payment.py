"""`paymesh payment`: what became of a payment, and what is to become of it."""

import json
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.text import Text
from rich.tree import Tree

from paymesh.channel import with_key
from paymesh.cli.calls import check_key, connected, run, until_settled
from paymesh.cli.money import money_of
from paymesh.cli.options import (
    MERCHANT,
    PATIENCE,
    PAYMENT_TARGET,
    Json,
    Key,
    Merchant,
    Note,
    Patience,
    PaymentTarget,
)
from paymesh.cli.story import console, enum_name, print_json, show_amount, show_time
from paymesh.payment.v1 import payment_pb2, payment_pb2_grpc

commands = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")


@commands.callback()
def payment() -> None:
    """Show, capture, refund, increment and void payments."""


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


PaymentId = Annotated[str, typer.Argument(metavar="PAYMENT", help="Identifier, pay_…")]


@commands.command(
    "capture",
    epilog="Example: `paymesh payment capture pay_01jd… --amount 5.00`; without --amount all of it",
)
def capture_payment(
    payment_id: PaymentId,
    amount: Annotated[
        str | None, typer.Option("--amount", help="How much, in decimals; all that is held by default.")
    ] = None,
    final: Annotated[bool, typer.Option("--final", help="The last one: let go of what it leaves.")] = False,
    note: Note = "",
    key: Key = None,
    patience: Patience = PATIENCE,
    merchant: Merchant = MERCHANT,
    target: PaymentTarget = PAYMENT_TARGET,
    as_json: Json = False,
) -> None:
    """Take money that is held, all of it or a part."""
    request = payment_pb2.CapturePaymentRequest(
        merchant_id=merchant, payment_id=payment_id, final=final, note=note
    )
    _change("CapturePayment", request, amount, _Call(key, patience, target, as_json))


@commands.command(
    "refund",
    epilog="Example: `paymesh payment refund pay_01jd… --amount 5.00`; without --amount all of it",
)
def refund_payment(
    payment_id: PaymentId,
    amount: Annotated[
        str | None,
        typer.Option(
            "--amount", help="How much, in decimals; all that is left of what was captured by default."
        ),
    ] = None,
    note: Note = "",
    key: Key = None,
    patience: Patience = PATIENCE,
    merchant: Merchant = MERCHANT,
    target: PaymentTarget = PAYMENT_TARGET,
    as_json: Json = False,
) -> None:
    """Give money back that was captured, all of it or a part."""
    request = payment_pb2.RefundPaymentRequest(merchant_id=merchant, payment_id=payment_id, note=note)
    _change("RefundPayment", request, amount, _Call(key, patience, target, as_json))


@commands.command("increment", epilog="Example: `paymesh payment increment pay_01jd… --amount 5.00`")
def increment_payment(
    payment_id: PaymentId,
    amount: Annotated[str, typer.Option("--amount", help="How much more to hold, in decimals.")],
    note: Note = "",
    key: Key = None,
    patience: Patience = PATIENCE,
    merchant: Merchant = MERCHANT,
    target: PaymentTarget = PAYMENT_TARGET,
    as_json: Json = False,
) -> None:
    """Hold more on the card."""
    request = payment_pb2.IncrementAuthorizationRequest(
        merchant_id=merchant, payment_id=payment_id, note=note
    )
    _change("IncrementAuthorization", request, amount, _Call(key, patience, target, as_json))


@commands.command("void", epilog="Example: `paymesh payment void pay_01jd… --note 'changed their mind'`")
def void_payment(
    payment_id: PaymentId,
    note: Note = "",
    key: Key = None,
    patience: Patience = PATIENCE,
    merchant: Merchant = MERCHANT,
    target: PaymentTarget = PAYMENT_TARGET,
    as_json: Json = False,
) -> None:
    """Let go of what is held and was not captured."""
    request = payment_pb2.VoidPaymentRequest(merchant_id=merchant, payment_id=payment_id, note=note)
    _change("VoidPayment", request, None, _Call(key, patience, target, as_json))


@dataclass(frozen=True, slots=True)
class _Call:
    """How a change is asked for."""

    key: str | None
    patience_seconds: float
    target: str
    as_json: bool


def _change(method: str, request: Any, amount: str | None, how: _Call) -> None:
    """Ask for a change with a key until its answer is final, and show the payment. An amount is in the payment's own
    currency, so that is looked up first."""
    metadata = with_key(check_key(how.key))

    async def work() -> payment_pb2.Payment:
        async with connected(how.target) as channel:
            stub = payment_pb2_grpc.PaymentServiceStub(channel)
            if amount is not None:
                asked = payment_pb2.GetPaymentRequest(
                    merchant_id=request.merchant_id, payment_id=request.payment_id
                )
                found = await stub.GetPayment(asked)
                request.amount.CopyFrom(money_of(amount, found.payment.amount.currency))
            call = getattr(stub, method)
            answer = await until_settled(lambda: call(request, metadata=metadata), how.patience_seconds)
            changed: payment_pb2.Payment = answer.payment
            return changed

    changed = run(work(), how.as_json)
    if how.as_json:
        print_json(changed)
    else:
        console().print(payment_tree(payment_pb2.GetPaymentResponse(payment=changed)))


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
    for name in ("captured", "refunded", "settled", "fee", "pending"):
        if shown.HasField(name):
            tree.add(f"{name:<8} {show_amount(getattr(shown, name))}")
    tree.add(f"fraud    {shown.fraud_score_milli} of 1000")
    if shown.auth_code:
        tree.add(Text(f"code     {shown.auth_code}  processor's reference {shown.processor_reference}"))
    if shown.unknown_outcome:
        unknown = enum_name(payment_pb2.UnknownOutcome, shown.unknown_outcome, "UNKNOWN_OUTCOME_")
        tree.add(Text(f"unknown  the outcome of the {unknown.lower()}", style="magenta"))
    events = tree.add(Text("events", style="bold")) if response.events else tree
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
