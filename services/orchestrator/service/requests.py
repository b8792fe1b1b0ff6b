"""Checks of requests, so that a bad order is refused before anything is begun."""

from __future__ import annotations

from paymesh.orchestrator.v1 import orchestrator_pb2 as pb
from services.kit.checks import Checks

LINES_MAX = 1_000
QUANTITY_MAX = 1_000_000
STREET_LINES_MAX = 10
TEXT_MAX = 200


def parse_order(request: pb.PlaceOrderRequest) -> pb.PlaceOrderRequest:
    """The request itself, checked in full. Raises Invalid with every fault."""
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
    checks.done()
    return request


def _payer(checks: Checks, request: pb.PlaceOrderRequest) -> None:
    card, customer = request.card, request.customer
    checks.text("card.token", card.token, max_length=128)
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
    checks.text("shipping_address.postal_code", address.postal_code, max_length=32, optional=True)
    if len(address.street_lines) > STREET_LINES_MAX:
        checks.fail("shipping_address.street_lines", f"has more than {STREET_LINES_MAX} lines")
    for place, line in enumerate(address.street_lines[:STREET_LINES_MAX]):
        checks.text(f"shipping_address.street_lines[{place}]", line, max_length=TEXT_MAX, optional=True)
