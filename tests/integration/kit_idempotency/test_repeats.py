"""Keys are claimed, replayed, refused and freed: one call after another, within one set, by work of more than one
transaction, and where answers are read back."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from google.protobuf.wrappers_pb2 import StringValue
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.kit.db import Database, Transaction
from services.kit.deadline import Deadline
from services.kit.errors import InProgress, Kind, Refused
from services.kit.idempotency import begin_set, claim, identity, remember, run_set
from services.kit.rpc.stored import Pack, ResourceKey
from services.kit.sets import Answer, Failed
from tests.depth import examples
from tests.wishes import (
    METHOD,
    PACK,
    Made,
    Wish,
    begin_only,
    effects,
    keys,
    make,
    text,
    texts,
    undo,
    wish,
    work,
)


async def test_a_repeat_gets_the_answer_of_the_first_call(database: Database) -> None:
    first, again = wish("k"), wish("k")
    (answer,) = await make(database, first)
    (replay,) = await make(database, again)
    assert answer == Answer(StringValue(value=first.resource_id), replayed=False)
    assert replay == Answer(StringValue(value=first.resource_id), replayed=True)
    assert await effects(database) == [("k", "x")]


async def test_a_refusal_is_an_answer_too(database: Database) -> None:
    (refusal,) = await make(database, wish("k", "refuse"))
    (replay,) = await make(database, wish("k", "refuse"))
    assert isinstance(refusal, Failed)
    assert isinstance(replay, Failed)
    assert (refusal.replayed, replay.replayed) == (False, True)
    assert replay.error.kind is Kind.REFUSED
    assert replay.error.facts == {"key": "k"}
    assert await keys(database) == {"k": True}


async def test_a_key_used_for_another_request_is_refused_and_changes_nothing(database: Database) -> None:
    await make(database, wish("k", "x"))
    assert texts(await make(database, wish("k", "y"))) == ["IDEMPOTENCY_KEY_REUSED"]
    assert await effects(database) == [("k", "x")]


async def test_a_failure_that_may_pass_frees_the_key(database: Database) -> None:
    assert texts(await make(database, wish("a"), wish("k", "busy"))) != ["BUSY", "BUSY"]
    assert await keys(database) == {"a": True}
    again = wish("k", "x")  # even for another request: the first one never was
    assert texts(await make(database, again)) == [again.resource_id]


@pytest.mark.parametrize(
    "other",
    [
        {"merchant": "mer_2"},
        {"caller": "edge"},
    ],
)
async def test_a_key_is_unique_for_its_merchant_and_caller_only(
    database: Database, other: dict[str, str]
) -> None:
    one, two = wish("k", "x"), wish("k", "y", **other)
    assert texts(await make(database, one, two)) == [one.resource_id, two.resource_id]
    repeats = [wish("k", "y", **other), wish("k", "x")]
    assert texts(await make(database, *repeats)) == [two.resource_id, one.resource_id]


async def test_a_key_is_unique_for_its_method_only(database: Database) -> None:
    one, two = wish("k", "x"), wish("k", "y")
    assert texts(await make(database, one)) == [one.resource_id]
    assert texts(await make(database, two, method="Unmake")) == [two.resource_id]
    assert texts(await make(database, wish("k", "x"))) == [one.resource_id]
    assert texts(await make(database, wish("k", "y"), method="Unmake")) == [two.resource_id]


async def test_the_same_key_twice_in_one_set_has_one_effect_and_two_equal_answers(database: Database) -> None:
    first = wish("k")
    outcomes = await make(database, first, wish("k"), wish("l"), wish("k"))
    assert texts(outcomes)[0] == texts(outcomes)[1] == texts(outcomes)[3] == first.resource_id
    assert [outcome.replayed for outcome in outcomes] == [False, True, False, True]
    assert await effects(database) == [("k", "x"), ("l", "x")]


async def test_the_same_key_for_two_requests_in_one_set_goes_to_the_first(database: Database) -> None:
    first = wish("k", "x")
    outcomes = await make(database, first, wish("k", "y"), wish("k", "x"))
    assert texts(outcomes) == [first.resource_id, "IDEMPOTENCY_KEY_REUSED", first.resource_id]
    assert await effects(database) == [("k", "x")]


async def test_a_repeat_of_the_stored_request_is_legal_whatever_its_neighbours_ask(
    database: Database,
) -> None:
    stored = wish("k", "x")
    await make(database, stored)
    expected = {"x": stored.resource_id, "y": "IDEMPOTENCY_KEY_REUSED"}
    for bodies in ("yx", "xy", "yyx", "xyx"):
        outcomes = await make(database, *(wish("k", body) for body in bodies))
        assert texts(outcomes) == [expected[body] for body in bodies]
        assert all(outcome.replayed for outcome in outcomes if isinstance(outcome, Answer))
    assert await effects(database) == [("k", "x")]


async def test_a_set_of_old_and_new_is_answered_in_its_own_order(database: Database) -> None:
    old = [wish(f"old{n}") for n in range(3)]
    await make(database, *old)
    new = [wish(f"new{n}", "refuse" if n == 1 else "x") for n in range(3)]
    mixed = [new[2], wish("old1"), new[1], wish("old0"), new[0], wish("old2", "y")]
    assert texts(await make(database, *mixed)) == [
        new[2].resource_id, old[1].resource_id, "NO", old[0].resource_id, new[0].resource_id, "IDEMPOTENCY_KEY_REUSED",
    ]  # fmt: skip


@settings(
    deadline=None,
    max_examples=examples(20, 40),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    rounds=st.lists(
        st.lists(
            st.tuples(st.sampled_from("abc"), st.sampled_from(["x", "y", "refuse", "busy"])), max_size=6
        ),
        max_size=6,
    )
)
def test_any_history_of_sets_agrees_with_a_model(dsn: str, rounds: list[list[tuple[str, str]]]) -> None:
    async def scenario() -> None:
        database = Database(dsn, pool_size_max=4)
        await database.open()
        try:
            await database.transact(lambda tx: tx.execute("TRUNCATE idempotency, effects"))
            stored: dict[str, tuple[str, str]] = {}
            for bodies in rounds:
                wishes = [wish(key, body) for key, body in bodies]
                outcomes = await make(database, *wishes) if wishes else []
                in_set: dict[str, tuple[str, str]] = {}
                for command, outcome in zip(wishes, outcomes, strict=True):
                    known = stored.get(command.key) or in_set.get(command.key)
                    fate = {"refuse": "NO", "busy": "BUSY"}.get(command.request, command.resource_id)
                    body, expected = known or in_set.setdefault(command.key, (command.request, fate))
                    assert text(outcome) == (
                        expected if body == command.request else "IDEMPOTENCY_KEY_REUSED"
                    )
                stored |= {key: entry for key, entry in in_set.items() if entry[1] != "BUSY"}
            assert await effects(database) == sorted((k, b) for k, (b, _) in stored.items() if b in "xy")
            assert await keys(database) == dict.fromkeys(stored, True)
        finally:
            await database.close()

    asyncio.run(scenario())


async def test_a_repeat_of_work_under_way_is_told_so(database: Database) -> None:
    async def begin(tx: Transaction, fresh: list[Wish]) -> list[Made | None]:
        return [None for _ in fresh]

    first = wish("k")
    begun = await begin_set(database, METHOD, [first, wish("k")], begin, PACK, Deadline.after(10))
    assert begun == [None, None]
    assert await keys(database) == {"k": False}
    (repeat,) = await make(database, wish("k"))
    assert isinstance(repeat, Failed)
    assert isinstance(repeat.error, InProgress)
    assert repeat.error.facts == {"resource_id": first.resource_id}
    assert repeat.error.retry_after_ms
    assert texts(await make(database, wish("k", "y"))) == ["IDEMPOTENCY_KEY_REUSED"]

    answer = Answer(StringValue(value=first.resource_id))
    await remember_now(database, first, answer)
    assert await make(database, wish("k")) == [Answer(answer.message, replayed=True)]
    assert await effects(database) == []


async def test_a_repeat_gets_its_answer_whatever_the_work_makes_of_it_now(database: Database) -> None:
    async def closed(tx: Transaction, fresh: list[Wish]) -> list[Made]:
        raise Refused("SHOP_CLOSED", "closed")

    async def breaks_on_a_repeat(tx: Transaction, fresh: list[Wish]) -> list[Made]:
        await tx.execute("INSERT INTO effects VALUES ('always the same', '', '')")
        return await work(tx, fresh)

    (made,) = await make(database, wish("k"), how=breaks_on_a_repeat)
    assert isinstance(made, Answer)
    for how in (closed, breaks_on_a_repeat):
        assert await make(database, wish("k"), how=how) == [Answer(made.message, replayed=True)]
    assert len(await effects(database)) == 2


async def remember_now(database: Database, command: Wish, outcome: Made) -> None:
    async def remembering(tx: Transaction) -> None:
        remember(tx, METHOD, [(identity(command), outcome)], PACK)

    await database.transact(remembering)


async def test_an_answer_that_stands_is_never_overwritten(database: Database) -> None:
    first = wish("k")
    await begin_set(database, METHOD, [first], begin_only, PACK, Deadline.after(10))
    refusal, answer = Failed(Refused("NO", "no")), Answer(StringValue(value="too late"))
    for outcome in (refusal, answer):
        await remember_now(database, first, outcome)
    assert texts(await make(database, wish("k"))) == ["NO"]


async def test_a_key_freed_under_our_eyes_is_not_worked_on_unclaimed(database: Database) -> None:
    await begin_set(database, METHOD, [wish("k")], begin_only, PACK, Deadline.after(10))

    class Eyes:
        """A connection beside which the claimed key disappears before it can be looked at."""

        def __init__(self, tx: Transaction) -> None:
            self._tx = tx

        def later(self, sql: str, params: Any) -> Any:
            return self._tx.later(sql, params)

        async def fetch(self, sql: str, params: Any) -> Any:
            assert "JOIN idempotency" in sql
            await database.transact(lambda tx: tx.execute("DELETE FROM idempotency"))
            return await self._tx.fetch(sql, params)

    async def claiming(tx: Transaction) -> Any:
        return await claim(Eyes(tx), METHOD, [wish("k"), wish("l")], PACK)  # type: ignore[arg-type]

    claims = await database.transact(claiming)
    assert [command.key for command in claims.fresh] == ["l"]
    assert text(claims.settled[0]) == "IN_PROGRESS"
    assert list(claims.settled) == [0]


async def recall(tx: Transaction, resources: Sequence[ResourceKey]) -> dict[ResourceKey, StringValue]:
    """The answer of a call as its effect tells it."""
    ids = [resource for _, resource in resources]
    rows = await tx.fetch("SELECT resource_id FROM effects WHERE resource_id = ANY(%(ids)s)", {"ids": ids})
    return {("mer_1", resource): StringValue(value=resource) for (resource,) in rows}


RECALLED = Pack(StringValue, recall)


async def make_recalled(database: Database, *wishes: Wish) -> list[Made]:
    return await run_set(database, METHOD, wishes, work, RECALLED, Deadline.after(10))


async def test_an_answer_that_can_be_read_back_replays_without_being_stored(database: Database) -> None:
    old = [wish("a"), wish("b")]
    assert texts(await make_recalled(database, *old)) == [w.resource_id for w in old]
    assert await keys(database) == {"a": False, "b": False}
    new = wish("c")
    outcomes = await make_recalled(database, wish("b"), new, wish("a"), wish("b", "y"), wish("c"))
    assert texts(outcomes) == [
        old[1].resource_id,
        new.resource_id,
        old[0].resource_id,
        "IDEMPOTENCY_KEY_REUSED",
        new.resource_id,
    ]
    assert [o.replayed for o in outcomes if isinstance(o, Answer)] == [True, False, True, True]
    assert await effects(database) == [("a", "x"), ("b", "x"), ("c", "x")]


async def test_a_refusal_is_stored_even_where_answers_are_read_back(database: Database) -> None:
    assert texts(await make_recalled(database, wish("k", "refuse"), wish("b", "busy"))) == ["NO", "BUSY"]
    assert await keys(database) == {"k": True}
    (replay,) = await make_recalled(database, wish("k", "refuse"))
    assert (text(replay), replay.replayed) == ("NO", True)


async def test_what_cannot_be_read_back_yet_is_under_way(database: Database) -> None:
    first = wish("k")
    await begin_set(database, METHOD, [first], begin_only, RECALLED, Deadline.after(10))
    (repeat,) = await make_recalled(database, wish("k"))
    assert isinstance(repeat, Failed)
    assert isinstance(repeat.error, InProgress)
    assert repeat.error.facts == {"resource_id": first.resource_id}
    await database.transact(lambda tx: work(tx, [first]))
    assert texts(await make_recalled(database, wish("k"))) == [first.resource_id]


async def test_a_barred_key_is_never_read_back(database: Database) -> None:
    await undo(database, wish("k"))
    assert texts(await make_recalled(database, wish("k"))) == ["UNDONE_BEFORE_ARRIVAL"]
