"""One trace shows one order: from its caller through the orchestrator, its saga and steps, every participant and the
bank, and back through the undos. Read from the file that the processes append their spans to."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from paymesh.bank.v1 import bank_pb2
from paymesh.channel import with_key
from paymesh.orchestrator.v1 import orchestrator_pb2 as pb
from tests.orders import Shop, new_key, order, running_shop, until

pytestmark = pytest.mark.asyncio(loop_scope="session")

ALL_SERVICES = {"orchestrator", "inventory", "payment", "fraud", "bank", "shipping"}
STEPS_OF_A_GOOD_ORDER = ["saga place", "reserve", "authorize", "ship"]
STEPS_BACK_FROM_SHIP = [*STEPS_OF_A_GOOD_ORDER, "undo authorize", "undo reserve"]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def traced_shop() -> AsyncIterator[Shop]:
    """A mesh that traces every order."""
    async with running_shop(traced_share="1.0") as shop:
        yield shop


@dataclass(frozen=True)
class Span:
    """One line of the file."""

    name: str
    service: str
    trace_id: str
    span_id: str
    parent_id: str | None
    attributes: dict[str, Any]
    failed: bool

    @classmethod
    def read(cls, line: str) -> Span:
        data = json.loads(line)
        return cls(
            data["name"],
            data["resource"]["attributes"]["service.name"],
            data["context"]["trace_id"].removeprefix("0x"),
            data["context"]["span_id"].removeprefix("0x"),
            data["parent_id"].removeprefix("0x") if data["parent_id"] else None,
            data["attributes"],
            data["status"]["status_code"] == "ERROR",
        )


def _spans(shop: Shop) -> list[Span]:
    """Everything written so far; a line that is just being written is left out."""
    if not shop.spans_file.exists():
        return []
    whole, _, _ = shop.spans_file.read_text("utf-8").rpartition("\n")
    return [Span.read(line) for line in whole.splitlines()]


@dataclass(frozen=True)
class Caller:
    """A caller with a span of its own, which it does not write into our file."""

    trace_id: str
    span_id: str

    @classmethod
    def new(cls) -> Caller:
        return cls(secrets.token_hex(16), secrets.token_hex(8))

    @property
    def traceparent(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-01"


async def _whole_trace(shop: Shop, trace_id: str, root: str | None, steps: list[str]) -> list[Span]:
    """The trace, once its saga and everything under it is there and hangs together. `root` is the span that the caller
    keeps to itself; without one the trace must have a root of its own."""
    found: list[Span] = []

    async def complete() -> bool:
        found[:] = [span for span in _spans(shop) if span.trace_id == trace_id]
        return not _missing(found, root, steps)

    try:
        await until(complete, 5, "the trace is complete")
    except AssertionError:
        listing = [(s.service, s.name, s.span_id, s.parent_id) for s in found]
        pytest.fail(f"{_missing(found, root, steps)} in {json.dumps(listing, indent=1)}")
    return found


def _missing(spans: list[Span], root: str | None, steps: list[str]) -> str:
    """What keeps the spans from being one tree with everything in it; empty when nothing does."""
    names = [span.name for span in spans]
    if absent := [step for step in steps if step not in names]:
        return f"no span {absent}"
    if absent_services := ALL_SERVICES - {span.service for span in spans}:
        return f"nothing of {absent_services}"
    known = {span.span_id for span in spans} | {root}
    if orphans := [span.name for span in spans if span.parent_id not in known]:
        return f"unknown parents of {orphans}"
    tops = [span.name for span in spans if span.parent_id == root]
    return "" if len(tops) == 1 else f"tops are {tops}"


def _under(spans: list[Span], top: Span) -> list[Span]:
    """Everything below a span."""
    found = [span for span in spans if span.parent_id == top.span_id]
    return found + [below for child in found for below in _under(spans, child)]


def _check_story(spans: list[Span], placed: pb.Order, steps: list[str]) -> None:
    """The steps hang under the saga, and what each participant did hangs under its step."""
    (saga,) = [span for span in spans if span.name == "saga place"]
    assert saga.attributes["saga.id"] == placed.saga_id
    assert saga.failed == (placed.state != pb.SAGA_STATE_COMPLETED)
    children = [span for span in spans if span.parent_id == saga.span_id]
    # Who hears of the end goes on with the trace, sooner or later than we look.
    heard = [span for span in children if "messaging.system" in span.attributes]
    end = "OrderPlaced" if placed.state == pb.SAGA_STATE_COMPLETED else "OrderCompensated"
    assert [span.name for span in heard] in ([], [f"edge {end}"])
    below = {span.name: span for span in children if span not in heard}
    assert list(below) == steps[1:], "steps end in the order in which they were taken"
    for name, step in below.items():
        assert step.attributes["saga.id"] == placed.saga_id
        assert step.attributes["saga.step"] == name.removeprefix("undo ")
        assert step.attributes["saga.direction"] == ("UNDO" if name.startswith("undo ") else "DO")
        assert step.attributes["saga.attempt"] == 1
    touched = {
        name: {(s.service, s.name.rpartition("/")[2]) for s in _under(spans, step)}
        for name, step in below.items()
    }
    assert ("inventory", "ReserveStock") in touched["reserve"]
    assert {("payment", "AuthorizePayment"), ("fraud", "AssessPayment"), ("bank", "Authorize")} <= touched[
        "authorize"
    ]
    assert ("shipping", "CreateShipment") in touched["ship"]
    if "undo authorize" in steps:
        assert {("payment", "VoidPayment"), ("bank", "Void")} <= touched["undo authorize"]
        assert ("inventory", "ReleaseStock") in touched["undo reserve"]


@pytest.mark.parametrize(("country", "steps"), [("GB", STEPS_OF_A_GOOD_ORDER), ("AQ", STEPS_BACK_FROM_SHIP)])
async def test_a_single_order_is_one_trace_from_its_caller_to_the_last_undo(
    traced_shop: Shop, country: str, steps: list[str]
) -> None:
    merchant, caller = await traced_shop.merchant(), Caller.new()
    metadata = (*with_key(new_key()), ("traceparent", caller.traceparent))
    placed = (await traced_shop.orders.PlaceOrder(order(merchant, country=country), metadata=metadata)).order
    spans = await _whole_trace(traced_shop, caller.trace_id, caller.span_id, steps)
    _check_story(spans, placed, steps)


async def test_each_order_of_a_batch_is_a_trace_of_its_own(traced_shop: Shop) -> None:
    merchant = await traced_shop.merchant()
    callers = [Caller.new() for _ in range(6)]
    countries = ["GB", "AQ"] * 3
    items = [
        pb.PlaceOrderItem(
            idempotency_key=new_key(),
            traceparent=caller.traceparent,
            request=order(merchant, country=country),
        )
        for caller, country in zip(callers, countries, strict=True)
    ]
    answer = await traced_shop.orders.BatchPlaceOrders(pb.BatchPlaceOrdersRequest(items=items))
    for caller, country, result in zip(callers, countries, answer.results, strict=True):
        steps = STEPS_OF_A_GOOD_ORDER if country == "GB" else STEPS_BACK_FROM_SHIP
        spans = await _whole_trace(traced_shop, caller.trace_id, caller.span_id, steps)
        _check_story(spans, result.response.order, steps)


async def test_orders_without_a_callers_trace_get_a_trace_with_a_root(traced_shop: Shop) -> None:
    merchant = await traced_shop.merchant()
    placed = [await traced_shop.place(order(merchant))]
    results = await traced_shop.place_all([(new_key(), order(merchant)) for _ in range(3)])
    placed += [result.response.order for result in results]
    for one in placed:

        async def traced(saga_id: str = one.saga_id) -> bool:
            return any(_is_saga(span, saga_id) for span in _spans(traced_shop))

        await until(traced, 5, f"{one.saga_id} is traced")
        (saga,) = [span for span in _spans(traced_shop) if _is_saga(span, one.saga_id)]
        spans = await _whole_trace(traced_shop, saga.trace_id, None, STEPS_OF_A_GOOD_ORDER)
        _check_story(spans, one, STEPS_OF_A_GOOD_ORDER)


def _is_saga(span: Span, saga_id: str) -> bool:
    return span.name == "saga place" and span.attributes["saga.id"] == saga_id


async def test_every_attempt_at_a_step_has_a_span(traced_shop: Shop) -> None:
    merchant, caller = await traced_shop.merchant(), Caller.new()
    fault = bank_pb2.Fault(
        kind=bank_pb2.FAULT_KIND_ANSWER_LOST_AFTER,
        target=bank_pb2.FAULT_TARGET_AUTHORIZE,
        probability_ppm=1_000_000,
        strikes_left=1,
        merchant_id=merchant,
    )
    await traced_shop.faults.InjectFault(bank_pb2.InjectFaultRequest(fault=fault))
    metadata = (*with_key(new_key()), ("traceparent", caller.traceparent))
    placed = (await traced_shop.orders.PlaceOrder(order(merchant), metadata=metadata)).order
    assert placed.state == pb.SAGA_STATE_COMPLETED
    spans = await _whole_trace(traced_shop, caller.trace_id, caller.span_id, STEPS_OF_A_GOOD_ORDER)
    attempts = [span for span in spans if span.name == "authorize"]
    assert [span.attributes["saga.attempt"] for span in attempts] == list(range(1, len(attempts) + 1))
    assert len(attempts) > 1
    assert [span.failed for span in attempts] == [True] * (len(attempts) - 1) + [False]


async def test_who_hears_of_an_event_goes_on_with_the_trace_of_its_announcement(traced_shop: Shop) -> None:
    """The traceparent lies in the outbox, travels over the bus, and is continued by the listener."""
    merchant, caller = await traced_shop.merchant(), Caller.new()
    metadata = (*with_key(new_key()), ("traceparent", caller.traceparent))
    await traced_shop.orders.PlaceOrder(order(merchant), metadata=metadata)
    found: list[Span] = []

    async def heard() -> bool:
        found[:] = [span for span in _spans(traced_shop) if span.trace_id == caller.trace_id]
        return any(span.name == "edge OrderPlaced" for span in found)

    await until(heard, 10, "the edge has heard of the order")
    (listener,) = [span for span in found if span.name == "edge OrderPlaced"]
    (saga,) = [span for span in found if span.name == "saga place"]
    assert (listener.service, listener.parent_id) == ("edge", saga.span_id)
    assert listener.attributes["messaging.destination.name"] == "orchestrator"
    assert not listener.failed


async def test_an_order_without_a_conductor_is_one_trace_from_event_to_event(traced_shop: Shop) -> None:
    merchant, caller = await traced_shop.merchant(), Caller.new()
    metadata = (*with_key(new_key()), ("traceparent", caller.traceparent))
    request = order(merchant)
    request.coordination = pb.COORDINATION_CHOREOGRAPHED
    placed = (await traced_shop.orders.PlaceOrder(request, metadata=metadata)).order
    assert placed.state == pb.SAGA_STATE_COMPLETED
    found: list[Span] = []

    async def complete() -> bool:
        found[:] = [span for span in _spans(traced_shop) if span.trace_id == caller.trace_id]
        known = {span.span_id for span in found} | {caller.span_id}
        return any(span.name == "edge OrderPlaced" for span in found) and all(
            span.parent_id in known for span in found
        )

    await until(complete, 10, "the trace hangs together")
    listeners = {span.service for span in found if "messaging.system" in span.attributes}
    assert listeners >= {"inventory", "payment", "shipping", "orchestrator"}


async def test_an_untraced_order_writes_no_span_anywhere(shop: Shop) -> None:
    """The mesh samples nothing by itself: a caller that does not trace costs nothing, one that does is followed."""
    merchant = await shop.merchant()
    before = _spans(shop)
    untraced = Caller.new()
    refusing = ("traceparent", untraced.traceparent.removesuffix("01") + "00")
    await shop.place(order(merchant, country="AQ"))
    await shop.place_all([(new_key(), order(merchant)) for _ in range(20)])
    await shop.orders.PlaceOrder(order(merchant), metadata=(*with_key(new_key()), refusing))
    # A traced order after the others: when its spans are there, theirs would be.
    caller = Caller.new()
    metadata = (*with_key(new_key()), ("traceparent", caller.traceparent))
    await shop.orders.PlaceOrder(order(merchant), metadata=metadata)
    await _whole_trace(shop, caller.trace_id, caller.span_id, STEPS_OF_A_GOOD_ORDER)
    written = _spans(shop)[len(before) :]
    assert {span.trace_id for span in written} == {caller.trace_id}
