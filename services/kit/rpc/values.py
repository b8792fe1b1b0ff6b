"""Values that nearly every message has, written in place: to build a message for each and have it copied takes twice as
long, and an order has a dozen of them."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp

from paymesh.money.v1.money_pb2 import Money as MoneyMessage
from services.kit.money import Money


def write_money(message: MoneyMessage, money: Money) -> None:
    """Write an amount."""
    message.amount_minor = money.amount_minor
    message.currency = money.currency


def write_timestamp(message: Timestamp, at_ms: int) -> None:
    """Write an instant, given in milliseconds since 1970."""
    seconds, milliseconds = divmod(at_ms, 1000)
    message.seconds = seconds
    message.nanos = milliseconds * 1_000_000
