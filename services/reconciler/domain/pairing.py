"""Who belongs to whom, where several lines and several items have one key. Pure.

Nearly every key has one line and one item, and the database joins those in sets. What is left is decided here, group by
group, with the same rule and the same window.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

from services.reconciler.domain.rules import Rule


class Candidate(NamedTuple):
    """A line or an item of a group."""

    amount_minor: int
    day: int
    """Of its value, as a number of days."""
    number: int


Pair = tuple[int, int]
"""(line, item), by their numbers."""


def pair(lines: Sequence[Candidate], items: Sequence[Candidate], rule: Rule) -> list[Pair]:
    """Lines and items of one key and currency that belong together, each at most once.

    With a key: as many pairs as there can be, of equal amounts first, the earliest with the earliest; then, within the
    tolerance, the closest amounts first. Without a key only what leaves no doubt: an item that no other line could be,
    and the other way round.
    """
    if not rule.keyed:
        return _certain(lines, items, rule)
    pairs = _equal(lines, items, rule)
    if rule.tolerance_minor:
        taken_lines, taken_items = {line for line, _ in pairs}, {item for _, item in pairs}
        pairs += _closest(
            [c for c in lines if c.number not in taken_lines],
            [c for c in items if c.number not in taken_items],
            rule,
        )
    return pairs


def _equal(lines: Sequence[Candidate], items: Sequence[Candidate], rule: Rule) -> list[Pair]:
    """Every window has the same length, so taking the earliest that fits is the best that can be done."""
    by_amount: dict[int, list[Candidate]] = {}
    for amount_minor, group in groupby(sorted(items), key=lambda c: c.amount_minor):
        by_amount[amount_minor] = list(group)
    pairs = []
    for amount_minor, group in groupby(sorted(lines), key=lambda c: c.amount_minor):
        waiting = by_amount.get(amount_minor, [])
        place = 0
        for line in group:
            # What is too old for this line is too old for all that follow.
            while place < len(waiting) and line.day - waiting[place].day > rule.days_after:
                place += 1
            if place < len(waiting) and line.day - waiting[place].day >= -rule.days_before:
                pairs.append((line.number, waiting[place].number))
                place += 1
    return pairs


def _closest(lines: Sequence[Candidate], items: Sequence[Candidate], rule: Rule) -> list[Pair]:
    """Greedy by difference of amounts, then of days, then by number."""
    near: list[tuple[int, int, int, int]] = []
    ordered = sorted(items)
    for line in lines:
        first = bisect_left(ordered, (line.amount_minor - rule.tolerance_minor,))
        for item in ordered[first:]:
            if item.amount_minor - line.amount_minor > rule.tolerance_minor:
                break
            if _in_time(line, item, rule):
                apart = abs(line.amount_minor - item.amount_minor)
                near.append((apart, abs(line.day - item.day), line.number, item.number))
    pairs: list[Pair] = []
    taken_lines: set[int] = set()
    taken_items: set[int] = set()
    for _, _, line_no, item_no in sorted(near):
        if line_no not in taken_lines and item_no not in taken_items:
            pairs.append((line_no, item_no))
            taken_lines.add(line_no)
            taken_items.add(item_no)
    return pairs


def _certain(lines: Sequence[Candidate], items: Sequence[Candidate], rule: Rule) -> list[Pair]:
    """Pairs of which each is the only one that the other could belong to."""
    pairs = []
    ordered_items, ordered_lines = sorted(items, key=_when), sorted(lines, key=_when)
    for line in ordered_lines:
        fitting = _within(ordered_items, line.day - rule.days_after, line.day + rule.days_before)
        if len(fitting) != 1:
            continue
        item = fitting[0]
        if len(_within(ordered_lines, item.day - rule.days_before, item.day + rule.days_after)) == 1:
            pairs.append((line.number, item.number))
    return pairs


def _within(ordered: Sequence[Candidate], first_day: int, last_day: int) -> Sequence[Candidate]:
    """Those of certain days, at most two: more than one is as good as many."""
    place = bisect_left(ordered, first_day, key=lambda c: c.day)
    return [c for c in ordered[place : place + 2] if c.day <= last_day]


def _in_time(line: Candidate, item: Candidate, rule: Rule) -> bool:
    return -rule.days_before <= line.day - item.day <= rule.days_after


def _when(candidate: Candidate) -> tuple[int, int]:
    return candidate.day, candidate.number
