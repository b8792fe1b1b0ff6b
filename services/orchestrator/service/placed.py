"""Begins sagas with placed orders: dispatch, cancel, return.

Lock, decide, save. The row of the saga that places an order is the order's row: whoever holds its lock and then reads
the order's other sagas sees all that was ever begun with it, and nobody begins anything beside him. So of a dispatch, a
cancellation and two returns that come at the same moment, one is begun.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from paymesh.orchestrator.v1 import orchestrator_pb2 as pb
from paymesh.orchestrator.v1 import stored_pb2
from services.kit.clock import now_ms
from services.kit.db import Transaction
from services.kit.errors import NotFound, PaymeshError
from services.kit.sets import Command
from services.orchestrator import orders, store
from services.orchestrator.domain import RETURN, Plan, saga_id_of
from services.orchestrator.orders import Goods, Order
from services.orchestrator.runner import Running
from services.orchestrator.service.messages import full_order_message, later_of, order_of
from services.orchestrator.service.requests import Wish
from services.orchestrator.service.starting import running_saga, stored_saga
from services.orchestrator.store import StoredSaga


@dataclass(slots=True)
class _Known:
    """An order of the set, as far as it has been decided."""

    placing: StoredSaga
    request: pb.PlaceOrderRequest
    order: Order


@dataclass(frozen=True, slots=True)
class BeginWith:
    """Begins sagas of one kind."""

    plan: Plan

    async def __call__(
        self, tx: Transaction, fresh: list[Command[Wish]], epoch: int
    ) -> Sequence[Running | PaymeshError]:
        """A saga for each order with which it may be begun. Several commands for one order are decided one after the
        other."""
        known = await _lock_orders(tx, [c.request for c in fresh])
        now = now_ms()
        outcomes: list[Running | PaymeshError] = []
        stored: list[StoredSaga] = []
        for command in fresh:
            wish = command.request
            found = known.get((wish.merchant_id, wish.order_id))
            task = no_order(wish.order_id) if found is None else self._decide(found, wish)
            if found is None or isinstance(task, PaymeshError):
                assert isinstance(task, PaymeshError)
                outcomes.append(task)
                continue
            running = running_saga(command, self.plan, wish.order_id, task, epoch, now)
            found.order = found.order._replace(later=[*found.order.later, later_of(running.saga, task)])
            outcomes.append(running)
            stored.append(stored_saga(running, command))
        if stored:
            accepted = await store.insert_sagas(tx, stored, [""] * len(stored))
            assert len(accepted) == len(stored), "a saga's number was taken"
        return outcomes

    def _decide(self, found: _Known, wish: Wish) -> stored_pb2.OrderTask | PaymeshError:
        """What the saga will work with, or why it may not be begun."""
        refusal = orders.may_begin(self.plan.kind, found.order)
        if refusal is not None:
            return refusal
        goods: Goods | None = None
        if self.plan is RETURN:
            decision = orders.take_back(found.order, wish.lines, wish.amount)
            if isinstance(decision, PaymeshError):
                return decision
            goods = decision
        task = stored_pb2.OrderTask(
            order=full_order_message(found.placing.saga, found.request, found.order), note=wish.note
        )
        if goods is not None:
            for sku, quantity in goods.lines.items():
                task.lines.add(sku=sku, quantity=quantity)
            task.amount.amount_minor = goods.amount.amount_minor
            task.amount.currency = goods.amount.currency
        return task


async def _lock_orders(tx: Transaction, wishes: Sequence[Wish]) -> dict[tuple[str, str], _Known]:
    """The orders that exist, by (merchant, order id), each locked before its other sagas were read."""
    keys = {(w.merchant_id, w.order_id) for w in wishes}
    locked = await store.lock_sagas(tx, [(merchant, saga_id_of(order_id)) for merchant, order_id in keys])
    placing = {
        (merchant, stored.saga.order_id): stored
        for (merchant, _), stored in locked.items()
        if (merchant, stored.saga.order_id) in keys
    }
    if not placing:
        return {}
    later: dict[tuple[str, str], list[StoredSaga]] = {}
    for one in await store.list_later(tx, sorted(placing)):
        later.setdefault((one.saga.merchant_id, one.saga.order_id), []).append(one)
    known = {}
    for key, stored in placing.items():
        request = pb.PlaceOrderRequest.FromString(stored.input)
        tasks = [later_of(one.saga, stored_pb2.OrderTask.FromString(one.input)) for one in later.get(key, ())]
        known[key] = _Known(stored, request, order_of(stored.saga, request, tasks))
    return known


def no_order(order_id: str) -> NotFound:
    """An order was named that does not exist."""
    return NotFound("UNKNOWN_ORDER", f"there is no order {order_id!r}")
