"""The orders of the demonstration, as data: what each kind is, and how it must end."""

from collections.abc import Iterator
from dataclasses import dataclass

from paymesh.orchestrator.v1 import orchestrator_pb2 as pb

MERCHANT = "mer_demo"
UNLUCKY_MERCHANT = "mer_unlucky"
"""Its bank loses every third answer."""
BLOCKED_CUSTOMER = "cus_blocked"
SKUS = tuple(f"sku-{number:02}" for number in range(20))
RARE_SKU = "sku-rare"
RARE_STOCK = 10

PLACED = "COMPLETED"
UNDONE = "COMPENSATED"


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of order."""

    name: str
    count: int
    ends: tuple[str, ...]
    """The states that it may end in."""
    why: str = ""
    """The reason with which it must be undone, if it is."""
    merchant_id: str = MERCHANT
    card: str = "tok_visa"
    sku: str = ""
    country: str = "GB"
    customer_id: str = ""


KINDS = (
    Kind(name="good", count=200, ends=(PLACED,)),
    Kind(name="card declined", count=40, ends=(UNDONE,), why="CARD_DECLINED", card="tok_declined"),
    Kind(
        name="no money",
        count=20,
        ends=(UNDONE,),
        why="INSUFFICIENT_FUNDS",
        card="tok_insufficient_funds",
    ),
    Kind(name="blocked customer", count=20, ends=(UNDONE,), why="FRAUD", customer_id=BLOCKED_CUSTOMER),
    Kind(
        name=f"{RARE_STOCK} left, 30 wanted",
        count=30,
        ends=(PLACED, UNDONE),
        why="OUT_OF_STOCK",
        sku=RARE_SKU,
    ),
    Kind(name="no carrier goes there", count=30, ends=(UNDONE,), why="COUNTRY_NOT_SERVED", country="AQ"),
    Kind(name="bank loses answers", count=60, ends=(PLACED,), merchant_id=UNLUCKY_MERCHANT),
)


@dataclass(frozen=True)
class Planned:
    """One order to be placed."""

    kind: Kind
    key: str
    request: pb.PlaceOrderRequest


def planned_orders() -> list[Planned]:
    """All orders, the kinds mixed like cards by a shuffle that is the same every time."""
    orders = [planned for kind in KINDS for planned in _of(kind)]
    return [orders[place * 211 % len(orders)] for place in range(len(orders))]


def _of(kind: Kind) -> Iterator[Planned]:
    for number in range(kind.count):
        slug = kind.name.replace(" ", "-").replace(",", "")
        request = pb.PlaceOrderRequest(merchant_id=kind.merchant_id, order_reference=f"{slug}-{number}")
        request.lines.add(sku=kind.sku or SKUS[number % len(SKUS)], quantity=1)
        request.amount.amount_minor = 1_000 + 37 * number
        request.amount.currency = "GBP"
        # Distinct cards: the fraud rules count how often one card is used.
        request.card.token = f"{kind.card}_{slug}-{number}"
        request.customer.customer_id = kind.customer_id or f"cus_{slug}-{number}"
        request.shipping_address.name = "A. Customer"
        request.shipping_address.city = "London"
        request.shipping_address.country = kind.country
        yield Planned(kind, f"demo/{slug}/{number}", request)
