"""Amounts as people type them."""

from decimal import Decimal

from paymesh.amounts import AmountError, currency_exponent, minor_units, parse_decimal
from paymesh.cli.program import UserError
from paymesh.money.v1 import money_pb2


def money_of(amount: str, currency: str) -> money_pb2.Money:
    """`15.30` of a currency, exactly. UserError for what is no amount of it."""
    try:
        decimal: Decimal = parse_decimal(amount)
        amount_minor = minor_units(decimal, currency_exponent(currency))
    except AmountError as error:
        raise UserError(f"--amount {amount} --currency {currency}: {error}") from None
    if abs(amount_minor) >= 2**63:
        raise UserError(f"--amount {amount}: no such amount can be charged")
    return money_pb2.Money(amount_minor=amount_minor, currency=currency)
