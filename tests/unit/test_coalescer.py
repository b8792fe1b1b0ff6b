"""The coalescer's promises, one by one, with a handler that is held at a gate; then all of them at once under random
submissions: every command is answered once, by its own outcome, in order, and no limit is ever passed."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.kit.coalescer import Coalescer, Limits
from services.kit.deadline import Deadline
from services.kit.errors import Overloaded

FAR = 30.0
NEVER_MS = 1e9
"""A linger that no test lives to see."""


class Kitchen:
    """A handler that notes each set, waits at a gate if there is one, and answers in capitals."""

    def __init__(self, **limits: float) -> None:
        self.sets: list[list[str]] = []
        self.served: list[str] = []
        self.under_way = 0
        self.under_way_max = 0
        self.deadlines: list[Deadline] = []
        self.gate: asyncio.Semaphore | None = None
        self.coalescer: Coalescer[str, str] = Coalescer(
            "kitchen",
            self._cook,
            lambda error: f"failed: {error}",
            Limits(**limits),  # type: ignore[arg-type]
            self._rest,
        )
        self.goes_on: dict[str, asyncio.Future[Any]] = {}

    def _rest(self, outcome: str) -> asyncio.Future[Any] | None:
        return self.goes_on.get(outcome)

    async def _cook(self, commands: Sequence[str], deadline: Deadline) -> Sequence[str]:
        self.sets.append(list(commands))
        self.deadlines.append(deadline)
        self.under_way += 1
        self.under_way_max = max(self.under_way_max, self.under_way)
        try:
            if self.gate is not None:
                await self.gate.acquire()
            if "poison" in commands:
                raise ValueError("poisoned")
            if "short" in commands:
                return []
            self.served += commands
            return [command.upper() for command in commands]
        finally:
            self.under_way -= 1

    def order(
        self, *commands: str, seconds: float = FAR, single: bool = False
    ) -> asyncio.Task[list[str | None]]:
        """Submit in a task of its own."""
        return asyncio.create_task(self.coalescer.submit(commands, Deadline.after(seconds), single=single))


async def turn() -> None:
    """Let everything that can run do so."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_an_idle_coalescer_starts_at_once() -> None:
    kitchen = Kitchen(linger_ms=NEVER_MS)
    assert await kitchen.order("a") == ["A"]
    assert await kitchen.order("b") == ["B"]
    assert kitchen.sets == [["a"], ["b"]]


async def test_while_a_set_is_under_way_the_next_lingers_for_company() -> None:
    kitchen = Kitchen(linger_ms=50)
    kitchen.gate = asyncio.Semaphore(0)
    orders = [kitchen.order("a")]
    await turn()
    orders.append(kitchen.order("b"))
    await turn()
    orders.append(kitchen.order("c", "d"))
    await turn()
    assert kitchen.sets == [["a"]]
    assert kitchen.coalescer.queued == 3
    await asyncio.sleep(0.1)
    assert kitchen.sets == [["a"], ["b", "c", "d"]]
    assert kitchen.coalescer.queued == 0
    kitchen.gate = None
    for order in orders:
        order.cancel()


async def test_the_next_set_does_not_linger_once_nothing_is_under_way() -> None:
    kitchen = Kitchen(linger_ms=NEVER_MS)
    kitchen.gate = asyncio.Semaphore(0)
    first, second = kitchen.order("a"), kitchen.order("b")
    await turn()
    assert kitchen.sets == [["a"]]
    kitchen.gate.release()
    kitchen.gate.release()
    assert await first == ["A"]
    assert await second == ["B"]


async def test_enough_company_starts_a_set_beside_the_one_under_way() -> None:
    kitchen = Kitchen(linger_ms=NEVER_MS, company=3)
    kitchen.gate = asyncio.Semaphore(0)
    orders = [kitchen.order("a"), kitchen.order("b", "c")]
    await turn()
    assert kitchen.sets == [["a"]]
    orders.append(kitchen.order("d", "e"))
    await turn()
    assert kitchen.sets == [["a"], ["b", "c", "d", "e"]]
    kitchen.gate.release()
    kitchen.gate.release()
    assert await asyncio.gather(*orders) == [["A"], ["B", "C"], ["D", "E"]]


async def test_callers_that_were_answered_together_are_expected_back_together() -> None:
    kitchen = Kitchen(gather_ms=NEVER_MS)
    kitchen.coalescer.answered()
    kitchen.coalescer.answered()
    first = kitchen.order("a", single=True)
    await turn()
    assert kitchen.sets == []
    assert await asyncio.wait_for(kitchen.order("b", single=True), 5) == ["B"]
    assert await first == ["A"]
    assert kitchen.sets == [["a", "b"]]


