"""Shows orders, sagas and payments to a person: as JSON, as tables and as the tree of what happened."""

import json
from collections.abc import Sequence
from datetime import UTC, timedelta
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from paymesh.amounts import format_amount
from paymesh.money.v1 import money_pb2
from paymesh.orchestrator.v1 import orchestrator_pb2
from paymesh.payment.v1 import payment_pb2

LINES_SHOWN_MAX = 10

_STYLE_BY_STATE = {
    "COMPLETED": "green",
    "RUNNING": "cyan",
    "COMPENSATING": "yellow",
    "COMPENSATED": "yellow",
    "PARKED": "bold red",
    "DISPATCHING": "cyan",
    "DISPATCHED": "green",
    "CANCELLING": "yellow",
    "CANCELLED": "yellow",
    "PARTIALLY_RETURNED": "yellow",
    "RETURNED": "yellow",
}
_STYLE_BY_OUTCOME = {"DONE": "green", "REFUSED": "red", "RETRYABLE": "yellow", "UNKNOWN": "magenta"}


def print_json(value: Message | dict[str, Any], indent: int | None = 2) -> None:
    """Print a message in protobuf's JSON form with the names of the contract, or plain data."""
    if isinstance(value, Message):
        value = MessageToDict(
            value, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )
    print(json.dumps(value, indent=indent, ensure_ascii=False), flush=True)


def console() -> Console:
    """Where text for people goes; without colours when nobody looks."""
    return Console(highlight=False, soft_wrap=True)


def state_name(state: int) -> str:
    """The name that people use: "COMPLETED" for SAGA_STATE_COMPLETED."""
    return enum_name(orchestrator_pb2.SagaState, state, "SAGA_STATE_")


def show_amount(amount: money_pb2.Money) -> str:
    """For example "12.34 GBP"; a dash when there is no currency."""
    return format_amount(amount.amount_minor, amount.currency) if amount.currency else "-"


