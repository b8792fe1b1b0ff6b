"""Keeps the money of orders to their orders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from services.kit.db import Transaction
from services.kit.sets import Command
from services.payment import domain, store
from services.payment.domain import Payment, PaymentKey


async def find_untouchable(
    tx: Transaction,
    commands: Sequence[Command[Any]],
    keys: Sequence[PaymentKey],
    payments: Mapping[PaymentKey, Payment],
) -> list[bool]:
    """Whether each command is after the money of an order and no step of a saga. `keys` name their payments.

    Steps of sagas, and payments with an order reference of their caller's own, are told by their looks. Only what is
    left, which is next to nothing, costs a query."""
    asked = {
        key
        for command, key in zip(commands, keys, strict=True)
        if not domain.moved_by_a_saga(command.caller, command.key)
        and (payment := payments.get(key)) is not None
        and domain.may_be_of_an_order(payment)
    }
    if not asked:
        return [False] * len(commands)
    begun = await store.find_beginnings(tx, sorted(asked))
    # Whose beginning was taken away with its month is settled for good; should anything be wished of it, it is no.
    of_orders = {
        key for key in asked if key not in begun or domain.begun_by_a_saga(payments[key], *begun[key])
    }
    return [
        key in of_orders and not domain.moved_by_a_saga(command.caller, command.key)
        for command, key in zip(commands, keys, strict=True)
    ]