async def test_who_does_not_come_back_is_not_waited_for_for_long() -> None:
    kitchen = Kitchen(gather_ms=20)
    kitchen.coalescer.answered()
    kitchen.coalescer.answered()
    assert await asyncio.wait_for(kitchen.order("a", single=True), 5) == ["A"]
    assert await asyncio.wait_for(kitchen.order("b", single=True), 0.01) == ["B"]
    assert kitchen.sets == [["a"], ["b"]]


async def test_an_old_answer_lets_nobody_be_expected() -> None:
    kitchen = Kitchen(gather_ms=5)
    kitchen.coalescer.answered()
    kitchen.coalescer.answered()
    await asyncio.sleep(0.02)
    assert await asyncio.wait_for(kitchen.order("a", single=True), 0.004) == ["A"]


async def test_a_lone_caller_waits_for_nobody() -> None:
    kitchen = Kitchen(gather_ms=NEVER_MS)
    for name in "abc":
        assert await asyncio.wait_for(kitchen.order(name, single=True), 5) == [name.upper()]
        kitchen.coalescer.answered()


async def test_a_batch_waits_for_nobody_when_nothing_is_under_way() -> None:
    kitchen = Kitchen(gather_ms=NEVER_MS)
    kitchen.coalescer.answered()
    kitchen.coalescer.answered()
    assert await asyncio.wait_for(kitchen.order("b", "c"), 5) == ["B", "C"]
    waiting = kitchen.order("d", single=True)
    await turn()
    assert kitchen.sets == [["b", "c"]]
    assert await asyncio.wait_for(kitchen.order("e", "f"), 5) == ["E", "F"]
    assert await waiting == ["D"]
    assert kitchen.sets[-1] == ["d", "e", "f"]


async def test_small_sets_whose_work_goes_on_are_waves_and_another_one_lingers() -> None:
    kitchen = Kitchen(linger_ms=NEVER_MS, waves_max=2, company=3)
    work: dict[str, asyncio.Future[Any]] = {name.upper(): asyncio.Future() for name in "abcd"}
    kitchen.goes_on = work
    assert await kitchen.order("a") == ["A"]
    assert await kitchen.order("b") == ["B"]
    lingering = kitchen.order("c")
    await turn()
    assert kitchen.sets == [["a"], ["b"]]
    assert await asyncio.wait_for(kitchen.order("d", "e"), 5) == [
        "D",
        "E",
    ]  # with "c" that makes a set worth starting
    assert await lingering == ["C"]
    assert kitchen.sets[-1] == ["c", "d", "e"]
    lingering = kitchen.order("f")
    await turn()
    assert not lingering.done()
    work["A"].set_result(None)
    assert await asyncio.wait_for(lingering, 5) == ["F"]


async def test_a_straggler_of_a_wave_holds_up_nobody_for_ever() -> None:
    kitchen = Kitchen(linger_ms=20, waves_max=1)
    kitchen.goes_on = {"A": asyncio.Future()}
    assert await kitchen.order("a") == ["A"]
    await asyncio.sleep(0.03)
    assert await asyncio.wait_for(kitchen.order("b"), 0.015) == ["B"]


async def test_singles_that_lingered_gather_only_briefly_once_nothing_is_under_way() -> None:
    kitchen = Kitchen(linger_ms=NEVER_MS, gather_ms=1)
    kitchen.gate = asyncio.Semaphore(0)
    first, second = kitchen.order("a", single=True), kitchen.order("b", single=True)
    await turn()
    assert kitchen.sets == [["a"]]
    kitchen.gate.release()
    kitchen.gate.release()
    assert await first == ["A"]
    assert await asyncio.wait_for(second, 1) == ["B"]


async def test_a_full_set_does_not_linger() -> None:
    kitchen = Kitchen(linger_ms=NEVER_MS, set_size_max=2)
    kitchen.gate = asyncio.Semaphore(0)
    orders = [kitchen.order("a"), kitchen.order("b"), kitchen.order("c")]
    await turn()
    assert kitchen.sets == [["a"], ["b", "c"]]
    kitchen.gate.release()
    kitchen.gate.release()
    assert await asyncio.gather(*orders) == [["A"], ["B"], ["C"]]


async def test_a_submission_larger_than_a_set_is_split_and_put_together_again() -> None:
    kitchen = Kitchen(set_size_max=4, sets_in_flight_max=1)
    commands = [f"c{n}" for n in range(10)]
    assert await kitchen.order(*commands) == [command.upper() for command in commands]
    assert [len(set_) for set_ in kitchen.sets] == [4, 4, 2]


