"""A deadline is handed on smaller, never larger, and what is left is never negative."""

from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st

from services.kit.deadline import ANSWER_MARGIN_SECONDS, Deadline

seconds = st.floats(-1e6, 1e6)
TICK = 1.0
"""More than passes between two lines of a test, less than any difference it looks for."""


def test_what_is_left_runs_down() -> None:
    deadline = Deadline.after(60)
    first = deadline.remaining()
    time.sleep(0.01)
    assert 0 < deadline.remaining() < first <= 60


def test_a_deadline_that_has_passed_leaves_nothing_and_no_less() -> None:
    past = Deadline.after(-5)
    assert past.expired()
    assert past.remaining() == 0.0
    assert not Deadline.after(5).expired()


def test_a_callee_gets_the_callers_time_less_the_margin() -> None:
    assert Deadline.after(10).clamp(60).remaining() <= 10 - ANSWER_MARGIN_SECONDS
    assert Deadline.after(10).clamp(60).remaining() > 10 - ANSWER_MARGIN_SECONDS - TICK


def test_a_callee_with_less_time_of_its_own_gets_that() -> None:
    assert 5 - TICK < Deadline.after(60).clamp(5).remaining() <= 5


def test_nothing_is_left_for_a_callee_within_the_margin() -> None:
    assert Deadline.after(ANSWER_MARGIN_SECONDS / 2).clamp(60).expired()


@given(caller=seconds, callee=seconds, margin=st.floats(0, 10))
def test_a_clamped_deadline_is_never_later_than_either(caller: float, callee: float, margin: float) -> None:
    outer = Deadline.after(caller)
    inner = outer.clamp(callee, margin)
    assert inner.at <= outer.at
    assert inner.at <= time.monotonic() + callee
    assert inner.remaining() >= 0
