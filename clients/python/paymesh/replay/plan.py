"""Requests and idempotency keys for the invoices of an export. Pure: the same file gives the same plan.

Keys make a second run harmless. An order's key is made from its invoice number, so the invoice is placed once
whichever file it stands in. The keys of a product's stock are made from the digest of all invoices: the same
invoices add stock once, while another file adds what it needs itself.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote

from paymesh.channel import KEY_LENGTH_MAX
from paymesh.inventory.v1 import inventory_pb2
from paymesh.money.v1 import money_pb2
from paymesh.orchestrator.v1 import orchestrator_pb2
from paymesh.payment.v1 import payment_pb2
from paymesh.replay.invoices import Invoice, Return
from paymesh.shipping.v1 import shipping_pb2

STOCK_MAX = 1_000_000_000
"""Most pieces that one request may add. A file that sells more of a product runs out of stock, visibly."""

NAME_LENGTH_MAX = 200


@dataclass(frozen=True)
class Plan:
    """Everything that a replay sends."""

    orders: tuple[orchestrator_pb2.PlaceOrderItem, ...]
    """One per invoice, in the same order."""
    products: tuple[inventory_pb2.CreateProductItem, ...]
    """One per product, ascending, each with the stock that all the invoices need together."""
    top_ups: tuple[inventory_pb2.AddStockItem, ...]
    """One per product, in the same order: the same stock, for a product that exists already."""


def make_plan(invoices: Sequence[Invoice], merchant_id: str, card_token: str) -> Plan:
    """Plan the orders of a merchant, all charged to one card."""
    stock: dict[str, int] = {}
    names: dict[str, str] = {}
    for invoice in invoices:
        for sku, quantity in invoice.quantities.items():
            stock[sku] = stock.get(sku, 0) + quantity
        for line in invoice.lines:
            if line.description:
                names.setdefault(line.sku, line.description)
    digest = invoices_digest(invoices)
    products, top_ups = [], []
    for sku in sorted(stock):
        create = inventory_pb2.CreateProductRequest(
            merchant_id=merchant_id,
            sku=sku,
            name=_printable(names.get(sku, ""))[:NAME_LENGTH_MAX],
            initial_quantity=min(stock[sku], STOCK_MAX),
        )
        add = inventory_pb2.AddStockRequest(
            merchant_id=merchant_id, sku=sku, quantity=create.initial_quantity
        )
        create_key, add_key = (make_key("replay", digest, what, sku) for what in ("product", "stock"))
        products.append(inventory_pb2.CreateProductItem(idempotency_key=create_key, request=create))
        top_ups.append(inventory_pb2.AddStockItem(idempotency_key=add_key, request=add))
    orders = tuple(order_item(invoice, merchant_id, card_token) for invoice in invoices)
    return Plan(orders, tuple(products), tuple(top_ups))


def order_item(invoice: Invoice, merchant_id: str, card_token: str) -> orchestrator_pb2.PlaceOrderItem:
    """The order of one invoice. Exports name no addressee: the customer number stands in for one."""
    addressee = f"Customer {invoice.customer_id}" if invoice.customer_id else f"Invoice {invoice.number}"
    request = orchestrator_pb2.PlaceOrderRequest(
        merchant_id=merchant_id,
        order_reference=invoice.number,
        lines=[
            orchestrator_pb2.OrderLine(sku=sku, quantity=quantity)
            for sku, quantity in invoice.quantities.items()
        ],
        amount=money_pb2.Money(amount_minor=invoice.amount_minor, currency=invoice.currency),
        card=payment_pb2.Card(token=card_token),
        customer=payment_pb2.Customer(customer_id=invoice.customer_id, billing_country=invoice.country),
        shipping_address=shipping_pb2.Address(name=addressee, country=invoice.country),
    )
    key = make_key("invoice", invoice.number)
    return orchestrator_pb2.PlaceOrderItem(idempotency_key=key, request=request)


def dispatch_item(invoice_number: str, order_id: str, merchant_id: str) -> orchestrator_pb2.DispatchOrderItem:
    """Sends the order of an invoice out of the door."""
    request = orchestrator_pb2.DispatchOrderRequest(merchant_id=merchant_id, order_id=order_id)
    key = make_key("invoice", invoice_number, "dispatch")
    return orchestrator_pb2.DispatchOrderItem(idempotency_key=key, request=request)


def return_item(one: Return, order_id: str, merchant_id: str) -> orchestrator_pb2.ReturnOrderItem:
    """Takes back what a cancellation says, from the order of its original."""
    request = orchestrator_pb2.ReturnOrderRequest(
        merchant_id=merchant_id,
        order_id=order_id,
        lines=[
            orchestrator_pb2.OrderLine(sku=sku, quantity=quantity) for sku, quantity in one.quantities.items()
        ],
        amount=money_pb2.Money(amount_minor=one.amount_minor, currency=one.currency),
        note=f"invoice {one.number}",
    )
    key = make_key("invoice", one.number, "return", one.original)
    return orchestrator_pb2.ReturnOrderItem(idempotency_key=key, request=request)


def make_key(*parts: str) -> str:
    """An idempotency key that no other parts give: printable ASCII, hashed where it would be too long."""
    key = "/".join(quote(part, safe="") for part in parts)
    if len(key) <= KEY_LENGTH_MAX:
        return key
    return f"sha256/{hashlib.sha256(key.encode()).hexdigest()}"


def invoices_digest(invoices: Sequence[Invoice]) -> str:
    """Names a set of invoices by what they sell. Neither their order nor the file's encoding matters."""
    texts = sorted(
        "\0".join([invoice.number, *(f"{sku}\0{count}" for sku, count in invoice.quantities.items())])
        for invoice in invoices
    )
    return hashlib.sha256("\1".join(texts).encode()).hexdigest()[:32]


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else " " for character in text)