async def test_a_split_submission_shares_its_last_set_with_the_next() -> None:
    kitchen = Kitchen(set_size_max=4, sets_in_flight_max=1)
    first, second = kitchen.order("a", "b", "c", "d", "e", "f"), kitchen.order("g", "h", "i")
    assert await first == ["A", "B", "C", "D", "E", "F"]
    assert await second == ["G", "H", "I"]
    assert kitchen.sets == [["a", "b", "c", "d"], ["e", "f", "g", "h"], ["i"]]


async def test_no_more_sets_are_under_way_than_allowed() -> None:
    kitchen = Kitchen(set_size_max=1, sets_in_flight_max=3, linger_ms=0)
    kitchen.gate = asyncio.Semaphore(0)
    orders = [kitchen.order(f"c{n}") for n in range(8)]
    await turn()
    assert kitchen.under_way == 3
    assert kitchen.coalescer.queued == 5
    for _ in orders:
        kitchen.gate.release()
    await asyncio.gather(*orders)
    assert kitchen.under_way_max == 3


async def test_a_full_queue_sheds_a_submission_whole() -> None:
    kitchen = Kitchen(queue_max=4, set_size_max=2, sets_in_flight_max=1, linger_ms=NEVER_MS)
    kitchen.gate = asyncio.Semaphore(0)
    accepted = [kitchen.order("a", "b"), kitchen.order("c", "d", "e")]
    await turn()
    assert kitchen.coalescer.queued == 3
    with pytest.raises(Overloaded) as shed:
        await kitchen.coalescer.submit(["f", "g"], Deadline.after(FAR))
    assert shed.value.retry_after_ms
    assert kitchen.coalescer.queued == 3
    accepted.append(kitchen.order("h"))
    for _ in range(10):
        kitchen.gate.release()
    assert await asyncio.gather(*accepted) == [["A", "B"], ["C", "D", "E"], ["H"]]
    assert sorted(c for set_ in kitchen.sets for c in set_) == ["a", "b", "c", "d", "e", "h"]


async def test_a_submission_larger_than_the_queue_is_shed_even_when_idle() -> None:
    kitchen = Kitchen(queue_max=2)
    with pytest.raises(Overloaded):
        await kitchen.coalescer.submit(["a", "b", "c"], Deadline.after(FAR))
    assert await kitchen.order("a", "b") == ["A", "B"]
    assert kitchen.sets == [["a", "b"]]


@pytest.mark.parametrize("bad", ["poison", "short"])
async def test_a_handler_that_breaks_fails_its_own_set_and_no_other(bad: str) -> None:
    kitchen = Kitchen(set_size_max=2, sets_in_flight_max=1)
    orders = [kitchen.order("a", bad), kitchen.order("b", "c"), kitchen.order("d")]
    broken, *others = await asyncio.gather(*orders)
    assert [str(outcome).split(":")[0] for outcome in broken] == ["failed", "failed"]
    assert others == [["B", "C"], ["D"]]
    assert await kitchen.order("e") == ["E"]


async def test_a_half_broken_submission_keeps_what_went_well() -> None:
    kitchen = Kitchen(set_size_max=2, sets_in_flight_max=1)
    assert await kitchen.order("a", "b", "c", "poison") == ["A", "B", "failed: poisoned", "failed: poisoned"]


async def test_the_work_of_a_caller_who_went_away_is_carried_out() -> None:
    kitchen = Kitchen(sets_in_flight_max=1)
    kitchen.gate = asyncio.Semaphore(0)
    under_way, waiting, patient = kitchen.order("a"), kitchen.order("b"), kitchen.order("c")
    await turn()
    under_way.cancel()
    waiting.cancel()
    await turn()
    assert under_way.cancelled()
    assert waiting.cancelled()
    for _ in range(3):
        kitchen.gate.release()
    assert await patient == ["C"]
    await turn()
    assert sorted(kitchen.served) == ["a", "b", "c"]
    assert kitchen.under_way == 0


async def test_at_the_deadline_a_caller_gets_what_is_ready() -> None:
    kitchen = Kitchen(set_size_max=2, sets_in_flight_max=1)
    kitchen.gate = asyncio.Semaphore(1)
    late = kitchen.order("a", "b", "c", seconds=0.05)
    assert await late == ["A", "B", None]
    kitchen.gate.release()
    await kitchen.coalescer.drain()
    assert kitchen.sets == [["a", "b"], ["c"]]


async def test_a_set_has_the_time_of_its_most_patient_caller() -> None:
    kitchen = Kitchen(sets_in_flight_max=1)
    kitchen.gate = asyncio.Semaphore(0)
    orders = [kitchen.order("a"), kitchen.order("b", seconds=1), kitchen.order("c", seconds=20)]
    await turn()
    kitchen.gate.release()
    kitchen.gate.release()
    await asyncio.gather(*orders)
    assert kitchen.sets[1] == ["b", "c"]
    assert 10 < kitchen.deadlines[1].remaining() <= 20


