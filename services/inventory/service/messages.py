"""Requests in the words of the domain, and the domain in those of the contract."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from paymesh.inventory.v1 import inventory_pb2 as pb
from services.inventory import domain
from services.inventory.domain import (
    ByKey,
    Delivery,
    End,
    NewProduct,
    Product,
    Reservation,
    Reserve,
    Return,
    StockReturn,
)
from services.kit.checks import Checks
from services.kit.rpc.values import write_timestamp

LINES_MAX = 1_000
QUANTITY_MAX = 1_000_000
STOCK_MAX = 1_000_000_000

_STATES = {
    domain.State.RESERVED: pb.RESERVATION_STATE_RESERVED,
    domain.State.RELEASED: pb.RESERVATION_STATE_RELEASED,
    domain.State.COMMITTED: pb.RESERVATION_STATE_COMMITTED,
}


def new_product(request: pb.CreateProductRequest) -> NewProduct:
    """The command in a request. Raises Invalid."""
    checks = Checks()
    checks.text("merchant_id", request.merchant_id)
    checks.text("sku", request.sku)
    checks.text("name", request.name, max_length=200, optional=True)
    checks.number("initial_quantity", request.initial_quantity, at_least=0, at_most=STOCK_MAX)
    checks.done()
    return NewProduct(request.merchant_id, request.sku, request.name, request.initial_quantity)


def delivery(request: pb.AddStockRequest) -> Delivery:
    """The command in a request. Raises Invalid."""
    checks = Checks()
    checks.text("merchant_id", request.merchant_id)
    checks.text("sku", request.sku)
    checks.number("quantity", request.quantity, at_least=1, at_most=STOCK_MAX)
    checks.done()
    return Delivery(request.merchant_id, request.sku, request.quantity)


def reserve_wish(request: pb.ReserveStockRequest) -> Reserve:
    """The command in a request. Raises Invalid."""
    checks = Checks()
    checks.text("merchant_id", request.merchant_id)
    checks.text("order_id", request.order_id)
    lines = _lines(checks, request.lines)
    checks.done()
    return Reserve(request.merchant_id, request.order_id, lines)


def return_wish(request: pb.ReturnStockRequest) -> Return:
    """The command in a request. Raises Invalid."""
    checks = Checks()
    checks.text("merchant_id", request.merchant_id)
    checks.text("reservation_id", request.reservation_id)
    lines = _lines(checks, request.lines)
    checks.done()
    return Return(request.merchant_id, request.reservation_id, lines)


def _lines(checks: Checks, lines: Sequence[pb.StockLine]) -> Mapping[str, int]:
    """Checked, merged and ascending."""
    checks.number("lines", len(lines), at_least=1, at_most=LINES_MAX)
    for place, line in enumerate(lines[:LINES_MAX]):
        checks.text(f"lines[{place}].sku", line.sku)
        checks.number(f"lines[{place}].quantity", line.quantity, at_least=1, at_most=QUANTITY_MAX)
    return domain.merge_lines((line.sku, line.quantity) for line in lines)


def release_wish(request: pb.ReleaseStockRequest) -> End:
    """The command in a request. Raises Invalid."""
    checks = Checks()
    checks.text("merchant_id", request.merchant_id)
    which = request.WhichOneof("target")
    if which == "reserve_key":
        checks.text("reserve_key", request.reserve_key, max_length=255)
    else:
        checks.text("reservation_id", request.reservation_id)
    checks.done()
    by_key = which == "reserve_key"
    return End(request.merchant_id, ByKey(request.reserve_key) if by_key else request.reservation_id)


def commit_wish(request: pb.CommitStockRequest) -> End:
    """The command in a request. Raises Invalid."""
    checks = Checks()
    checks.text("merchant_id", request.merchant_id)
    checks.text("reservation_id", request.reservation_id)
    checks.done()
    return End(request.merchant_id, request.reservation_id)


def product_message(product: Product) -> pb.Product:
    """The product on the wire."""
    return pb.Product(
        merchant_id=product.merchant_id,
        sku=product.sku,
        name=product.name,
        on_hand_quantity=product.on_hand,
        reserved_quantity=product.reserved,
    )


def reservation_message(reservation: Reservation) -> pb.Reservation:
    """The reservation on the wire."""
    message = pb.Reservation(
        merchant_id=reservation.merchant_id,
        reservation_id=reservation.reservation_id,
        order_id=reservation.order_id,
        state=_STATES[reservation.state],
    )
    lines = message.lines
    for sku, quantity in reservation.lines.items():
        lines.add(sku=sku, quantity=quantity)
    if reservation.created_at_ms:
        write_timestamp(message.created_at, reservation.created_at_ms)
    return message


def return_message(made: StockReturn) -> pb.StockReturn:
    """The return on the wire."""
    message = pb.StockReturn(
        merchant_id=made.merchant_id,
        return_id=made.return_id,
        reservation_id=made.reservation_id,
        order_id=made.order_id,
    )
    for sku, quantity in made.lines.items():
        message.lines.add(sku=sku, quantity=quantity)
    write_timestamp(message.created_at, made.created_at_ms)
    return message
