"""Keys that are wanted by transactions which really run at the same time."""

from __future__ import annotations

import asyncio

import pytest
from google.protobuf.wrappers_pb2 import StringValue
from psycopg import errors as pg

from services.kit import db
from services.kit.db import Database, Transaction
from services.kit.errors import Retryable
from services.kit.sets import Answer
from tests.wishes import (
    Held,
    Made,
    Wish,
    effects,
    make,
    text,
    texts,
    until_waiting,
    wish,
    work,
)


async def test_the_second_of_two_transactions_waits_and_replays(database: Database) -> None:
    held, first, second = Held(), wish("k"), wish("k")
    one = asyncio.create_task(make(database, first, how=held))
    await held.entered.wait()
    two = asyncio.create_task(make(database, second))
    await until_waiting(database)
    assert not two.done()
    held.go.set()
    assert await one == [Answer(StringValue(value=first.resource_id))]
    assert await two == [Answer(StringValue(value=first.resource_id), replayed=True)]
    assert await effects(database) == [("k", "x")]


async def test_the_second_does_the_work_when_the_first_rolls_back(database: Database) -> None:
    held, first, second = Held(), wish("k", "x"), wish("k", "y")
    held.error = Retryable("BUSY", "the first gives up")
    one = asyncio.create_task(make(database, first, how=held))
    await held.entered.wait()
    two = asyncio.create_task(make(database, second))
    await until_waiting(database)
    held.go.set()
    with pytest.raises(Retryable):
        await one
    assert await two == [Answer(StringValue(value=second.resource_id), replayed=False)]
    assert await effects(database) == [("k", "y")]


async def test_the_second_is_refused_when_the_first_was_another_request(database: Database) -> None:
    held = Held()
    one = asyncio.create_task(make(database, wish("k", "x"), how=held))
    await held.entered.wait()
    two = asyncio.create_task(make(database, wish("l"), wish("k", "y")))
    await until_waiting(database)
    held.go.set()
    await one
    assert texts(await two)[1] == "IDEMPOTENCY_KEY_REUSED"
    assert await effects(database) == [("k", "x"), ("l", "x")]


async def test_one_key_fifty_times_at_once_has_one_effect(database: Database) -> None:
    outcomes = await asyncio.gather(*(make(database, wish("k")) for _ in range(50)))
    answers = [outcome for (outcome,) in outcomes]
    assert len(set(texts(answers))) == 1
    assert sorted(answer.replayed for answer in answers) == [False] + [True] * 49
    assert await effects(database) == [("k", "x")]


async def test_one_key_for_fifty_different_requests_at_once_commits_one_of_them(database: Database) -> None:
    wishes = [wish("k", f"body {n}") for n in range(50)]
    outcomes = [outcome for (outcome,) in await asyncio.gather(*(make(database, w) for w in wishes))]
    winners = [n for n, outcome in enumerate(outcomes) if isinstance(outcome, Answer)]
    assert len(winners) == 1
    assert set(texts(outcomes)) == {wishes[winners[0]].resource_id, "IDEMPOTENCY_KEY_REUSED"}
    assert await effects(database) == [("k", f"body {winners[0]}")]


async def test_sets_that_share_keys_in_any_order_get_one_answer_each(database: Database) -> None:
    names = [f"k{n}" for n in range(20)]
    orders = [names, names[::-1], names[10:] + names[:10], sorted(names, key=hash)]
    sets = [make(database, *(wish(name) for name in order)) for order in orders * 3]
    answers: dict[str, set[str]] = {name: set() for name in names}
    for order, outcomes in zip(orders * 3, await asyncio.gather(*sets), strict=True):
        for name, outcome in zip(order, outcomes, strict=True):
            answers[name].add(text(outcome))
    assert all(len(answer) == 1 for answer in answers.values())
    assert await effects(database) == sorted((name, "x") for name in names)


async def test_sets_that_share_keys_in_opposite_orders_do_not_deadlock(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(db, "ATTEMPTS_MAX", 1)  # a deadlock would be tried again, and not be seen
    held = Held()
    middle = asyncio.create_task(make(database, wish("m"), how=held))
    await held.entered.wait()
    # Both stop in the middle. Whoever holds what the other one asks for behind it would be stuck.
    forth = asyncio.create_task(make(database, wish("a"), wish("m"), wish("z")))
    back = asyncio.create_task(make(database, wish("z"), wish("m"), wish("a")))
    await until_waiting(database, 2)
    held.go.set()
    outcomes = await asyncio.gather(middle, forth, back)
    assert texts(outcomes[1]) == texts(outcomes[2])[::-1]
    assert await effects(database) == [("a", "x"), ("m", "x"), ("z", "x")]


async def test_a_transaction_that_is_tried_again_has_its_effect_once(database: Database) -> None:
    attempts = 0

    async def loses_once(tx: Transaction, fresh: list[Wish]) -> list[Made]:
        nonlocal attempts
        attempts += 1
        outcomes = await work(tx, fresh)
        if attempts == 1:
            raise pg.SerializationFailure("lost")
        return outcomes

    first = wish("k")
    assert texts(await make(database, first, wish("l"), how=loses_once))[0] == first.resource_id
    assert attempts == 2
    assert await effects(database) == [("k", "x"), ("l", "x")]