async def test_drain_waits_for_everything_accepted_and_does_not_linger() -> None:
    kitchen = Kitchen(set_size_max=2, sets_in_flight_max=2, linger_ms=NEVER_MS)
    kitchen.gate = asyncio.Semaphore(0)
    orders = [kitchen.order(f"c{n}") for n in range(6)]
    await turn()
    drained = asyncio.create_task(kitchen.coalescer.drain())
    await turn()
    for _ in range(4):
        assert not drained.done()
        kitchen.gate.release()
        await turn()
    await asyncio.wait_for(drained, 5)
    assert kitchen.sets == [["c0"], ["c1", "c2"], ["c3", "c4"], ["c5"]]
    assert await asyncio.gather(*orders) == [[f"C{n}"] for n in range(6)]


async def test_drain_starts_what_lingers() -> None:
    kitchen = Kitchen(linger_ms=NEVER_MS)
    kitchen.gate = asyncio.Semaphore(0)
    orders = [kitchen.order("a"), kitchen.order("b", single=True)]
    await turn()
    assert kitchen.sets == [["a"]]
    drained = asyncio.create_task(kitchen.coalescer.drain())
    await turn()
    assert kitchen.sets == [["a"], ["b"]]
    kitchen.gate.release()
    kitchen.gate.release()
    await asyncio.wait_for(drained, 5)
    assert await asyncio.gather(*orders) == [["A"], ["B"]]


async def test_an_idle_coalescer_is_drained_already() -> None:
    await asyncio.wait_for(Kitchen().coalescer.drain(), 1)


submissions = st.lists(
    st.tuples(
        st.integers(1, 12),  # commands
        st.integers(0, 3),  # turns of the loop before it is submitted
        st.sampled_from(["stays", "stays", "stays", "goes away"]),
        st.booleans(),  # said to be a single call
    ),
    max_size=25,
)
limits = st.fixed_dictionaries(
    {
        "set_size_max": st.integers(1, 8),
        "sets_in_flight_max": st.integers(1, 3),
        "linger_ms": st.sampled_from([0.0, 0.5, 2.0]),
        "gather_ms": st.sampled_from([0.0, 0.5]),
        "company": st.integers(1, 8),
        "queue_max": st.integers(8, 40),
    }
)


@settings(deadline=None, max_examples=100)
@given(submissions=submissions, limits=limits, naps=st.lists(st.integers(0, 3), min_size=1, max_size=5))
def test_every_command_is_answered_once_and_in_order(
    submissions: list[tuple[int, int, str, bool]], limits: dict[str, float], naps: list[int]
) -> None:
    async def scenario() -> None:
        kitchen = Kitchen(**limits)
        cook = kitchen.coalescer._handle
        calls = 0

        async def nap(commands: Sequence[str], deadline: Deadline) -> Sequence[str]:
            nonlocal calls
            calls += 1
            for _ in range(naps[calls % len(naps)]):
                await asyncio.sleep(0)
            return await cook(commands, deadline)

        kitchen.coalescer._handle = nap
        accepted: list[str] = []

        async def call(commands: list[str], single: bool) -> None:
            room = limits["queue_max"] - kitchen.coalescer.queued
            if len(commands) > room:
                with pytest.raises(Overloaded):
                    await kitchen.coalescer.submit(commands, Deadline.after(FAR))
                return
            accepted.extend(commands)
            answers = await kitchen.coalescer.submit(commands, Deadline.after(FAR), single=single)
            assert answers == [command.upper() for command in commands]

        waiting = []
        for number, (size, turns, manner, single) in enumerate(submissions):
            for _ in range(turns):
                await asyncio.sleep(0)
            task = asyncio.create_task(call([f"s{number}c{place}" for place in range(size)], single))
            await asyncio.sleep(0)
            assert kitchen.coalescer.queued <= limits["queue_max"]
            if manner == "goes away":
                task.cancel()
            else:
                waiting.append(task)
        async with asyncio.timeout(5):
            await asyncio.gather(*waiting)
            await kitchen.coalescer.drain()
        worked = [command for set_ in kitchen.sets for command in set_]
        assert Counter(worked) == Counter(accepted)
        assert all(1 <= len(set_) <= limits["set_size_max"] for set_ in kitchen.sets)
        assert kitchen.under_way_max <= limits["sets_in_flight_max"]
        assert kitchen.coalescer.queued == 0

    asyncio.run(scenario())
