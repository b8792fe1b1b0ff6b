"""What may be done with an order. The oracle is a counter in a shop: a parcel that stands there, is sent, or is put
away, and a box of single pieces and pennies that come back one by one; it never adds up what came back."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from services.kit.errors import InProgress, PaymeshError, Refused
from services.kit.money import Money
from services.orchestrator import orders
from services.orchestrator.orders import Goods, Later, Order, Stage
from services.orchestrator.positions import State
from tests.depth import examples

SOLD = Goods({"cup": 3, "mug": 2}, Money(900, "GBP"))
KINDS = ("dispatch", "cancel", "return")


def _order(*later: Later, placing: State = State.COMPLETED) -> Order:
    return Order("ord_1", placing, SOLD, later)


def _later(kind: str, state: State = State.COMPLETED, goods: Goods | None = None) -> Later:
    return Later(f"saga_{kind}", kind, state, goods)


def _reason(decision: object) -> str:
    return decision.reason if isinstance(decision, PaymeshError) else ""


SOME = Goods({"cup": 1}, Money(100, "GBP"))
ALL = Goods(SOLD.lines, SOLD.amount)
STAGES: list[tuple[Stage, Order, Mapping[str, str]]] = [
    (
        Stage.PLACED,
        _order(),
        {"dispatch": "", "cancel": "", "return": "ORDER_NOT_DISPATCHED"},
    ),
    (
        Stage.PLACED,
        _order(_later("dispatch", State.COMPENSATED)),
        {"dispatch": "", "cancel": "", "return": "ORDER_NOT_DISPATCHED"},
    ),
    (
        Stage.DISPATCHED,
        _order(_later("dispatch")),
        {"dispatch": "ORDER_DISPATCHED", "cancel": "ORDER_DISPATCHED", "return": ""},
    ),
    (
        Stage.DISPATCHED,
        _order(
            _later("dispatch", State.COMPENSATED),
            _later("dispatch"),
            _later("return", State.COMPENSATED, ALL),
        ),
        {"dispatch": "ORDER_DISPATCHED", "cancel": "ORDER_DISPATCHED", "return": ""},
    ),
    (
        Stage.CANCELLED,
        _order(_later("cancel")),
        {"dispatch": "ORDER_CANCELLED", "cancel": "ORDER_CANCELLED", "return": "ORDER_CANCELLED"},
    ),
    (
        Stage.PARTIALLY_RETURNED,
        _order(_later("dispatch"), _later("return", State.COMPLETED, SOME)),
        {"dispatch": "ORDER_DISPATCHED", "cancel": "ORDER_DISPATCHED", "return": ""},
    ),
    (
        Stage.RETURNED,
        _order(_later("dispatch"), _later("return", State.COMPLETED, ALL)),
        {"dispatch": "ORDER_DISPATCHED", "cancel": "ORDER_DISPATCHED", "return": "ORDER_RETURNED"},
    ),
]


@pytest.mark.parametrize(("stage", "order", "reasons"), STAGES)
def test_what_may_be_begun_with_an_order_that_is_at_rest(
    stage: Stage, order: Order, reasons: Mapping[str, str]
) -> None:
    assert order.stage is stage
    assert {kind: _reason(orders.may_begin(kind, order)) for kind in KINDS} == reasons


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("state", [State.RUNNING, State.COMPENSATING])
@pytest.mark.parametrize("before", KINDS)
def test_nothing_is_begun_beside_what_is_under_way(kind: str, state: State, before: str) -> None:
    goods = SOME if before == "return" else None
    first = [_later("dispatch")] if before == "return" else []
    decision = orders.may_begin(kind, _order(*first, _later(before, state, goods)))
    assert isinstance(decision, InProgress)
    assert (decision.reason, decision.facts["saga_id"]) == ("ORDER_BUSY", f"saga_{before}")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("placing", "stage", "reason"),
    [
        (State.RUNNING, Stage.PLACING, "ORDER_BUSY"),
        (State.COMPENSATING, Stage.NOT_PLACED, "ORDER_NOT_PLACED"),
        (State.COMPENSATED, Stage.NOT_PLACED, "ORDER_NOT_PLACED"),
        (State.PARKED, Stage.PLACING, "ORDER_NOT_PLACED"),
    ],
)
def test_nothing_is_begun_with_an_order_that_is_not_placed(
    kind: str, placing: State, stage: Stage, reason: str
) -> None:
    order = _order(placing=placing)
    assert (order.stage, _reason(orders.may_begin(kind, order))) == (stage, reason)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("parked", "stage"),
    [("dispatch", Stage.DISPATCHING), ("cancel", Stage.CANCELLING), ("return", Stage.DISPATCHED)],
)
def test_what_waits_for_a_person_is_not_touched(kind: str, parked: str, stage: Stage) -> None:
    first = [_later("dispatch")] if parked == "return" else []
    order = _order(*first, _later(parked, State.PARKED, SOME if parked == "return" else None))
    decision = orders.may_begin(kind, order)
    assert isinstance(decision, Refused)
    assert (order.stage, decision.reason) == (stage, "ORDER_PARKED")


def test_a_return_in_another_currency_is_refused() -> None:
    assert _reason(orders.take_back(_order(), {"cup": 1}, Money(1, "USD"))) == "CURRENCY_MISMATCH"


def test_all_that_is_left_comes_back_also_after_a_part() -> None:
    order = _order(_later("dispatch"), _later("return", State.COMPLETED, SOME))
    assert orders.take_back(order, {}, None) == Goods({"cup": 2, "mug": 2}, Money(800, "GBP"))


def test_goods_for_which_nothing_is_left_to_refund_do_not_come_back() -> None:
    paid = Goods({"cup": 1}, SOLD.amount)
    order = _order(_later("dispatch"), _later("return", State.COMPLETED, paid))
    assert _reason(orders.take_back(order, {}, None)) == "RETURN_EXCEEDS_CHARGED"


class Counter(RuleBasedStateMachine):
    """Any sequence of commands and of what becomes of them."""

    def __init__(self) -> None:
        super().__init__()
        self.order = _order()
        self.parcel = "here"
        self.out = ["cup"] * 3 + ["mug"] * 2
        self.pennies = ["p"] * 900
        self.busy: str | None = None
        self.numbers = itertools.count()

    def _begin(self, kind: str, goods: Goods | None = None) -> None:
        self.busy = kind
        later = Later(f"saga_{next(self.numbers)}", kind, State.RUNNING, goods)
        self.order = self.order._replace(later=[*self.order.later, later])

    @rule(kind=st.sampled_from(["dispatch", "cancel"]))
    def send_or_put_away(self, kind: str) -> None:
        decision = orders.may_begin(kind, self.order)
        assert (decision is None) == (self.busy is None and self.parcel == "here")
        if decision is None:
            self._begin(kind)

    @rule(
        lines=st.dictionaries(st.sampled_from(["cup", "mug", "pot"]), st.integers(1, 3), min_size=1),
        minor=st.integers(1, 900),
        everything=st.booleans(),
    )
    def take_back(self, lines: dict[str, int], minor: int, everything: bool) -> None:
        decision = orders.may_begin("return", self.order)
        assert (decision is None) == (self.busy is None and self.parcel == "sent" and bool(self.out))
        if decision is not None:
            return
        goods = orders.take_back(
            self.order, {} if everything else lines, None if everything else Money(minor, "GBP")
        )
        if everything:
            lines, minor = {sku: self.out.count(sku) for sku in sorted(set(self.out))}, len(self.pennies)
        fits = all(self.out.count(sku) >= quantity for sku, quantity in lines.items())
        assert isinstance(goods, Goods) == (fits and 0 < minor <= len(self.pennies))
        if isinstance(goods, Goods):
            assert goods == Goods(lines, Money(minor, "GBP"))
            self._begin("return", goods)

    @rule(done=st.booleans())
    def it_ends(self, done: bool) -> None:
        if self.busy is None:
            return
        done = done or self.busy == "cancel"
        *before, last = self.order.later
        state = State.COMPLETED if done else State.COMPENSATED
        self.order = self.order._replace(later=[*before, last._replace(state=state)])
        if done and last.goods is not None:
            for sku, quantity in last.goods.lines.items():
                for _ in range(quantity):
                    self.out.remove(sku)
            del self.pennies[: last.goods.amount.amount_minor]
        elif done:
            self.parcel = "sent" if self.busy == "dispatch" else "away"
        self.busy = None

    @invariant()
    def it_stands_where_the_parcel_is(self) -> None:
        if self.busy in ("dispatch", "cancel"):
            expected = {Stage.DISPATCHING} if self.busy == "dispatch" else {Stage.CANCELLING}
        elif self.parcel != "sent":
            expected = {Stage.PLACED} if self.parcel == "here" else {Stage.CANCELLED}
        elif len(self.out) == 5:
            expected = {Stage.DISPATCHED}
        else:
            expected = {Stage.PARTIALLY_RETURNED} if self.out else {Stage.RETURNED}
        assert self.order.stage in expected

    @invariant()
    def never_more_comes_back_than_was_sold_and_charged(self) -> None:
        returned = self.order.returned
        assert returned.amount.amount_minor == 900 - len(self.pennies)
        assert {
            sku: 3 * (sku == "cup") + 2 * (sku == "mug") - self.out.count(sku) for sku in ("cup", "mug")
        } == {sku: returned.lines.get(sku, 0) for sku in ("cup", "mug")}


TestCounter = Counter.TestCase
TestCounter.settings = settings(max_examples=examples(30, 100), stateful_step_count=20, deadline=None)


@given(st.permutations(KINDS), st.sampled_from(list(State)))
def test_of_one_order_at_most_one_kind_may_be_begun_whatever_came_before(
    kinds: list[str], state: State
) -> None:
    """But for an order that is placed, which may either leave or be put away."""
    order = _order(*(_later(kind, state, SOME if kind == "return" else None) for kind in kinds))
    free = [kind for kind in KINDS if orders.may_begin(kind, order) is None]
    assert free in ([], ["return"], ["dispatch", "cancel"])


@pytest.mark.parametrize(
    ("pieces", "minor", "reason"), [(3, 800, "RETURN_EXCEEDS_SOLD"), (2, 801, "RETURN_EXCEEDS_CHARGED")]
)
def test_a_part_is_held_against_what_has_not_come_back_yet(pieces: int, minor: int, reason: str) -> None:
    order = _order(_later("dispatch"), _later("return", State.COMPLETED, SOME))
    assert _reason(orders.take_back(order, {"cup": pieces}, Money(minor, "GBP"))) == reason
    assert orders.take_back(order, {"cup": 2}, Money(800, "GBP")) == Goods({"cup": 2}, Money(800, "GBP"))
