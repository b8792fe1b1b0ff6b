"""Waiting grows, never past its cap, and never twice the same for everybody."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.kit.backoff import Backoff

policies = st.builds(
    Backoff,
    first_ms=st.integers(1, 10_000),
    factor=st.integers(1, 10),
    max_ms=st.integers(1, 3_600_000),
    attempts_max=st.integers(1, 100),
)
attempts = st.integers(1, 1_000_000)
jitters = st.floats(0, 1, exclude_max=True)


def test_the_wait_doubles_until_the_cap() -> None:
    policy = Backoff(first_ms=100, factor=2, max_ms=1_000, attempts_max=10)
    longest = [policy.delay_ms(attempt, jitter=0.999999) for attempt in range(1, 7)]
    assert longest == [99, 199, 399, 799, 999, 999]
    shortest = [policy.delay_ms(attempt, jitter=0.0) for attempt in range(1, 7)]
    assert shortest == [50, 100, 200, 400, 500, 500]


@given(policy=policies, attempt=attempts, jitter=jitters)
def test_a_wait_lies_between_half_and_all_of_the_capped_exponential(
    policy: Backoff, attempt: int, jitter: float
) -> None:
    whole = min(policy.max_ms, policy.first_ms * policy.factor ** min(attempt - 1, 64))
    capped = min(policy.max_ms, policy.first_ms * policy.factor**30)
    assert min(whole, capped) // 2 <= policy.delay_ms(attempt, jitter) <= whole


@given(policy=policies, attempt=attempts)
def test_the_dice_stay_within_the_same_bounds(policy: Backoff, attempt: int) -> None:
    drawn = policy.delay_ms(attempt)
    assert policy.delay_ms(attempt, 0.0) <= drawn <= policy.delay_ms(attempt, 0.999999999)


@given(policy=policies, attempt=st.integers(1, 1_000), jitter=jitters)
def test_a_later_attempt_never_waits_less(policy: Backoff, attempt: int, jitter: float) -> None:
    assert policy.delay_ms(attempt, jitter) <= policy.delay_ms(attempt + 1, jitter)


def test_many_that_failed_together_do_not_come_back_together() -> None:
    policy = Backoff(first_ms=1_000, factor=2, max_ms=60_000, attempts_max=10)
    waits = [policy.delay_ms(3) for _ in range(1_000)]
    assert len(set(waits)) > 500
    assert max(waits) - min(waits) > 1_000


@given(policy=policies)
def test_attempts_run_out_at_the_last_one(policy: Backoff) -> None:
    assert not policy.exhausted(policy.attempts_max - 1)
    assert policy.exhausted(policy.attempts_max)
    assert policy.exhausted(policy.attempts_max + 1)
