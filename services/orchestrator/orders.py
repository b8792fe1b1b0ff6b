"""What may be done with an order. Pure: an order's sagas in, decisions out.

An order is what its sagas say. One places it; after that it is dispatched or cancelled, and what was dispatched may
come back. Of all that is asked of one order, one saga is under way at a time, so whoever decides with the order's row
locked and all its sagas read decides alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import NamedTuple

from services.kit.errors import InProgress, PaymeshError, Refused
from services.kit.money import Money
from services.orchestrator.plans import CANCEL, DISPATCH, RETURN
from services.orchestrator.positions import State

BUSY_RETRY_AFTER_MS = 200
"""Whoever meets another command under way for the order asks again after this: most have ended by then."""


class Stage(StrEnum):
    """Where an order stands."""

    PLACING = "PLACING"
    NOT_PLACED = "NOT_PLACED"
    PLACED = "PLACED"
    DISPATCHING = "DISPATCHING"
    DISPATCHED = "DISPATCHED"
    CANCELLING = "CANCELLING"
    CANCELLED = "CANCELLED"
    PARTIALLY_RETURNED = "PARTIALLY_RETURNED"
    RETURNED = "RETURNED"


class Goods(NamedTuple):
    """What is sold, or comes back, for how much: pieces by sku, ascending."""

    lines: Mapping[str, int]
    amount: Money


class Later(NamedTuple):
    """A saga of the order after the one that places it."""

    saga_id: str
    kind: str
    state: State
    goods: Goods | None = None
    """What comes back; None unless it is a return."""


class Order(NamedTuple):
    """An order as its sagas have it."""

    order_id: str
    placing: State
    """Of the saga that places it."""
    sold: Goods
    later: Sequence[Later] = ()
    """Its other sagas, oldest first."""

    @property
    def returned(self) -> Goods:
        """What came back so far."""
        lines: dict[str, int] = {}
        amount = Money(0, self.sold.amount.currency)
        for one in self.later:
            if one.goods is not None and one.state is State.COMPLETED:
                amount += one.goods.amount
                for sku, quantity in one.goods.lines.items():
                    lines[sku] = lines.get(sku, 0) + quantity
        return Goods(dict(sorted(lines.items())), amount)

    @property
    def stage(self) -> Stage:
        """Where it stands."""
        if self.placing is not State.COMPLETED:
            turned = self.placing in (State.COMPENSATING, State.COMPENSATED)
            return Stage.NOT_PLACED if turned else Stage.PLACING
        counts = [one for one in self.later if one.state is not State.COMPENSATED]
        for one in counts:
            if one.kind == CANCEL.kind:
                return Stage.CANCELLED if one.state is State.COMPLETED else Stage.CANCELLING
        for one in counts:
            if one.kind == DISPATCH.kind:
                return self._dispatched() if one.state is State.COMPLETED else Stage.DISPATCHING
        return Stage.PLACED

    def _dispatched(self) -> Stage:
        back = self.returned.lines
        if not back:
            return Stage.DISPATCHED
        everything = all(back.get(sku, 0) >= quantity for sku, quantity in self.sold.lines.items())
        return Stage.RETURNED if everything else Stage.PARTIALLY_RETURNED


_WHY_NOT: Mapping[str, Mapping[Stage, tuple[str, str]]] = {
    DISPATCH.kind: {
        Stage.DISPATCHED: ("ORDER_DISPATCHED", "it has left already"),
        Stage.PARTIALLY_RETURNED: ("ORDER_DISPATCHED", "it has left already"),
        Stage.RETURNED: ("ORDER_DISPATCHED", "it has left already"),
        Stage.CANCELLED: ("ORDER_CANCELLED", "it was cancelled"),
    },
    CANCEL.kind: {
        Stage.DISPATCHED: ("ORDER_DISPATCHED", "it has left; let it be returned instead"),
        Stage.PARTIALLY_RETURNED: ("ORDER_DISPATCHED", "it has left; let it be returned instead"),
        Stage.RETURNED: ("ORDER_DISPATCHED", "it has left, and came back"),
        Stage.CANCELLED: ("ORDER_CANCELLED", "it was cancelled already"),
    },
    RETURN.kind: {
        Stage.PLACED: ("ORDER_NOT_DISPATCHED", "it has not left; cancel it instead"),
        Stage.RETURNED: ("ORDER_RETURNED", "all of it came back already"),
        Stage.CANCELLED: ("ORDER_CANCELLED", "it was cancelled"),
    },
}
"""Why a kind of saga cannot be begun with an order at a stage; what is not here can."""


def may_begin(kind: str, order: Order) -> PaymeshError | None:
    """Whether a saga of this kind may be begun with the order as it stands: None, or why not."""
    if order.placing in (State.COMPENSATING, State.COMPENSATED, State.PARKED):
        return _refused(order, "ORDER_NOT_PLACED", f"its placing is {order.placing}")
    sagas = ((one.saga_id, one.state) for one in order.later)
    for saga_id, state in (("", order.placing), *sagas):
        if not state.ended:
            return InProgress(
                "ORDER_BUSY",
                f"something else is under way for order {order.order_id}; ask again with the same key",
                facts={"order_id": order.order_id, **({"saga_id": saga_id} if saga_id else {})},
                retry_after_ms=BUSY_RETRY_AFTER_MS,
            )
        if state is State.PARKED:
            return _refused(order, "ORDER_PARKED", f"{saga_id} waits for a person", saga_id=saga_id)
    if (why := _WHY_NOT[kind].get(order.stage)) is not None:
        return _refused(order, *why)
    return None


def take_back(order: Order, lines: Mapping[str, int], amount: Money | None) -> Goods | PaymeshError:
    """What a return takes back of an order that may be returned: `lines` for `amount`, or all that is left. Never more
    than was sold and charged and has not come back."""
    sold, returned = order.sold, order.returned
    left = {
        sku: remaining
        for sku, quantity in sold.lines.items()
        if (remaining := quantity - returned.lines.get(sku, 0)) > 0
    }
    due = Money(sold.amount.amount_minor - returned.amount.amount_minor, sold.amount.currency)
    wanted = Goods(lines, amount) if amount is not None else Goods(left, due)
    if wanted.amount.currency != due.currency:
        return _refused(
            order, "CURRENCY_MISMATCH", f"it is in {due.currency}, not in {wanted.amount.currency}"
        )
    for sku, quantity in wanted.lines.items():
        if quantity > left.get(sku, 0):
            why = f"{quantity} of {sku!r} come back, {left.get(sku, 0)} are out"
            return _refused(order, "RETURN_EXCEEDS_SOLD", why, sku=sku, out=str(left.get(sku, 0)))
    if not 0 < wanted.amount.amount_minor <= due.amount_minor:
        why = f"{wanted.amount.amount_minor} cannot be refunded of the {due.amount_minor} that are left"
        return _refused(order, "RETURN_EXCEEDS_CHARGED", why, left_minor=str(due.amount_minor))
    return wanted


def _refused(order: Order, reason: str, why: str, **facts: str) -> Refused:
    about = {"order_id": order.order_id, "order_state": str(order.stage)}
    return Refused(reason, f"order {order.order_id}: {why}", facts=about | facts)
