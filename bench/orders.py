"""Orders as a shop's day brings them: everybody another person with another card, a few best-sellers, many slow ones.

Drawn from a seed, so that two runs send the same. The fraud rules must have no reason to object: every order has a
card, a customer and an internet address of its own, and none is so small that it looks like a test of stolen cards.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import accumulate

from paymesh.orchestrator.v1 import orchestrator_pb2
from paymesh.payment.v1 import payment_pb2

PRODUCTS_COUNT = 200
POPULARITY_EXPONENT = 1.0
"""Zipf: the product of rank r is bought in proportion to 1/r, so the best-seller is in every fifth order or so."""
LINES_COUNTS = (1, 1, 1, 2, 2, 3)
QUANTITIES = (1, 1, 1, 1, 2, 2, 3)
AMOUNT_MINOR_MIN, AMOUNT_MINOR_MAX = 15_00, 450_00
CURRENCIES = ("USD", "EUR", "GBP")
COUNTRIES = ("US", "DE", "GB", "FR", "NL", "SE")
CARD_BIN = "424242"

SKUS = tuple(f"sku-{rank:03d}" for rank in range(1, PRODUCTS_COUNT + 1))
"""Most popular first."""
_POPULARITY = tuple(accumulate(rank**-POPULARITY_EXPONENT for rank in range(1, PRODUCTS_COUNT + 1)))


class Buyers:
    """Draws one order after the other, numbered from `first_number`. `merchants` take turns at random."""

    def __init__(self, merchants: Sequence[str], currencies: Mapping[str, str], first_number: int) -> None:
        self._random = random.Random(first_number)  # noqa: S311 - a load, not a secret
        self._merchants = [(merchant, currencies[merchant]) for merchant in merchants]
        self._next = first_number

    def fill_order(self, request: orchestrator_pb2.PlaceOrderRequest) -> str:
        """Write the next order into an empty request; returns its idempotency key."""
        number, merchant, currency = self._draw()
        request.merchant_id = merchant
        skus = set(self._random.choices(SKUS, cum_weights=_POPULARITY, k=self._random.choice(LINES_COUNTS)))
        for sku in sorted(skus):
            request.lines.add(sku=sku, quantity=self._random.choice(QUANTITIES))
        request.amount.amount_minor = self._random.randint(AMOUNT_MINOR_MIN, AMOUNT_MINOR_MAX)
        request.amount.currency = currency
        country = self._pay(request.card, request.customer, number)
        address = request.shipping_address
        address.name = f"Buyer {number}"
        address.street_lines.append(f"{number % 300 + 1} High Street")
        address.city = "Springfield"
        address.postal_code = f"{number % 100_000:05d}"
        address.country = country
        return f"order-{number}"

    def fill_choreographed(self, request: orchestrator_pb2.PlaceOrderRequest) -> str:
        """The same for one that the services place by themselves."""
        request.coordination = orchestrator_pb2.COORDINATION_CHOREOGRAPHED
        return self.fill_order(request)

    def fill_authorization(self, request: payment_pb2.AuthorizePaymentRequest) -> str:
        """Write the next authorization into an empty request; returns its idempotency key."""
        number, merchant, currency = self._draw()
        request.merchant_id = merchant
        request.order_id = f"ord_bench_{number}"
        request.amount.amount_minor = self._random.randint(AMOUNT_MINOR_MIN, AMOUNT_MINOR_MAX)
        request.amount.currency = currency
        self._pay(request.card, request.customer, number)
        return f"authorization-{number}"

    def _draw(self) -> tuple[int, str, str]:
        number = self._next
        self._next += 1
        return number, *self._random.choice(self._merchants)

    def _pay(self, card: payment_pb2.Card, customer: payment_pb2.Customer, number: int) -> str:
        """Fill in who pays; returns the country."""
        country = COUNTRIES[number % len(COUNTRIES)]
        card.token = f"tok_visa_{number}"
        card.bin = CARD_BIN
        customer.customer_id = f"cus_{number}"
        customer.email = f"buyer.{number}@example.com"
        customer.ip_address = ip_address_of(number)
        customer.billing_country = country
        return country


def ip_address_of(number: int) -> str:
    """An address of one's own for each of the first three thousand million numbers, counted from 10.0.0.0."""
    return f"{10 + (number >> 24)}.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
