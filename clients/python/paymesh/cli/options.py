"""Options that several commands share, each with its environment variable."""

import getpass
import re
from typing import Annotated

import typer

from paymesh.cli.program import UserError
from paymesh.orchestrator.v1 import orchestrator_pb2

Merchant = Annotated[
    str, typer.Option("--merchant", "-m", envvar="PAYMESH_MERCHANT", help="The merchant that sells.")
]
MERCHANT = "demo"

Json = Annotated[
    bool, typer.Option("--json", help="Print JSON for machines instead of text; 64-bit numbers are strings.")
]

Target = Annotated[
    str, typer.Option("--target", envvar="PAYMESH_TARGET", help="Address of the orchestrator.")
]
TARGET = "127.0.0.1:7100"

PaymentTarget = Annotated[
    str,
    typer.Option("--payment-target", envvar="PAYMESH_PAYMENT_TARGET", help="Address of the payment service."),
]
PAYMENT_TARGET = "127.0.0.1:7101"

InventoryTarget = Annotated[
    str,
    typer.Option(
        "--inventory-target", envvar="PAYMESH_INVENTORY_TARGET", help="Address of the inventory service."
    ),
]
INVENTORY_TARGET = "127.0.0.1:7102"

FraudTarget = Annotated[
    str, typer.Option("--fraud-target", envvar="PAYMESH_FRAUD_TARGET", help="Address of the fraud service.")
]
FRAUD_TARGET = "127.0.0.1:7104"

BankTarget = Annotated[
    str, typer.Option("--bank-target", envvar="PAYMESH_BANK_TARGET", help="Address of the sandbox bank.")
]
BANK_TARGET = "127.0.0.1:7110"

ReconcilerTarget = Annotated[
    str,
    typer.Option("--target", envvar="PAYMESH_RECONCILER_TARGET", help="Address of the reconciler."),
]
RECONCILER_TARGET = "127.0.0.1:7105"

Key = Annotated[
    str | None,
    typer.Option(
        "--key",
        help="Idempotency key: repeating the command with it does nothing twice. A fresh one by default.",
    ),
]

Note = Annotated[str, typer.Option("--note", help="Why, for the audit trail.")]

Actor = Annotated[
    str, typer.Option("--as", envvar="PAYMESH_ACTOR", help="Who you are; your login name by default.")
]
Reason = Annotated[str, typer.Option("--reason", help="Why, for the audit trail.")]

Patience = Annotated[
    float,
    typer.Option(
        "--patience", min=0.0, metavar="SECONDS", help="How long to ask again while the answer is not final."
    ),
]
PATIENCE = 30.0

Limit = Annotated[int, typer.Option("--limit", min=1, help="Show at most this many.")]
LIMIT = 100

OrderId = Annotated[str, typer.Argument(metavar="ORDER", help="Identifier, ord_…")]


def acting(given: str) -> str:
    """Who acts: who was named, or who is logged in."""
    if given:
        return given
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        raise UserError("--as NAME: say who you are") from None


def order_line(text: str) -> orchestrator_pb2.OrderLine:
    """What --line says."""
    sku, separator, quantity = text.rpartition("=")
    if not separator or not sku or not re.fullmatch("[0-9]{1,18}", quantity):
        raise UserError(f"--line {text}: expected SKU=PIECES, for example 85123A=6")
    return orchestrator_pb2.OrderLine(sku=sku, quantity=int(quantity))
