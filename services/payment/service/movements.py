"""Increments, captures and refunds: three operations of one shape.

The intent is recorded under the payment's lock, so of two that arrive at once one begins and the other finds the
payment busy. Money moves between the two transactions, once: whatever is repeated goes to the processor under the
same key.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from opentelemetry.trace import Span

from services.kit.clock import now_ms
from services.kit.db import Database, Transaction
from services.kit.deadline import Deadline
from services.kit.errors import PaymeshError
from services.kit.idempotency import Identity, begin_set, identity
from services.kit.sets import Command, Failed, Outcome
from services.payment import domain, store
from services.payment.clients import Processor
from services.payment.config import PaymentConfig
from services.payment.domain import Event, FeePlan, Move, Payment
from services.payment.service.belonging import find_untouchable
from services.payment.service.outcomes import (
    CAPTURE,
    INCREMENT,
    REFUND,
    Operation,
    Told,
    conclude,
    still_open,
)


@dataclass(frozen=True, slots=True)
class Kind:
    """One of the three."""

    operation: Operation[Any]
    request: Callable[[Payment, Move, FeePlan, str, str, int], Event | PaymeshError]
    costs: bool = False
    """Whether merchants are charged for it."""


INCREMENTS = Kind(INCREMENT, domain.request_increment)
CAPTURES = Kind(CAPTURE, domain.request_capture, costs=True)
REFUNDS = Kind(REFUND, domain.request_refund)


class Movements:
    """Carries sets of them out."""

    def __init__(self, database: Database, processor: Processor, config: PaymentConfig) -> None:
        self._database = database
        self._processor = processor
        self._intent_seconds = config.intent_seconds
        self._look_again_seconds = config.resolve_first_ms / 1000

    async def carry_out(
        self, kind: Kind, commands: Sequence[Command[Move]], deadline: Deadline
    ) -> list[Outcome[Any]]:
        """Intent, question, outcome."""
        operation = kind.operation
        begun: dict[Identity, tuple[Payment, Span | None]] = {}
        outcomes = await begin_set(
            self._database,
            operation.method,
            commands,
            partial(self._begin, kind, begun),
            operation.pack,
            deadline,
        )
        ours = still_open(commands, outcomes, begun)
        asked = list(ours.values())
        answers = await self._processor.move(operation.waits_in, asked, deadline) if asked else []
        told = [
            Told(
                payment,
                partial(domain.after_movement, asked=payment, answer=answer),
                key,
                span,
                self._look_again_seconds,
            )
            for key, (payment, span), answer in zip(ours, asked, answers, strict=True)
        ]
        return await conclude(self._database, operation, commands, outcomes, told)

    async def _begin(
        self,
        kind: Kind,
        begun: dict[Identity, tuple[Payment, Span | None]],
        tx: Transaction,
        fresh: list[Command[Move]],
    ) -> list[Outcome[Any] | None]:
        """Lock, decide in order, save. A second command for a payment in the set finds it busy with the first."""
        keys = [c.request.key for c in fresh]
        payments = await store.lock_payments(tx, keys)
        untouchable = await find_untouchable(tx, fresh, keys, payments)
        plans = await store.list_fee_plans(tx, [c.merchant_id for c in fresh]) if kind.costs else {}
        now = now_ms()
        outcomes: list[Outcome[Any] | None] = []
        requested: list[Payment] = []
        records: list[store.Record] = []
        for c, of_an_order in zip(fresh, untouchable, strict=True):
            wish = c.request
            payment = payments.get(wish.key)
            decision: Event | PaymeshError
            if payment is None:
                decision = domain.no_payment(wish.payment_id)
            elif of_an_order:
                decision = domain.payment_of_an_order(payment)
            else:
                plan = plans.get((payment.merchant_id, payment.amount.currency), domain.NO_FEE)
                decision = kind.request(payment, wish, plan, c.caller, c.key, now)
            if isinstance(decision, PaymeshError):
                outcomes.append(Failed(decision))
                continue
            assert payment is not None
            payment = payments[wish.key] = domain.apply(payment, decision)
            begun[identity(c)] = (payment, c.span)
            requested.append(payment)
            records.append(store.record_of(payment, decision))
            outcomes.append(None)
        if records:
            store.save_payments(tx, requested, records, self._intent_seconds)
            store.insert_events(tx, records)
        return outcomes
