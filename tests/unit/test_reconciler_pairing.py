"""Which line is which item, where several have one key: as many as can be, never one twice, and never a guess. The
oracle tries every way to pair them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from hypothesis import given, settings
from hypothesis import strategies as st

from services.reconciler.domain.pairing import Candidate, pair
from services.reconciler.domain.rules import ItemKey, LineKey, Rule, Shape

KEYED = Rule(
    name="r",
    shape=Shape.ONE_TO_ONE,
    line=LineKey.REFERENCE,
    item=ItemKey.ITEM_ID,
    days_before=1,
    days_after=3,
)
KEYLESS = Rule(
    name="r", shape=Shape.ONE_TO_ONE, line=LineKey.NONE, item=ItemKey.NONE, days_before=1, days_after=3
)
NEAR = Rule(
    name="r", shape=Shape.ONE_TO_ONE, line=LineKey.REFERENCE, item=ItemKey.ITEM_ID, days_before=1, days_after=3,
    tolerance_minor=2,
)  # fmt: skip

SIDES = st.lists(st.tuples(st.integers(1, 3), st.integers(0, 9)), max_size=6)
ONE_AMOUNT = st.lists(st.integers(0, 12), max_size=6)


def candidates(values: Sequence[tuple[int, int]]) -> list[Candidate]:
    return [Candidate(amount_minor, day, number) for number, (amount_minor, day) in enumerate(values)]


def fits(line: Candidate, item: Candidate, rule: Rule) -> bool:
    in_time = -rule.days_before <= line.day - item.day <= rule.days_after
    return in_time and abs(line.amount_minor - item.amount_minor) <= rule.tolerance_minor


def most(lines: Sequence[Candidate], items: Sequence[Candidate], rule: Rule) -> int:
    """How many pairs there can be: every way is tried."""

    @cache
    def best(place: int, free: frozenset[int]) -> int:
        if place == len(lines):
            return 0
        without = best(place + 1, free)
        with_one = [1 + best(place + 1, free - {n}) for n in free if fits(lines[place], items[n], rule)]
        return max([without, *with_one])

    return best(0, frozenset(range(len(items))))


def check(
    pairs: list[tuple[int, int]], lines: Sequence[Candidate], items: Sequence[Candidate], rule: Rule
) -> None:
    assert len({line for line, _ in pairs}) == len({item for _, item in pairs}) == len(pairs)
    assert all(fits(lines[line], items[item], rule) for line, item in pairs)


@given(SIDES, SIDES)
def test_with_a_key_as_many_are_paired_as_can_be_and_none_twice(
    lines: list[tuple[int, int]], items: list[tuple[int, int]]
) -> None:
    left, right = candidates(lines), candidates(items)
    pairs = pair(left, right, KEYED)
    check(pairs, left, right, KEYED)
    assert len(pairs) == most(left, right, KEYED)


@given(SIDES, SIDES)
def test_within_a_tolerance_nothing_is_left_that_would_still_fit(
    lines: list[tuple[int, int]], items: list[tuple[int, int]]
) -> None:
    left, right = candidates(lines), candidates(items)
    pairs = pair(left, right, NEAR)
    check(pairs, left, right, NEAR)
    taken_lines, taken_items = {line for line, _ in pairs}, {item for _, item in pairs}
    assert not any(
        fits(line, item, NEAR)
        for line in left
        for item in right
        if line.number not in taken_lines and item.number not in taken_items
    )


@given(ONE_AMOUNT, ONE_AMOUNT)
def test_without_a_key_only_what_could_be_nothing_else_is_paired(lines: list[int], items: list[int]) -> None:
    left, right = candidates([(1, d) for d in lines]), candidates([(1, d) for d in items])
    certain = {
        (line.number, item.number)
        for line in left
        for item in right
        if [i for i in right if fits(line, i, KEYLESS)] == [item]
        and [c for c in left if fits(c, item, KEYLESS)] == [line]
    }
    assert set(pair(left, right, KEYLESS)) == certain


@settings(max_examples=20)
@given(st.integers(100, 2_000))
def test_a_thousand_of_one_key_are_paired_in_no_time(count: int) -> None:
    same = [Candidate(5, day, day) for day in range(count)]
    assert pair(same, same, KEYED) == [(n, n) for n in range(count)]
