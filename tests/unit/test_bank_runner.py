"""Operations that take their time: who waits, who is told to ask again, and that work begun is not done twice."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from paymesh.bank.v1 import bank_pb2 as pb
from sandbox.bank.runner import UNDER_WAY_MAX, Latecomers
from services.kit.deadline import Deadline
from services.kit.errors import Kind
from services.kit.sets import Answer, Command, Failed, Outcome, Pending

ANSWER = Answer(pb.VoidResponse(authorization=pb.Authorization(authorization_id="auth_1")))


def _command(key: str, fingerprint: bytes = b"f") -> Command[None]:
    return Command("m", "test", key, fingerprint, "", None, None)


class _Books:
    """Remembers what was carried out; answers when told to."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.may_end = asyncio.Event()

    async def carry_out(
        self, commands: Sequence[Command[None]], deadline: Deadline
    ) -> list[Outcome[pb.VoidResponse]]:
        self.keys += [command.key for command in commands]
        await self.may_end.wait()
        return [ANSWER] * len(commands)


def _kind(taken: Pending[pb.VoidResponse] | Failed) -> Kind | None:
    return taken.error.kind if isinstance(taken, Failed) else None


async def test_a_repeat_joins_the_operation_that_is_under_way() -> None:
    books, latecomers = _Books(), Latecomers(soft_deadline_ms=60_000)
    books.may_end.set()
    twins = latecomers.take([_command("k1"), _command("k1")], 1, books.carry_out)
    (later,) = latecomers.take([_command("k1")], 1, books.carry_out)
    (other,) = latecomers.take([_command("k1", b"another request")], 1, books.carry_out)
    outcomes = [await taken.outcome for taken in (*twins, later) if isinstance(taken, Pending)]
    assert outcomes == [ANSWER] * 3
    assert _kind(other) is Kind.IN_PROGRESS
    assert books.keys == ["k1"]


async def test_who_would_wait_longer_than_the_soft_deadline_is_told_at_once() -> None:
    books, latecomers = _Books(), Latecomers(soft_deadline_ms=20)
    books.may_end.set()
    (taken,) = latecomers.take([_command("k1")], 20, books.carry_out)
    assert _kind(taken) is Kind.IN_PROGRESS
    assert not books.keys
    while not books.keys:
        await asyncio.sleep(0.005)


async def test_books_that_hang_hold_nobody_up_beyond_the_soft_deadline() -> None:
    books, latecomers = _Books(), Latecomers(soft_deadline_ms=50)
    (taken,) = latecomers.take([_command("k1")], 1, books.carry_out)
    assert isinstance(taken, Pending)
    outcome = await asyncio.wait_for(taken.outcome, 5)
    assert isinstance(outcome, Failed)
    assert outcome.error.kind is Kind.IN_PROGRESS
    assert books.keys == ["k1"]
    await latecomers.close()


async def test_a_failure_in_the_background_reaches_who_waits_and_frees_the_key() -> None:
    async def fail(_: Sequence[Command[None]], __: Deadline) -> list[Outcome[pb.VoidResponse]]:
        raise ZeroDivisionError

    latecomers, books = Latecomers(soft_deadline_ms=60_000), _Books()
    books.may_end.set()
    (taken,) = latecomers.take([_command("k1")], 1, fail)
    assert isinstance(taken, Pending)
    outcome = await taken.outcome
    assert isinstance(outcome, Failed)
    assert outcome.error.kind is Kind.BUG
    await asyncio.sleep(0)
    (again,) = latecomers.take([_command("k1")], 1, books.carry_out)
    assert isinstance(again, Pending)
    assert await again.outcome == ANSWER


async def test_slow_operations_are_bounded_and_the_rest_is_shed() -> None:
    books, latecomers = _Books(), Latecomers(soft_deadline_ms=1)
    commands = [_command(f"k{n}") for n in range(UNDER_WAY_MAX + 1)]
    taken = latecomers.take(commands, 60_000, books.carry_out)
    assert [_kind(t) for t in taken[-2:]] == [Kind.IN_PROGRESS, Kind.RETRYABLE]
    await latecomers.close()
    assert not books.keys
