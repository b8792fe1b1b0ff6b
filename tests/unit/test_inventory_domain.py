"""Stock on paper: nothing is ever promised twice. The oracle is a shelf of single pieces, each of which is free or
bears the tag of one reservation; it never adds or subtracts, so it cannot share a slip with the code under test."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, multiple, rule

from services.inventory import domain
from services.inventory.domain import (
    Delivery,
    NewProduct,
    Product,
    Reservation,
    Reserve,
    Return,
    State,
    StockReturn,
)
from services.kit.errors import NotFound, PaymeshError, Refused
from tests.depth import examples

MERCHANTS = ("mer_1", "mer_2")
SKUS = ("a", "b", "c")
UNKNOWN_SKU = "zz"

merchants = st.sampled_from(MERCHANTS)
lines = st.dictionaries(st.sampled_from((*SKUS, UNKNOWN_SKU)), st.integers(1, 6), min_size=1).map(
    lambda by_sku: dict(sorted(by_sku.items()))
)
wishes = st.builds(Reserve, merchants, st.uuids().map(str), lines)
stocks = st.dictionaries(
    st.tuples(merchants, st.sampled_from(SKUS)), st.tuples(st.integers(0, 12), st.integers(0, 12))
).map(
    lambda counts: {
        (merchant, sku): Product(merchant, sku, sku, free + reserved, reserved)
        for (merchant, sku), (free, reserved) in counts.items()
    }
)


@dataclass
class Shelf:
    """The oracle. A piece is None while it is free, else the tag of who it is set aside for."""

    pieces: dict[tuple[str, str], list[str | None]] = field(default_factory=dict)
    out: list[tuple[str, str, str]] = field(default_factory=list)
    """Pieces that have left: (tag, merchant, sku) of each."""

    @classmethod
    def of(cls, stock: Mapping[tuple[str, str], Product]) -> Shelf:
        return cls({k: [None] * p.available + ["somebody"] * p.reserved for k, p in stock.items()})

    def reserve(self, tag: str, wish: Reserve) -> tuple[str, str]:
        """Tag the pieces of a wish one by one; where one is lacking, take all tags off again. Returns the reason and
        the sku of a refusal, or two empty texts."""
        for sku, quantity in wish.lines.items():
            shelf = self.pieces.get((wish.merchant_id, sku))
            for _ in range(quantity):
                if shelf is None or None not in shelf:
                    self.retag(tag, None)
                    return ("UNKNOWN_PRODUCT" if shelf is None else "OUT_OF_STOCK", sku)
                shelf[shelf.index(None)] = tag
        return ("", "")

    def retag(self, tag: str, new: str | None) -> None:
        for shelf in self.pieces.values():
            shelf[:] = [new if piece == tag else piece for piece in shelf]

    def remove(self, tag: str) -> None:
        for (merchant, sku), shelf in self.pieces.items():
            self.out += [(tag, merchant, sku)] * shelf.count(tag)
            shelf[:] = [piece for piece in shelf if piece != tag]

    def take_back(self, tag: str, wish: Return) -> bool:
        """Carry pieces with this tag back one by one; where one is lacking, carry all out again."""
        back: list[tuple[str, str, str]] = []
        for sku, quantity in wish.lines.items():
            for _ in range(quantity):
                piece = (tag, wish.merchant_id, sku)
                if piece not in self.out:
                    self.out += back
                    return False
                self.out.remove(piece)
                back.append(piece)
        for _, merchant, sku in back:
            self.pieces[merchant, sku].append(None)
        return True

    def count(self, key: tuple[str, str]) -> tuple[int, int]:
        """(pieces there, pieces tagged)."""
        shelf = self.pieces[key]
        return len(shelf), len([piece for piece in shelf if piece is not None])


def _said(refusal: Refused | None) -> tuple[str, str]:
    return (refusal.reason, refusal.facts["sku"]) if refusal else ("", "")


@given(stocks, st.lists(wishes, max_size=12))
def test_wishes_are_decided_as_if_each_piece_were_taken_from_a_shelf_by_hand(
    stock: dict[tuple[str, str], Product], wanted: list[Reserve]
) -> None:
    shelf = Shelf.of(stock)
    expected = [shelf.reserve(f"wish {n}", wish) for n, wish in enumerate(wanted)]
    assert [_said(refusal) for refusal in domain.reserve(stock, wanted)] == expected


@given(stocks, st.lists(wishes, max_size=12))
def test_what_is_granted_never_exceeds_what_was_available(
    stock: dict[tuple[str, str], Product], wanted: list[Reserve]
) -> None:
    decisions = domain.reserve(stock, wanted)
    granted = [
        domain.new_reservation(wish, f"res_{n}", 1)
        for n, (wish, refusal) in enumerate(zip(wanted, decisions, strict=True))
        if refusal is None
    ]
    assert all(quantity <= stock[key].available for key, quantity in domain.pieces(granted).items())


@given(stocks, st.lists(wishes, max_size=12), st.data())
def test_a_refused_wish_changes_nothing_for_the_others(
    stock: dict[tuple[str, str], Product], wanted: list[Reserve], data: st.DataObject
) -> None:
    decisions = list(map(_said, domain.reserve(stock, wanted)))
    refused = [place for place, said in enumerate(decisions) if said != ("", "")]
    if refused:
        left_out = data.draw(st.sampled_from(refused))
        without = domain.reserve(stock, wanted[:left_out] + wanted[left_out + 1 :])
        assert list(map(_said, without)) == decisions[:left_out] + decisions[left_out + 1 :]


@given(stocks, st.lists(wishes, max_size=8), st.integers(0, 8))
def test_a_set_is_decided_like_two_sets_one_after_the_other(
    stock: dict[tuple[str, str], Product], wanted: list[Reserve], cut: int
) -> None:
    first, second = wanted[:cut], wanted[cut:]
    early = domain.reserve(stock, first)
    granted = [
        domain.new_reservation(w, str(n), 1)
        for n, (w, no) in enumerate(zip(first, early, strict=True))
        if no is None
    ]
    late = domain.reserve(_with(stock, reserved=domain.pieces(granted)), second)
    whole = domain.reserve(stock, wanted)
    assert list(map(_said, whole)) == list(map(_said, early)) + list(map(_said, late))


@given(stocks, st.lists(wishes, max_size=8))
def test_decisions_leave_the_stock_they_were_given_alone(
    stock: dict[tuple[str, str], Product], wanted: list[Reserve]
) -> None:
    before = dict(stock)
    domain.reserve(stock, wanted)
    domain.deliver(stock, [Delivery(w.merchant_id, sku, n) for w in wanted for sku, n in w.lines.items()])
    assert stock == before


def test_a_wish_that_is_too_large_does_not_stand_in_the_way_of_a_smaller_one() -> None:
    stock = {("mer_1", "a"): Product("mer_1", "a", "", 5, 2)}
    decisions = domain.reserve(stock, [Reserve("mer_1", "o1", {"a": 4}), Reserve("mer_1", "o2", {"a": 3})])
    assert [_said(d) for d in decisions] == [("OUT_OF_STOCK", "a"), ("", "")]
    assert decisions[0] is not None
    assert decisions[0].facts == {"sku": "a", "wanted": "4", "available": "3"}


def test_one_merchants_stock_serves_no_other() -> None:
    stock = {("mer_1", "a"): Product("mer_1", "a", "", 5, 0)}
    (refusal,) = domain.reserve(stock, [Reserve("mer_2", "o1", {"a": 1})])
    assert _said(refusal) == ("UNKNOWN_PRODUCT", "a")


@given(st.lists(st.tuples(st.sampled_from(SKUS), st.integers(1, 1_000_000))))
def test_lines_of_one_sku_add_up_in_ascending_order(pairs: list[tuple[str, int]]) -> None:
    merged = domain.merge_lines(pairs)
    assert list(merged) == sorted({sku for sku, _ in pairs})
    assert all(merged[sku] == sum(q for s, q in pairs if s == sku) for sku in merged)


@given(
    stocks, st.lists(st.builds(Delivery, merchants, st.sampled_from((*SKUS, UNKNOWN_SKU)), st.integers(1, 9)))
)
def test_deliveries_add_up_in_order_and_unknown_products_are_not_found(
    stock: dict[tuple[str, str], Product], deliveries: list[Delivery]
) -> None:
    results = domain.deliver(stock, deliveries)
    shelf = Shelf.of(stock)
    for delivery, result in zip(deliveries, results, strict=True):
        key = (delivery.merchant_id, delivery.sku)
        if key not in stock:
            assert isinstance(result, NotFound)
            assert result.reason == "UNKNOWN_PRODUCT"
            continue
        shelf.pieces[key] += [None] * delivery.quantity
        assert isinstance(result, Product)
        assert (result.on_hand, result.reserved) == shelf.count(key)


def test_a_new_product_has_its_first_stock_and_nothing_reserved() -> None:
    product = domain.new_product(NewProduct("mer_1", "a", "A", 7))
    assert (product.on_hand, product.reserved, product.available) == (7, 0, 7)


MOVES = {
    ("release", State.RESERVED): State.RELEASED,
    ("release", State.RELEASED): State.RELEASED,
    ("release", State.COMMITTED): "RESERVATION_COMMITTED",
    ("commit", State.RESERVED): State.COMMITTED,
    ("commit", State.RELEASED): "RESERVATION_RELEASED",
    ("commit", State.COMMITTED): State.COMMITTED,
}
"""What each verb makes of each state: the next state, or the reason of the refusal."""

VERBS: Mapping[str, Callable[[Reservation], Reservation | PaymeshError]] = {
    "release": domain.release,
    "commit": domain.commit,
}


def test_every_verb_has_a_row_for_every_state() -> None:
    assert set(MOVES) == {(verb, state) for verb in VERBS for state in State}


@pytest.mark.parametrize(("verb", "state"), MOVES)
def test_a_verb_makes_of_a_state_what_the_table_says(verb: str, state: State) -> None:
    before = Reservation("mer_1", "res_1", "o1", {"a": 1}, state, 1)
    decision = VERBS[verb](before)
    expected = MOVES[verb, state]
    if isinstance(expected, State):
        assert decision == replace(before, state=expected)
    else:
        assert isinstance(decision, Refused)
        assert decision.reason == expected


def test_a_reservation_that_is_not_there_is_no_decision() -> None:
    decisions, changed = domain.end({}, [("mer_1", "res_1")], domain.release)
    assert (decisions, changed) == ([None], [])


def test_nothing_reserved_is_released_and_holds_nothing() -> None:
    reservation = domain.nothing_reserved("mer_1")
    assert (reservation.state, reservation.reservation_id, dict(reservation.lines)) == (
        State.RELEASED,
        "",
        {},
    )
    assert domain.pieces([reservation]) == {}


def test_a_return_of_a_reservation_that_is_not_there_is_not_found() -> None:
    (decision,) = domain.take_back({}, [], [(Return("mer_1", "res_1", {"a": 1}), "ret_1")], 1)
    assert isinstance(decision, NotFound)


class Warehouse(RuleBasedStateMachine):
    """Any sequence of sets, kept by the domain's decisions on one side and by hand on the other."""

    reservations = Bundle("reservations")

    def __init__(self) -> None:
        super().__init__()
        self.stock = {(m, s): domain.new_product(NewProduct(m, s, s, 4)) for m in MERCHANTS for s in SKUS}
        self.shelf = Shelf.of(self.stock)
        self.booked: dict[tuple[str, str], Reservation] = {}
        self.returned: list[StockReturn] = []
        self.born = 0

    @rule(target=reservations, wanted=st.lists(wishes, min_size=1, max_size=6))
    def reserve(self, wanted: list[Reserve]) -> object:
        granted = []
        for wish, refusal in zip(wanted, domain.reserve(self.stock, wanted), strict=True):
            self.born += 1
            assert _said(refusal) == self.shelf.reserve(f"res_{self.born}", wish)
            if refusal is None:
                granted.append(domain.new_reservation(wish, f"res_{self.born}", self.born))
        self.stock = _with(self.stock, reserved=domain.pieces(granted))
        self.booked |= {(r.merchant_id, r.reservation_id): r for r in granted}
        return multiple(*((r.merchant_id, r.reservation_id) for r in granted))

    @rule(keys=st.lists(reservations, min_size=1, max_size=6))
    def release(self, keys: list[tuple[str, str]]) -> None:
        freed = self._end("release", keys)
        for reservation in freed:
            self.shelf.retag(reservation.reservation_id, None)
        self.stock = _with(self.stock, reserved=_negative(domain.pieces(freed)))

    @rule(keys=st.lists(reservations, min_size=1, max_size=6))
    def commit(self, keys: list[tuple[str, str]]) -> None:
        gone = self._end("commit", keys)
        for reservation in gone:
            self.shelf.remove(reservation.reservation_id)
        pieces = _negative(domain.pieces(gone))
        self.stock = _with(self.stock, on_hand=pieces, reserved=pieces)

    @rule(wanted=st.lists(st.tuples(reservations, lines), min_size=1, max_size=6))
    def take_back(self, wanted: list[tuple[tuple[str, str], dict[str, int]]]) -> None:
        wishes = [(Return(*key, pieces), f"ret_{self.born}_{n}") for n, (key, pieces) in enumerate(wanted)]
        self.born += 1
        known = {key: self.booked[key] for key, _ in wanted}
        earlier = [r for r in self.returned if (r.merchant_id, r.reservation_id) in known]
        decisions = domain.take_back(known, earlier, wishes, 7)
        for (wish, return_id), decision in zip(wishes, decisions, strict=True):
            if self.booked[wish.reservation_key].state is not State.COMMITTED:
                assert isinstance(decision, Refused)
                assert decision.reason == "RESERVATION_NOT_COMMITTED"
            elif self.shelf.take_back(wish.reservation_id, wish):
                assert isinstance(decision, StockReturn)
                assert (decision.key, decision.lines) == ((wish.merchant_id, return_id), wish.lines)
                assert decision.order_id == self.booked[wish.reservation_key].order_id
            else:
                assert isinstance(decision, Refused)
                assert decision.reason == "RETURN_EXCEEDS_COMMITTED"
        made = [d for d in decisions if isinstance(d, StockReturn)]
        self.returned += made
        self.stock = _with(self.stock, on_hand=domain.pieces(made))

    @rule(merchant=merchants, sku=st.sampled_from(SKUS), quantity=st.integers(1, 5))
    def deliver(self, merchant: str, sku: str, quantity: int) -> None:
        (product,) = domain.deliver(self.stock, [Delivery(merchant, sku, quantity)])
        assert isinstance(product, Product)
        self.stock[merchant, sku] = product
        self.shelf.pieces[merchant, sku] += [None] * quantity

    @invariant()
    def never_oversold(self) -> None:
        for key, product in self.stock.items():
            assert 0 <= product.reserved <= product.on_hand
            assert (product.on_hand, product.reserved) == self.shelf.count(key)

    @invariant()
    def no_more_comes_back_than_was_committed(self) -> None:
        for key, reservation in self.booked.items():
            returns = [r for r in self.returned if (r.merchant_id, r.reservation_id) == key]
            for (_, sku), quantity in domain.pieces(returns).items():
                assert quantity <= reservation.lines[sku]

    @invariant()
    def reserved_stock_is_the_sum_of_open_reservations(self) -> None:
        open_pieces = domain.pieces(r for r in self.booked.values() if r.state is State.RESERVED)
        assert {k: p.reserved for k, p in self.stock.items() if p.reserved} == open_pieces

    def _end(self, verb: str, keys: Sequence[tuple[str, str]]) -> list[Reservation]:
        states = {key: self.booked[key].state for key in keys}
        decisions, changed = domain.end({key: self.booked[key] for key in keys}, keys, VERBS[verb])
        for key, decision in zip(keys, decisions, strict=True):
            expected = MOVES[verb, states[key]]
            if isinstance(expected, State):
                assert isinstance(decision, Reservation)
                assert decision.state is expected
                states[key] = expected
            else:
                assert isinstance(decision, Refused)
                assert decision.reason == expected
        assert {(r.merchant_id, r.reservation_id): r.state for r in changed} == {
            key: state for key, state in states.items() if state is not self.booked[key].state
        }
        # The first command that names a reservation made the change, and no repeat of it.
        assert all(decisions[keys.index((r.merchant_id, r.reservation_id))] is r for r in changed)
        self.booked |= {(r.merchant_id, r.reservation_id): r for r in changed}
        return changed


def _with(
    stock: Mapping[tuple[str, str], Product],
    *,
    on_hand: Mapping[tuple[str, str], int] | None = None,
    reserved: Mapping[tuple[str, str], int] | None = None,
) -> dict[tuple[str, str], Product]:
    """The stock with differences added to it."""
    return {
        key: replace(
            p,
            on_hand=p.on_hand + (on_hand or {}).get(key, 0),
            reserved=p.reserved + (reserved or {}).get(key, 0),
        )
        for key, p in stock.items()
    }


def _negative(pieces: Mapping[tuple[str, str], int]) -> dict[tuple[str, str], int]:
    return {key: -quantity for key, quantity in pieces.items()}


TestWarehouse = Warehouse.TestCase
TestWarehouse.settings = settings(max_examples=examples(20, 60), stateful_step_count=25, deadline=None)
