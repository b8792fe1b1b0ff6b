"""A statement that does not add up, or is not whole, is refused, and the refusal says where."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.reconciler.domain.statement import (
    BALANCE_MINOR_MAX,
    Closed,
    Event,
    Line,
    Opened,
    Refusal,
    checked,
)

DAY = date(2026, 11, 2)


def opened(opening_minor: int = 1_000, currency: str = "GBP", name: str = "S1") -> Opened:
    return Opened(name, "GB00BANK", currency, opening_minor, DAY, 1)


def line(number: int, amount_minor: int, currency: str = "GBP") -> Line:
    return Line(
        number,
        DAY,
        DAY,
        amount_minor,
        currency,
        f"r{number}",
        f"b{number}",
        "",
        "NTRF",
        "",
        False,
        number + 1,
    )


def closed(closing_minor: int, lines: int) -> Closed:
    return Closed(closing_minor, DAY, lines, lines + 2)


def refusal(events: list[Event]) -> tuple[int, str]:
    with pytest.raises(Refusal) as caught:
        list(checked(iter(events)))
    return caught.value.line, caught.value.field


def test_statements_that_add_up_pass_unchanged() -> None:
    events: list[Event] = [
        opened(),
        line(1, 500),
        line(2, -700),
        closed(800, 2),
        opened(0, name="S2"),
        closed(0, 0),
    ]
    assert list(checked(iter(events))) == events


@pytest.mark.parametrize(
    ("events", "where"),
    [
        ([], (0, "statement")),
        ([line(1, 5)], (2, "line")),
        ([closed(0, 0)], (2, "closing balance")),
        ([opened(), opened()], (1, "statement")),
        ([opened(), line(1, 5)], (2, "closing balance")),
        ([opened(), line(2, 5)], (3, "number")),
        ([opened(), line(1, 5), line(1, 5)], (2, "number")),
        ([opened(), line(1, 5, "USD")], (2, "currency")),
        ([opened(), line(1, 5), closed(1_006, 1)], (3, "closing balance")),
        ([opened(), line(1, 5), closed(1_005, 2)], (4, "number of lines")),
        ([opened(BALANCE_MINOR_MAX + 1)], (1, "opening balance")),
        ([opened(), line(1, -BALANCE_MINOR_MAX - 1)], (2, "amount")),
    ],
)
def test_what_is_not_whole_is_refused_with_its_place(events: list[Event], where: tuple[int, str]) -> None:
    assert refusal(events) == where


SECTIONS = st.lists(
    st.tuples(st.integers(-(10**12), 10**12), st.lists(st.integers(-(10**12), 10**12), max_size=8)),
    min_size=1,
    max_size=4,
)


def _events(sections: list[tuple[int, list[int]]]) -> list[Event]:
    events: list[Event] = []
    for opening_minor, amounts in sections:
        events.append(opened(opening_minor))
        events += [line(number, amount) for number, amount in enumerate(amounts, start=1)]
        events.append(closed(opening_minor + sum(amounts), len(amounts)))
    return events


@given(SECTIONS, st.data())
def test_a_whole_file_passes_and_with_any_one_value_missing_or_wrong_it_does_not(
    sections: list[tuple[int, list[int]]], data: st.DataObject
) -> None:
    events = _events(sections)
    assert list(checked(iter(events))) == events
    place = data.draw(st.integers(0, len(events) - 1))
    harm: Callable[[Event], list[Event]] = data.draw(st.sampled_from([_lost, _doubled, _off_by_one]))
    refusal([*events[:place], *harm(events[place]), *events[place + 1 :]])


def _lost(event: Event) -> list[Event]:
    return []


def _doubled(event: Event) -> list[Event]:
    return [event, event]


def _off_by_one(event: Event) -> list[Event]:
    match event:
        case Opened():
            return [event._replace(opening_minor=event.opening_minor + 1)]
        case Line():
            return [event._replace(amount_minor=event.amount_minor + 1)]
        case Closed():
            return [event._replace(closing_minor=event.closing_minor + 1)]
