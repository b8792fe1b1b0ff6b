"""What must be true of one order. Pure: an order's book in, what is wrong with it out, as rest of sentences."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from audit.orders import ORCHESTRATOR, OrderBook, Part, Payment, Request, Reservation, Saga, Shipment
from paymesh.inventory.v1 import inventory_pb2
from paymesh.orchestrator.v1 import orchestrator_pb2
from paymesh.payment.v1 import payment_pb2
from paymesh.shipping.v1 import shipping_pb2
from services.kit.errors import Refused
from services.kit.money import Money
from services.kit.rpc.stored import Pack
from services.kit.sets import Failed
from services.orchestrator.domain import CANCEL, DISPATCH, RETURN, State, StepState

M = TypeVar("M", bound=Message)

HOLDING = {
    Reservation: ("RESERVED", "COMMITTED"),
    Payment: (
        "AUTHORIZED",
        "INCREMENTING",
        "CAPTURING",
        "PARTIALLY_CAPTURED",
        "CAPTURED",
        "SETTLED",
        "REFUNDING",
        "PARTIALLY_REFUNDED",
        "REFUNDED",
        "EXPIRED",
    ),
    Shipment: ("CREATED", "DISPATCHED"),
}
"""States in which a part keeps stock, money or a carrier for its order, or has kept it until its time was over: money
that was given back by a return, or not taken within seven days, was there when the order was completed."""
LETTING_GO = {
    Reservation: ("RELEASED",),
    Payment: ("DECLINED", "REJECTED", "FAILED", "VOIDING", "VOIDED", "EXPIRED", "REFUNDED"),
    Shipment: ("CANCELLED",),
}
"""States in which it holds nothing, or will in a moment: a payment that failed and is found to have been approved after
all is VOIDING for as long as the bank takes."""

_STEPS = {
    Reservation: ("reserve", "reservation_id"),
    Payment: ("authorize", "payment_id"),
    Shipment: ("ship", "shipment_id"),
}
"""The step that makes a part, and the fact by which the saga knows it."""

_PLACED = Pack(orchestrator_pb2.PlaceOrderResponse)
_RESERVED = Pack(inventory_pb2.ReserveStockResponse)
_AUTHORIZED = Pack(payment_pb2.AuthorizePaymentResponse)
_BOOKED = Pack(shipping_pb2.CreateShipmentResponse)

_ANSWERED = dict.fromkeys(HOLDING[Payment], ("AUTHORIZED",)) | {
    "VOIDING": ("AUTHORIZED", "FAILED", "VOIDING"),
    "VOIDED": ("AUTHORIZED", "FAILED", "VOIDED"),
}
"""What a payment's first caller may have been told, where it is not the present state."""


def agrees_with_its_parts(book: OrderBook) -> Iterator[str]:
    """A completed order has stock, money and a shipment, each once and as ordered; a compensated one holds nothing.
    What becomes of an order that is cancelled, or that a person has to look at, is not judged here."""
    saga = book.saga
    if saga is None or saga.state is State.PARKED or saga.fault or book.completed(CANCEL.kind):
        return
    if saga.state is State.COMPLETED and not book.placed:
        return
    if saga.state is State.COMPENSATED:
        for part in book.parts:
            if part.state not in LETTING_GO[type(part)]:
                yield f"is COMPENSATED, but {part.id} is {part.state}"
        for step, (state, _, _) in saga.steps.items():
            if state in (StepState.DONE, StepState.CALLING, StepState.UNDOING, StepState.STUCK):
                yield f"is COMPENSATED, but its step {step} is {state}"
        return
    kinds: tuple[Sequence[Part], ...] = (book.reservations, book.payments, book.shipments)
    for kind, parts in zip(HOLDING, kinds, strict=True):
        step, fact = _STEPS[kind]
        state = saga.steps[step][0] if step in saga.steps else "missing"
        if state != StepState.DONE:
            yield f"is COMPLETED, but its step {step} is {state}"
        holding = [part for part in parts if part.state in HOLDING[kind]]
        if len(holding) != 1:
            found = ", ".join(f"{part.id} {part.state}" for part in parts) or "none"
            yield f"is COMPLETED, but of its {kind.__name__.lower()} there is {found}"
        elif saga.facts.get(fact) != holding[0].id:
            yield f"was told of {fact} {saga.facts.get(fact)!r}, but has {holding[0].id}"
        else:
            yield from _as_ordered(saga, holding[0])


