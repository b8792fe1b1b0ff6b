"""Sends a file's returns, after its orders: each order that something comes back from is dispatched first.

Keys are made from the invoice numbers, so a second run only asks for the answers again. The returns of one order go one
after the other, for of one order one thing is done at a time.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from paymesh.channel import current_traceparent
from paymesh.errors import Kind, PaymeshCallError
from paymesh.orchestrator.v1 import orchestrator_pb2
from paymesh.replay.invoices import Return
from paymesh.replay.plan import dispatch_item, return_item
from paymesh.replay.run import BATCH_DEADLINE_SECONDS, Answer, Mesh, Pace, send_in_sets
from paymesh.replay.summary import PlacedInvoice

NOT_PLACED = PaymeshCallError(Kind.REFUSED, "ORDER_NOT_COMPLETED", "its order did not complete")
NO_ANSWER_YET = PaymeshCallError(Kind.UNKNOWN, "NOT_SENT", "not sent, since its order has no answer yet")


async def take_back(
    returns: Sequence[Return], placed: Sequence[PlacedInvoice], merchant_id: str, mesh: Mesh, pace: Pace
) -> list[Answer[Any]]:
    """One answer per return, in the same order. PaymeshCallError as in `run.replay`."""
    answers: list[Answer[Any]] = [Answer() for _ in returns]
    orders: dict[str, str] = {}
    by_number = {one.invoice.number: one for one in placed}
    for place, one in enumerate(returns):
        original = by_number[one.original]
        if original.bucket == "completed":
            orders[one.original] = original.order_id
        else:
            answers[place] = Answer(error=NO_ANSWER_YET if original.bucket == "unresolved" else NOT_PLACED)
    gone = await _dispatch(orders, merchant_id, mesh, pace)
    waiting: list[int] = []
    for place, one in enumerate(returns):
        if one.original in orders:
            if gone[one.original] is None:
                waiting.append(place)
            else:
                answers[place] = Answer(error=gone[one.original])
    while waiting:
        round_: dict[str, int] = {}
        for place in waiting:
            round_.setdefault(returns[place].original, place)
        items = [return_item(returns[p], orders[original], merchant_id) for original, p in round_.items()]
        for place, answer in zip(round_.values(), await _return(items, mesh, pace), strict=True):
            answers[place] = answer
        waiting = [place for place in waiting if place not in set(round_.values())]
    return answers


async def _dispatch(
    orders: Mapping[str, str], merchant_id: str, mesh: Mesh, pace: Pace
) -> dict[str, PaymeshCallError | None]:
    """By invoice number: why its order has not left, or None where it has."""

    async def send(items: Sequence[orchestrator_pb2.DispatchOrderItem]) -> Sequence[Any]:
        request = orchestrator_pb2.BatchDispatchOrdersRequest(items=items)
        for item in request.items:
            item.traceparent = current_traceparent()
        return (await mesh.orders.BatchDispatchOrders(request, timeout=BATCH_DEADLINE_SECONDS)).results

    items = [dispatch_item(number, order_id, merchant_id) for number, order_id in orders.items()]
    answers: list[Answer[Any]] = await send_in_sets(send, items, pace)
    gone: dict[str, PaymeshCallError | None] = {}
    for number, answer in zip(orders, answers, strict=True):
        saga = answer.result.response.saga if answer.result is not None else None
        if answer.error is not None:
            # Somebody has sent it before us: all the better.
            gone[number] = None if answer.error.reason == "ORDER_DISPATCHED" else answer.error
        elif saga is None or saga.state != orchestrator_pb2.SAGA_STATE_COMPLETED:
            reason = saga.reason.code if saga is not None else "NO_ANSWER"
            gone[number] = PaymeshCallError(Kind.REFUSED, reason, "its order could not be dispatched")
        else:
            gone[number] = None
    return gone


async def _return(
    items: Sequence[orchestrator_pb2.ReturnOrderItem], mesh: Mesh, pace: Pace
) -> list[Answer[Any]]:
    async def send(items: Sequence[orchestrator_pb2.ReturnOrderItem]) -> Sequence[Any]:
        request = orchestrator_pb2.BatchReturnOrdersRequest(items=items)
        for item in request.items:
            item.traceparent = current_traceparent()
        return (await mesh.orders.BatchReturnOrders(request, timeout=BATCH_DEADLINE_SECONDS)).results

    return await send_in_sets(send, items, pace)
