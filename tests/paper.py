"""A third processor, as somebody would add one: this file, and the one line at its end. It approves everything and
keeps its books on paper, that is, in memory. `python -m tests.paper` is a payment process that knows it."""

from __future__ import annotations

from dataclasses import dataclass

from services.kit.process import run
from services.payment.__main__ import wire
from services.payment.clients import PROCESSORS, Asked
from services.payment.clients.one_by_one import CallLimits, OneByOne, Unanswered
from services.payment.clients.processor import authorize_key, movement_key
from services.payment.config import PaymentConfig
from services.payment.domain import (
    Absent,
    Approved,
    Authorization,
    Done,
    Gone,
    Letting,
    Movement,
    Payment,
    RefusedByProcessor,
)

LIMITS = CallLimits(seconds=2.0, calls_max=8, failures_max=3, probe_seconds=0.1)


async def open_paper(config: PaymentConfig) -> PaperProcessor:
    """It needs no settings."""
    return PaperProcessor()


@dataclass
class _Hold:
    minor: int
    reference: str
    open: bool = True


class PaperProcessor(OneByOne):
    """Of the first call for an order whose id says so the answer is lost."""

    def __init__(self) -> None:
        super().__init__("paper", LIMITS)
        self._holds: dict[str, _Hold] = {}
        self._done: dict[str, Done] = {}
        self._cancelled: set[str] = set()

    async def authorize_one(self, asked: Asked) -> Authorization:
        key = authorize_key(asked.payment)
        if key in self._cancelled:
            return RefusedByProcessor("CANCELLED")
        new = key not in self._holds
        hold = self._holds.setdefault(key, _Hold(asked.wish.amount.amount_minor, f"paper_{len(self._holds)}"))
        if new and "lost" in asked.payment.order_id:
            raise Unanswered("LOST")
        if asked.wish.card_token == "tok_defect":
            raise ValueError("a defect")
        return Approved(hold.reference, "PAPER1") if hold.open else Gone()

    async def void_one(self, payment: Payment) -> Letting:
        self._hold_of(payment).open = False
        return Gone()

    async def move_one(self, payment: Payment) -> Movement:
        key = movement_key(payment)
        return self._done.setdefault(key, Done(f"paper_{key}", payment.pending_minor))

    async def look_up_one(self, asked: Asked) -> Authorization | Absent:
        hold = self._holds.get(authorize_key(asked.payment))
        return Absent() if hold is None else Approved(hold.reference, "PAPER1") if hold.open else Gone()

    async def look_up_movement_one(self, payment: Payment) -> Movement | Absent:
        return self._done.get(movement_key(payment), Absent())

    async def cancel_one(self, asked: Asked) -> Authorization:
        key = authorize_key(asked.payment)
        self._cancelled.add(key)
        if key in self._holds:
            self._holds[key].open = False
        return Gone()

    async def close(self) -> None:
        """Nothing to let go of."""

    def _hold_of(self, payment: Payment) -> _Hold:
        return next(hold for hold in self._holds.values() if hold.reference == payment.processor_reference)


if __name__ == "__main__":
    PROCESSORS["paper"] = open_paper
    run("payment", PaymentConfig, wire)