def _as_ordered(saga: Saga, part: Part) -> Iterator[str]:
    order = saga.order
    match part:
        case Payment():
            ordered: object = Money(order.amount.amount_minor, order.amount.currency)
            found: object = part.amount
        case Reservation():
            lines: dict[str, int] = {}
            for line in order.lines:
                lines[line.sku] = lines.get(line.sku, 0) + line.quantity
            ordered, found = lines, part.lines
        case Shipment():
            ordered, found = order.shipping_address.country, part.country
        case _:
            return
    if ordered != found:
        yield f"was for {ordered}, but {part.id} is for {found}"


def has_left_as_a_whole(book: OrderBook) -> Iterator[str]:
    """A dispatched order has its money captured, its stock committed and its shipment on the way; of one that is not,
    the orchestrator has taken no money, and nothing has left."""
    gone = book.completed(DISPATCH.kind)
    if len(gone) > 1:
        yield f"was dispatched {len(gone)} times"
    wanted = ("COMMITTED", "DISPATCHED") if gone else ("RESERVED", "CREATED")
    word = "is dispatched" if gone else "is not dispatched"
    for parts, state in zip((book.reservations, book.shipments), wanted, strict=True):
        for part in parts:
            if part.state != state:
                yield f"{word}, but {part.id} is {part.state}"
    for payment in book.payments:
        due = payment.amount.amount_minor if gone else 0
        if payment.taken_minor != due:
            yield f"{word}, but of {payment.id} {payment.taken_minor} of {due} were captured for it"


def is_gone(book: OrderBook) -> Iterator[str]:
    """A cancelled order holds nothing, and was not dispatched."""
    for part in book.parts:
        if part.state not in LETTING_GO[type(part)]:
            yield f"is cancelled, but {part.id} is {part.state}"
    others = [one.saga_id for one in book.later if one.kind != CANCEL.kind and one.state is State.COMPLETED]
    if others:
        yield f"is cancelled, but {', '.join(others)} is COMPLETED"


def came_back_as_told(book: OrderBook) -> Iterator[str]:
    """What came back was sold and had left; what was refunded was charged; and inventory and payment have done what
    the order's returns say, no more and no less."""
    returns = book.completed(RETURN.kind)
    if returns and not book.completed(DISPATCH.kind):
        yield f"came back by {returns[0].saga_id}, and has never left"
    lines = _sum(one.lines for one in returns)
    if book.saga is not None:
        sold = _sum({line.sku: line.quantity} for line in book.saga.order.lines)
        for sku, quantity in lines.items():
            if quantity > sold.get(sku, 0):
                yield f"sold {sold.get(sku, 0)} of {sku}, and {quantity} came back"
    back = _sum(book.returns)
    if back != lines:
        yield f"has returns of {lines}, and inventory has put back {back}"
    amount_minor = sum(one.amount_minor for one in returns)
    for payment in book.payments:
        if amount_minor > payment.captured_minor:
            yield f"has returns for {amount_minor}, and {payment.captured_minor} of {payment.id} were captured"
        if payment.given_back_minor != amount_minor:
            told = f"has returns for {amount_minor}, and {payment.given_back_minor}"
            yield f"{told} of {payment.id} were refunded for them"


def _sum(several: Iterable[dict[str, int]]) -> dict[str, int]:
    """Pieces by sku over several."""
    total: dict[str, int] = {}
    for lines in several:
        for sku, quantity in lines.items():
            total[sku] = total.get(sku, 0) + quantity
    return total


def was_ordered(book: OrderBook) -> Iterator[str]:
    """No participant has anything that the orchestrator asked for and knows nothing of."""
    if book.saga is None:
        for part in book.parts:
            if any(request.caller == ORCHESTRATOR for request in part.requests):
                yield f"is unknown to the orchestrator, but {part.id} is {part.state}"


