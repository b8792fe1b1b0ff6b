"""Which orders are accepted. What is proved: the short way through the checks accepts nothing that the full checks find
fault with, and spares the ordinary order from them; the full checks stay the only place where a fault is named.

The orders are made good or nearly so, for it is at the limits that two descriptions of one rule part company.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from paymesh.orchestrator.v1 import orchestrator_pb2 as pb
from services.kit.errors import Invalid
from services.kit.money import AMOUNT_MINOR_MAX
from services.orchestrator.service.requests import (
    LINES_MAX,
    QUANTITY_MAX,
    STREET_LINES_MAX,
    check_order,
    parse_order,
    plainly_good,
)
from tests.depth import examples


def _texts(length_max: int, *samples: str) -> st.SearchStrategy[str]:
    """Texts around a limit of so many characters, some with a NUL or from outside ASCII."""
    edges = ["", "a", "ü" * length_max, "a" * length_max, "a" * (length_max + 1), "a\x00b", "\x00", " "]
    return st.sampled_from([*samples, *edges]) | st.text(max_size=5)


def _numbers(number_max: int) -> st.SearchStrategy[int]:
    return st.sampled_from([-1, 0, 1, 2, number_max - 1, number_max, number_max + 1, -(2**63), 2**63 - 1])


COUNTRIES = _texts(2, "GB", "US", "gb", "G1", "GBR", "ÄÖ")
EMAILS = _texts(
    200, "ann@example.com", "@", "a@", "@b", "a@b", "a@b@", "a" * 100 + "@" + "b" * 99, "a@" + "b" * 199
)
BINS = _texts(8, "424242", "42424242", "42424", "424242424", "42424a", "٤٢٤٢٤٢")
ADDRESSES = _texts(
    45, "192.0.2.7", "2001:db8::1", "::", "1.2.3", "1.2.3.4.5", "01.2.3.4", "fe80::1%eth0", ":", "::1\x00"
)

FAULTS: dict[str, tuple[st.SearchStrategy[object], Callable[[pb.PlaceOrderRequest, object], None]]] = {
    "merchant_id": (_texts(64), lambda order, v: setattr(order, "merchant_id", v)),
    "order_reference": (_texts(64), lambda order, v: setattr(order, "order_reference", v)),
    "sku": (_texts(64), lambda order, v: setattr(order.lines[-1], "sku", v)),
    "quantity": (_numbers(QUANTITY_MAX), lambda order, v: setattr(order.lines[-1], "quantity", v)),
    "amount_minor": (_numbers(AMOUNT_MINOR_MAX), lambda order, v: setattr(order.amount, "amount_minor", v)),
    "currency": (
        _texts(3, "GBP", "JPY", "XAU", "gbp", "XXX"),
        lambda order, v: setattr(order.amount, "currency", v),
    ),
    "token": (_texts(128), lambda order, v: setattr(order.card, "token", v)),
    "bin": (BINS, lambda order, v: setattr(order.card, "bin", v)),
    "customer_id": (_texts(64), lambda order, v: setattr(order.customer, "customer_id", v)),
    "email": (EMAILS, lambda order, v: setattr(order.customer, "email", v)),
    "billing_country": (COUNTRIES, lambda order, v: setattr(order.customer, "billing_country", v)),
    "ip_address": (ADDRESSES, lambda order, v: setattr(order.customer, "ip_address", v)),
    "name": (_texts(200), lambda order, v: setattr(order.shipping_address, "name", v)),
    "country": (COUNTRIES, lambda order, v: setattr(order.shipping_address, "country", v)),
    "city": (_texts(200), lambda order, v: setattr(order.shipping_address, "city", v)),
    "postal_code": (_texts(32), lambda order, v: setattr(order.shipping_address, "postal_code", v)),
    "street_line": (_texts(200), lambda order, v: order.shipping_address.street_lines.append(str(v))),
}
"""Per field: values around its limits, and how it is set."""


def _good(lines: int = 1, street_lines: int = 1) -> pb.PlaceOrderRequest:
    order = pb.PlaceOrderRequest(merchant_id="mer_1", order_reference="1001")
    for number in range(lines):
        order.lines.add(sku=f"mug-{number}", quantity=2)
    order.amount.amount_minor, order.amount.currency = 1800, "GBP"
    order.card.token, order.card.bin = "tok_visa", "424242"
    order.customer.customer_id, order.customer.email = "cus_1", "ann@example.com"
    order.customer.billing_country, order.customer.ip_address = "GB", "192.0.2.7"
    order.shipping_address.name, order.shipping_address.country = "Ann Example", "GB"
    order.shipping_address.city, order.shipping_address.postal_code = "London", "N1 9GU"
    order.shipping_address.street_lines.extend(["1 Some Street"] * street_lines)
    return order


@st.composite
def orders(draw: st.DrawFn) -> pb.PlaceOrderRequest:
    """Good orders with up to three fields changed."""
    order = _good(
        draw(st.integers(1, 3)), draw(st.sampled_from([0, 1, STREET_LINES_MAX - 1, STREET_LINES_MAX]))
    )
    for name in draw(st.lists(st.sampled_from(sorted(FAULTS)), max_size=3)):
        values, change = FAULTS[name]
        change(order, draw(values))
    return order


def _accepted(order: pb.PlaceOrderRequest) -> bool:
    try:
        check_order(order)
    except Invalid:
        return False
    return True


@settings(max_examples=examples(400, 3_000), deadline=None)
@given(order=orders())
def test_the_short_way_accepts_exactly_what_the_full_checks_accept(order: pb.PlaceOrderRequest) -> None:
    accepted = _accepted(order)
    event("accepted" if accepted else "refused")
    assert plainly_good(order) == accepted
    if accepted:
        assert parse_order(order) is order
    else:
        with pytest.raises(Invalid):
            parse_order(order)


@pytest.mark.parametrize("lines", [0, 1, LINES_MAX, LINES_MAX + 1])
def test_the_number_of_lines_is_limited_either_way(lines: int) -> None:
    order = _good(lines)
    assert plainly_good(order) == _accepted(order) == (1 <= lines <= LINES_MAX)


@pytest.mark.parametrize("part", ["amount", "card", "customer", "shipping_address"])
def test_an_order_without_one_of_its_parts_is_judged_alike(part: str) -> None:
    order = _good()
    getattr(order, part).Clear()
    assert plainly_good(order) == _accepted(order) == (part == "customer")
