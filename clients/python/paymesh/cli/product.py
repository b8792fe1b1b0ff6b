"""`paymesh product`: the catalogue and its stock."""

from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from paymesh.channel import with_key
from paymesh.cli.calls import check_key, connected, run, until_settled
from paymesh.cli.options import (
    INVENTORY_TARGET,
    LIMIT,
    MERCHANT,
    PATIENCE,
    InventoryTarget,
    Json,
    Key,
    Limit,
    Merchant,
    Patience,
)
from paymesh.cli.story import console, print_json
from paymesh.inventory.v1 import inventory_pb2, inventory_pb2_grpc

PAGE_SIZE_MAX = 1_000

commands = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")

Sku = Annotated[str, typer.Argument(metavar="SKU", help="The merchant's identifier of the product.")]


@commands.command(
    "add", epilog="Example: `paymesh product add 85123A --name 'T-light holder' --quantity 100`"
)
def add_product(
    sku: Sku,
    quantity: Annotated[int, typer.Option("--quantity", "-q", min=0, help="First stock, in pieces.")] = 0,
    name: Annotated[str, typer.Option("--name", help="Name for people.")] = "",
    key: Key = None,
    patience: Patience = PATIENCE,
    merchant: Merchant = MERCHANT,
    target: InventoryTarget = INVENTORY_TARGET,
    as_json: Json = False,
) -> None:
    """Add a product with its first stock."""
    metadata = with_key(check_key(key))
    request = inventory_pb2.CreateProductRequest(
        merchant_id=merchant, sku=sku, name=name, initial_quantity=quantity
    )

    async def work() -> inventory_pb2.CreateProductResponse:
        async with connected(target) as channel:
            stub = inventory_pb2_grpc.InventoryServiceStub(channel)
            return await until_settled(lambda: stub.CreateProduct(request, metadata=metadata), patience)

    _show(run(work(), as_json).product, as_json)


@commands.command("get", epilog="Example: `paymesh product get 85123A`")
def get_product(
    sku: Sku, merchant: Merchant = MERCHANT, target: InventoryTarget = INVENTORY_TARGET, as_json: Json = False
) -> None:
    """Show a product and its stock."""

    async def work() -> inventory_pb2.GetProductResponse:
        async with connected(target) as channel:
            stub = inventory_pb2_grpc.InventoryServiceStub(channel)
            return await stub.GetProduct(inventory_pb2.GetProductRequest(merchant_id=merchant, sku=sku))

    _show(run(work(), as_json).product, as_json)


@commands.command("list", epilog="Example: `paymesh product list --limit 20 --json`")
def list_products(
    limit: Limit = LIMIT,
    merchant: Merchant = MERCHANT,
    target: InventoryTarget = INVENTORY_TARGET,
    as_json: Json = False,
) -> None:
    """List a merchant's products by ascending SKU."""
    products = run(_list(target, merchant, limit), as_json)
    if as_json:
        print_json(inventory_pb2.ListProductsResponse(products=products))
    elif products:
        console().print(_table(products))
    else:
        console().print(f"no products of merchant {merchant}")


async def _list(target: str, merchant: str, limit: int) -> list[inventory_pb2.Product]:
    """Up to `limit` products, page by page."""
    products: list[inventory_pb2.Product] = []
    token = ""
    async with connected(target) as channel:
        stub = inventory_pb2_grpc.InventoryServiceStub(channel)
        while len(products) < limit:
            page_size = min(limit - len(products), PAGE_SIZE_MAX)
            page = await stub.ListProducts(
                inventory_pb2.ListProductsRequest(merchant_id=merchant, page_size=page_size, page_token=token)
            )
            products += page.products
            token = page.next_page_token
            if not token:
                break
    return products


def _show(product: inventory_pb2.Product, as_json: bool) -> None:
    if as_json:
        print_json(product)
    else:
        console().print(_table([product]))


def _table(products: list[inventory_pb2.Product]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("sku", "name"):
        table.add_column(column)
    for column in ("on hand", "reserved", "available"):
        table.add_column(column, justify="right")
    for product in products:
        available = product.on_hand_quantity - product.reserved_quantity
        counts = (product.on_hand_quantity, product.reserved_quantity, available)
        # As Text, since names come from outside: square brackets in them are not markup.
        table.add_row(Text(product.sku), Text(product.name), *(f"{count:,}" for count in counts))
    return table
