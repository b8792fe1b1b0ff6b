"""Checks of requests, so that a bad order is refused before anything is begun."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from paymesh.orchestrator.v1 import orchestrator_pb2 as pb
from services.kit.checks import (
    EMAIL_LENGTH_MAX,
    ID_LENGTH_MAX,
    Checks,
    is_card_bin,
    is_country,
    is_email,
    is_ip_address,
)
from services.kit.money import AMOUNT_MINOR_MAX, Money, is_currency

LINES_MAX = 1_000
QUANTITY_MAX = 1_000_000
STREET_LINES_MAX = 10
TEXT_MAX = 200
TOKEN_MAX = 128
POSTAL_CODE_MAX = 32

_COORDINATIONS = frozenset(pb.Coordination.values())


class Wish(NamedTuple):
    """What is wished for with a placed order."""

    merchant_id: str
    order_id: str
    lines: Mapping[str, int] = {}
    """For a return: pieces by sku, ascending; empty for all that is left."""
    amount: Money | None = None
    """For a return: None for all that is left."""
    note: str = ""


def parse_dispatch(request: pb.DispatchOrderRequest) -> Wish:
    """The wish in a request. Raises Invalid."""
    checks = _of_order(request)
    checks.done()
    return Wish(request.merchant_id, request.order_id)


def parse_cancel(request: pb.CancelOrderRequest) -> Wish:
    """The wish in a request. Raises Invalid."""
    checks = _of_order(request)
    checks.text("note", request.note, max_length=TEXT_MAX, optional=True)
    checks.done()
    return Wish(request.merchant_id, request.order_id, note=request.note)


def parse_return(request: pb.ReturnOrderRequest) -> Wish:
    """The wish in a request. Raises Invalid."""
    checks = _of_order(request)
    checks.text("note", request.note, max_length=TEXT_MAX, optional=True)
    amount = None
    if request.HasField("amount"):
        checks.money("amount", request.amount.amount_minor, request.amount.currency)
        amount = Money(request.amount.amount_minor, request.amount.currency)
        checks.number("lines", len(request.lines), at_least=1, at_most=LINES_MAX)
    elif request.lines:
        checks.fail("amount", "must be given with the lines: an order does not know what one of them costs")
    merged: dict[str, int] = {}
    for place, line in enumerate(request.lines[:LINES_MAX]):
        checks.text(f"lines[{place}].sku", line.sku)
        checks.number(f"lines[{place}].quantity", line.quantity, at_least=1, at_most=QUANTITY_MAX)
        merged[line.sku] = merged.get(line.sku, 0) + line.quantity
    checks.done()
    return Wish(request.merchant_id, request.order_id, dict(sorted(merged.items())), amount, request.note)


def _of_order(request: pb.DispatchOrderRequest | pb.CancelOrderRequest | pb.ReturnOrderRequest) -> Checks:
    checks = Checks()
    checks.text("merchant_id", request.merchant_id)
    checks.text("order_id", request.order_id)
    return checks


def parse_order(request: pb.PlaceOrderRequest) -> pb.PlaceOrderRequest:
    """The request itself, checked in full. Raises Invalid with every fault."""
    if not plainly_good(request):
        check_order(request)
    return request


def plainly_good(request: pb.PlaceOrderRequest) -> bool:
    """Whether the order is one of those that `check_order` finds no fault with, told in half the time. A False says
    nothing; a True that was wrong would let a fault in, so a test compares the two on orders of every sort."""
    amount, card, customer = request.amount, request.card, request.customer
    address = request.shipping_address
    merchant_id, reference, token = request.merchant_id, request.order_reference, card.token
    customer_id, email = customer.customer_id, customer.email
    name, city, postal_code = address.name, address.city, address.postal_code
    lines = request.lines[:]
    skus = [line.sku for line in lines]
    quantities = [line.quantity for line in lines]
    streets = address.street_lines[:]
    return (
        0 < len(merchant_id) <= ID_LENGTH_MAX
        and len(reference) <= ID_LENGTH_MAX
        and 0 < len(skus) <= LINES_MAX
        and all(skus)
        and max(map(len, skus)) <= ID_LENGTH_MAX
        and min(quantities) > 0
        and max(quantities) <= QUANTITY_MAX
        and 0 < amount.amount_minor <= AMOUNT_MINOR_MAX
        and is_currency(amount.currency)
        and 0 < len(token) <= TOKEN_MAX
        and (not (card_bin := card.bin) or is_card_bin(card_bin))
        and len(customer_id) <= ID_LENGTH_MAX
        and len(email) <= EMAIL_LENGTH_MAX
        and (not email or is_email(email))
        and (not (billing := customer.billing_country) or is_country(billing))
        and (not (ip_address := customer.ip_address) or is_ip_address(ip_address))
        and 0 < len(name) <= TEXT_MAX
        and is_country(address.country)
        and len(city) <= TEXT_MAX
        and len(postal_code) <= POSTAL_CODE_MAX
        and request.coordination in _COORDINATIONS
        and len(streets) <= STREET_LINES_MAX
        and max(map(len, streets), default=0) <= TEXT_MAX
        # No text may have a NUL; the others of these cannot.
        and "\x00"
        not in "".join(
            (merchant_id, reference, token, customer_id, email, name, city, postal_code, *skus, *streets)
        )
    )


def check_order(request: pb.PlaceOrderRequest) -> None:
    """Raises Invalid with every fault."""
    checks = Checks()
    checks.text("merchant_id", request.merchant_id)
    checks.text("order_reference", request.order_reference, optional=True)
    checks.number("lines", len(request.lines), at_least=1, at_most=LINES_MAX)
    for place, line in enumerate(request.lines[:LINES_MAX]):
        checks.text(f"lines[{place}].sku", line.sku)
        checks.number(f"lines[{place}].quantity", line.quantity, at_least=1, at_most=QUANTITY_MAX)
    checks.money("amount", request.amount.amount_minor, request.amount.currency)
    _payer(checks, request)
    _address(checks, request)
    if request.coordination not in _COORDINATIONS:
        checks.fail("coordination", f"{request.coordination} is not a way to coordinate")
    checks.done()


def _payer(checks: Checks, request: pb.PlaceOrderRequest) -> None:
    card, customer = request.card, request.customer
    checks.text("card.token", card.token, max_length=TOKEN_MAX)
    checks.card_bin("card.bin", card.bin)
    checks.text("customer.customer_id", customer.customer_id, optional=True)
    checks.email("customer.email", customer.email)
    checks.country("customer.billing_country", customer.billing_country, optional=True)
    checks.ip_address("customer.ip_address", customer.ip_address)


def _address(checks: Checks, request: pb.PlaceOrderRequest) -> None:
    address = request.shipping_address
    checks.text("shipping_address.name", address.name, max_length=TEXT_MAX)
    checks.country("shipping_address.country", address.country)
    checks.text("shipping_address.city", address.city, max_length=TEXT_MAX, optional=True)
    checks.text(
        "shipping_address.postal_code", address.postal_code, max_length=POSTAL_CODE_MAX, optional=True
    )
    if len(address.street_lines) > STREET_LINES_MAX:
        checks.fail("shipping_address.street_lines", f"has more than {STREET_LINES_MAX} lines")
    for place, line in enumerate(address.street_lines[:STREET_LINES_MAX]):
        checks.text(f"shipping_address.street_lines[{place}]", line, max_length=TEXT_MAX, optional=True)
