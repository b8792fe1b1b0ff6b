"""Keys that are barred by an undo, before, while and after the do arrives."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from services.kit.db import Database, Transaction
from services.kit.deadline import Deadline
from services.kit.errors import Kind, Retryable
from services.kit.idempotency import bar, begin_set, identity
from services.kit.sets import Failed
from tests.wishes import (
    METHOD,
    PACK,
    Held,
    begin_only,
    effects,
    keys,
    make,
    text,
    texts,
    undo,
    until_waiting,
    wish,
)


async def test_an_undo_before_the_do_refuses_the_late_do_for_ever(database: Database) -> None:
    assert await undo(database, wish("k")) == {}
    for body in ("x", "x", "y"):
        (outcome,) = await make(database, wish("k", body))
        assert isinstance(outcome, Failed)
        assert outcome.error.reason == "UNDONE_BEFORE_ARRIVAL"
        assert outcome.error.kind is Kind.REFUSED
        assert outcome.replayed
    assert await effects(database) == []


async def test_an_undo_after_the_do_learns_what_to_undo(database: Database) -> None:
    do = wish("k")
    (answer,) = await make(database, do)
    assert await undo(database, wish("k")) == {"k": do.resource_id}
    (replay,) = await make(database, wish("k"))
    assert text(replay) == text(answer)


async def test_an_undo_while_the_do_is_under_way_learns_what_to_undo(database: Database) -> None:
    do = wish("k")
    await begin_set(database, METHOD, [do], begin_only, PACK, Deadline.after(10))
    assert await undo(database, wish("k")) == {"k": do.resource_id}


async def test_an_undo_that_is_repeated_gets_the_same_answer(database: Database) -> None:
    do = wish("done")
    await make(database, do)
    for _ in range(2):
        assert await undo(database, wish("done"), wish("never"), wish("never")) == {"done": do.resource_id}
    assert await keys(database) == {"done": True, "never": True}


async def test_undos_of_arrived_and_absent_calls_share_a_set(database: Database) -> None:
    do = [wish(f"k{n}") for n in range(6)]
    await make(database, *do[::2])
    assert await undo(database, *do) == {w.key: w.resource_id for w in do[::2]}
    assert texts(await make(database, *(wish(w.key) for w in do))) == [
        do[0].resource_id, "UNDONE_BEFORE_ARRIVAL", do[2].resource_id, "UNDONE_BEFORE_ARRIVAL", do[4].resource_id,
        "UNDONE_BEFORE_ARRIVAL",
    ]  # fmt: skip


async def test_a_barrier_is_for_one_merchant_and_caller(database: Database) -> None:
    one, two = wish("k", merchant="mer_2"), wish("k", caller="edge")
    assert texts(await make(database, one)) == [one.resource_id]
    assert await undo(database, wish("k")) == {}
    assert texts(await make(database, two)) == [two.resource_id]
    assert texts(await make(database, wish("k"))) == ["UNDONE_BEFORE_ARRIVAL"]


async def test_an_undo_waits_for_a_do_that_has_begun_and_undoes_it(database: Database) -> None:
    held, do = Held(), wish("k")
    doing = asyncio.create_task(make(database, do, how=held))
    await held.entered.wait()
    undoing = asyncio.create_task(undo(database, wish("k")))
    await until_waiting(database)
    held.go.set()
    await doing
    assert await undoing == {"k": do.resource_id}


async def test_an_undo_stands_when_the_do_it_waited_for_rolls_back(database: Database) -> None:
    held = Held()
    held.error = Retryable("BUSY", "gives up")
    doing = asyncio.create_task(make(database, wish("k"), how=held))
    await held.entered.wait()
    undoing = asyncio.create_task(undo(database, wish("k")))
    await until_waiting(database)
    held.go.set()
    with pytest.raises(Retryable):
        await doing
    assert await undoing == {}
    assert texts(await make(database, wish("k"))) == ["UNDONE_BEFORE_ARRIVAL"]
    assert await effects(database) == []


@pytest.mark.parametrize("undo_commits", [True, False])
async def test_a_do_waits_for_an_undo_that_has_begun(database: Database, undo_commits: bool) -> None:
    barred, go = asyncio.Event(), asyncio.Event()
    do = wish("k")

    async def barring(tx: Transaction) -> None:
        assert await bar(tx, METHOD, [identity(do)], PACK) == {}
        barred.set()
        await go.wait()
        if not undo_commits:
            raise ZeroDivisionError

    undoing = asyncio.create_task(database.transact(barring))
    await barred.wait()
    doing = asyncio.create_task(make(database, do))
    await until_waiting(database)
    go.set()
    await asyncio.gather(undoing, return_exceptions=True)
    assert texts(await doing) == ["UNDONE_BEFORE_ARRIVAL" if undo_commits else do.resource_id]
    assert len(await effects(database)) == (not undo_commits)


async def test_however_a_do_and_its_undos_race_the_undo_knows_what_became_of_it(database: Database) -> None:
    fates = set()
    for n in range(60):
        do = wish(f"k{n}")
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda do=do: make(database, do),  # type: ignore[misc]
            lambda do=do: undo(database, do),  # type: ignore[misc]
            lambda do=do: undo(database, do),  # type: ignore[misc]
        ]
        first = n % 3
        results = await asyncio.gather(*(call() for call in calls[first:] + calls[:first]))
        made, *undone = (results[-first:] + results[:-first]) if first else results
        arrived = texts(made)[0] == do.resource_id  # type: ignore[arg-type]
        assert arrived or texts(made) == ["UNDONE_BEFORE_ARRIVAL"]  # type: ignore[arg-type]
        assert undone == ([{do.key: do.resource_id}] * 2 if arrived else [{}] * 2)
        assert ((do.key, "x") in await effects(database)) == arrived
        fates.add(arrived)
    assert fates == {True, False}, "the race always ended the same way: it proves nothing"