def was_answered_once(book: OrderBook) -> Iterator[str]:
    """One accepted request, one order, and an answer: read back from the order, or stored."""
    if book.saga is None:
        for request in book.requests:
            if not isinstance(_read(_PLACED, request), Refused):
                yield f"does not exist, but the key {request.key!r} of {request.caller} was accepted for it"
        return
    for one in book.later:
        if one.fault:
            yield f"cannot be read back by {one.saga_id}: {one.fault}"
    saga, asked = book.saga, [(request.caller, request.key) for request in book.requests]
    if asked != [(saga.caller, saga.key)]:
        yield f"was begun by {(saga.caller, saga.key)}, and its accepted requests are {asked}"
        return
    answer = _read(_PLACED, book.requests[0])
    if saga.fault:
        yield f"cannot be read back: {saga.fault}"
    elif answer is not None and not saga.state.ended:
        yield f"is {saga.state}, but has been answered"
    elif isinstance(answer, orchestrator_pb2.PlaceOrderResponse):
        yield from _same_order(book, saga, answer.order)
    elif answer is not None:
        yield f"is {saga.state}, but its stored answer is {answer}"


def _same_order(book: OrderBook, saga: Saga, answer: orchestrator_pb2.Order) -> Iterator[str]:
    state = orchestrator_pb2.SagaState.Name(answer.state).removeprefix("SAGA_STATE_")
    pairs: list[tuple[str, object, object]] = [
        ("state", saga.state.value, state),
        ("merchant", book.merchant_id, answer.merchant_id),
        ("order_id", book.id, answer.order_id),
        ("saga_id", saga.saga_id, answer.saga_id),
        ("amount", saga.order.amount, answer.amount),
        ("lines", list(saga.order.lines), list(answer.lines)),
        ("reason", saga.reason["code"] if saga.reason else "", answer.reason.code),
        *((fact, saga.facts.get(fact, ""), getattr(answer, fact)) for _, fact in _STEPS.values()),
    ]
    for name, stored, told in pairs:
        if stored != told:
            yield f"has {name} {' '.join(str(stored).split())}, and was answered {' '.join(str(told).split())}"


def parts_were_answered_once(book: OrderBook) -> Iterator[str]:
    """Whatever a participant has was made by one accepted request, whose answer names it."""
    for part in book.parts:
        if len(part.requests) != 1:
            keys = [(request.caller, request.key) for request in part.requests]
            yield f"has {part.id}, made by {len(keys)} accepted requests: {keys}"
            continue
        fault = _told(part, part.requests[0])
        if fault:
            yield f"has {part.id} ({part.state}), and the answer to {part.requests[0].key!r} {fault}"


def _told(part: Part, request: Request) -> str:
    """What is wrong with the stored answer of the request that made a part; empty if nothing is, or if the answer is
    read back from the part itself."""
    if request.result is None:
        return ""
    match part:
        case Reservation():
            reserved = _read(_RESERVED, request)
            if isinstance(reserved, inventory_pb2.ReserveStockResponse):
                return _names(part, reserved.reservation.reservation_id)
            return f"is {reserved}"
        case Shipment():
            booked = _read(_BOOKED, request)
            if isinstance(booked, shipping_pb2.CreateShipmentResponse):
                return _names(part, booked.shipment.shipment_id)
            return f"is {booked}"
        case Payment():
            authorized = _read(_AUTHORIZED, request)
            if not isinstance(authorized, payment_pb2.AuthorizePaymentResponse):
                return f"is {authorized}"
            told = authorized.payment
            state = payment_pb2.PaymentState.Name(told.state).removeprefix("PAYMENT_STATE_")
            if state not in _ANSWERED.get(part.state, (part.state,)):
                return f"says {state}"
            if Money(told.amount.amount_minor, told.amount.currency) != part.amount:
                return f"says {told.amount.amount_minor} {told.amount.currency}"
            return _names(part, told.payment_id)
    return ""


def _names(part: Part, told: str) -> str:
    return "" if told == part.id else f"names {told!r}"


def _read(pack: Pack[M], request: Request) -> M | Exception | None:
    """The stored answer: a message, the error that was told, or None when none is stored."""
    if request.result is None:
        return None
    try:
        stored = pack.unpack(request.result)
    except DecodeError as unreadable:
        return unreadable
    return stored.error if isinstance(stored, Failed) else stored.message