def show_time(moment: Timestamp) -> str:
    """UTC to the second, or "-" when it is unset."""
    if moment.seconds == 0:
        return "-"
    return moment.ToDatetime(tzinfo=UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def order_heading(order: orchestrator_pb2.Order) -> Text:
    """One line on where an order stands and why."""
    state = enum_name(orchestrator_pb2.OrderState, order.order_state, "ORDER_STATE_")
    if order.order_state < orchestrator_pb2.ORDER_STATE_DISPATCHING:
        state = state_name(order.state)  # all there is to tell is how its placing stands
    parts = [f"order {order.order_id} "]
    if order.order_reference:
        parts.append(f"({order.order_reference}) ")
    heading = Text("".join(parts)).append(state, style=_STYLE_BY_STATE.get(state, ""))
    heading.append(f"  {show_amount(order.amount)}")
    return heading.append(_reason(order.reason) if order.HasField("reason") else "")


def order_tree(
    order: orchestrator_pb2.Order,
    *sagas: orchestrator_pb2.Saga,
    payment: payment_pb2.Payment | None = None,
) -> Tree:
    """An order with what it sells, what it holds, how its money stands, and the stories of its sagas."""
    tree = Tree(order_heading(order))
    tree.add(Text(f"sells    {_goods(order.lines)}"))
    if order.returned_lines:
        back = f"returned {_goods(order.returned_lines)}"
        tree.add(Text(f"{back}, for {show_amount(order.returned_amount)}"))
    for name, text in (
        ("reserved", order.reservation_id),
        ("payment", order.payment_id),
        ("money", _money(payment) if payment is not None else ""),
        ("shipment", order.shipment_id),
    ):
        if text:
            tree.add(Text(f"{name:<8} {text}"))
    for saga in sagas:
        if saga.saga_id:
            tree.add(saga_tree(saga))
    return tree


def order_response_tree(response: orchestrator_pb2.GetOrderResponse) -> Tree:
    """`order_tree` of an order that was asked for. Older servers tell of one saga only, and of no payment."""
    payment = response.payment if response.HasField("payment") else None
    return order_tree(response.order, *(response.sagas or [response.saga]), payment=payment)


def _goods(lines: Sequence[orchestrator_pb2.OrderLine]) -> str:
    goods = ", ".join(f"{line.quantity} x {line.sku}" for line in lines[:LINES_SHOWN_MAX])
    return goods + (f" and {len(lines) - LINES_SHOWN_MAX} more" if len(lines) > LINES_SHOWN_MAX else "")


def _money(payment: payment_pb2.Payment) -> str:
    """For example "18.00 GBP captured, 5.00 GBP refunded"."""
    parts = [
        f"{show_amount(amount)} {word}"
        for word, amount in (
            ("held", payment.held),
            ("captured", payment.captured),
            ("refunded", payment.refunded),
        )
        if amount.amount_minor
    ]
    return ", ".join(parts) or "nothing is held"


def saga_tree(saga: orchestrator_pb2.Saga) -> Tree:
    """The story of a saga: its steps and its undos in lanes of their own, each attempt with when it
    began (counted from the start of the saga), how long it took and what it came to."""
    state = state_name(saga.state)
    heading = Text(f"saga {saga.saga_id} ({saga.kind}) ").append(state, style=_STYLE_BY_STATE.get(state, ""))
    if saga.HasField("ended_at"):
        heading.append(f" in {_milliseconds(saga.created_at, saga.ended_at)}")
    if saga.HasField("reason"):
        heading.append(_reason(saga.reason))
    tree = Tree(heading)
    for lane, direction in (
        ("steps", orchestrator_pb2.DIRECTION_DO),
        ("undos", orchestrator_pb2.DIRECTION_UNDO),
    ):
        attempts = [attempt for attempt in saga.history if attempt.direction == direction]
        if attempts:
            branch = tree.add(Text(lane, style="bold"))
            for attempt in attempts:
                branch.add(attempt_line(attempt, saga.created_at))
    if saga.interventions:
        branch = tree.add(Text("by hand", style="bold"))
        for one in saga.interventions:
            kind = enum_name(orchestrator_pb2.InterventionKind, one.kind, "INTERVENTION_KIND_")
            what = kind.lower().replace("_", " ")
            branch.add(Text(f"{one.number}  {show_time(one.at)}  {what} by {one.actor}: {one.reason}"))
    if saga.HasField("next_attempt_at"):
        tree.add(Text(f"next attempt at {show_time(saga.next_attempt_at)}"))
    return tree


def attempt_line(attempt: orchestrator_pb2.Attempt, began: Timestamp, show_direction: bool = False) -> Text:
    """One attempt at a step, timed from `began`."""
    outcome = enum_name(orchestrator_pb2.AttemptOutcome, attempt.outcome, "ATTEMPT_OUTCOME_")
    undo = show_direction and attempt.direction == orchestrator_pb2.DIRECTION_UNDO
    text = Text(f"{'undo ' if undo else ''}{attempt.step:<12} ").append(
        f"{outcome:<9}", style=_STYLE_BY_OUTCOME.get(outcome, "")
    )
    text.append(f" at +{_milliseconds(began, attempt.started_at)}")
    text.append(f", took {_milliseconds(attempt.started_at, attempt.ended_at)}")
    if attempt.attempt > 1:
        text.append(f", attempt {attempt.attempt}")
    if attempt.reason:
        text.append(f"  {attempt.reason}", style="red")
    for name, value in sorted(attempt.facts.items()):
        text.append(f"  {name}={value}", style="dim")
    return text


def saga_table(sagas: Sequence[orchestrator_pb2.Saga]) -> Table:
    """Sagas, one a line."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("saga", "order", "kind", "state", "began", "took", "reason"):
        table.add_column(column, no_wrap=True)
    for saga in sagas:
        state = state_name(saga.state)
        table.add_row(
            Text(saga.saga_id),
            Text(saga.order_id),
            Text(saga.kind),
            Text(state, style=_STYLE_BY_STATE.get(state, "")),
            show_time(saga.created_at),
            _milliseconds(saga.created_at, saga.ended_at) if saga.HasField("ended_at") else "-",
            Text(f"{saga.reason.code} at {saga.reason.step}" if saga.HasField("reason") else ""),
        )
    return table


def _reason(reason: orchestrator_pb2.Reason) -> str:
    where = f" at {reason.step}" if reason.step else ""
    return f"  {reason.code}{where}" + (f": {reason.message}" if reason.message else "")


def _milliseconds(start: Timestamp, end: Timestamp) -> str:
    # Timestamps count nanoseconds, datetime microseconds: enough for people.
    elapsed: timedelta = end.ToDatetime(tzinfo=UTC) - start.ToDatetime(tzinfo=UTC)
    return f"{elapsed / timedelta(milliseconds=1):,.1f} ms"


def enum_name(enum: Any, value: int, prefix: str) -> str:
    """Name of an enum's value without its prefix; the number for a value of a newer version."""
    try:
        return str(enum.Name(value)).removeprefix(prefix)
    except ValueError:
        return str(value)
