"""Exactly once, on a real PostgreSQL: keys are claimed, replayed, refused, freed and barred, within one set, one after
another, and by transactions that really run at the same time.

The work under test makes one row per command, so that what happened can be counted.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from importlib.resources import files
from typing import Any, TypeAlias

import psycopg
import pytest
import pytest_asyncio
from google.protobuf.wrappers_pb2 import StringValue
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import errors as pg

from deploy.local.stores import EmbeddedPostgres
from services.kit import db
from services.kit.db import Database, Transaction
from services.kit.deadline import Deadline
from services.kit.errors import InProgress, Kind, Refused, Retryable
from services.kit.idempotency import bar, begin_set, claim, identity, remember, run_set
from services.kit.ids import new_id
from services.kit.rpc.stored import Pack, ResourceKey
from services.kit.sets import Answer, Command, Failed
from tests.depth import examples

METHOD = "Make"
PACK = Pack(StringValue)
POOL_SIZE = 12

Wish: TypeAlias = Command[str]
Made: TypeAlias = Answer[StringValue] | Failed


@pytest.fixture(scope="module")
def dsn(postgres: EmbeddedPostgres) -> Iterator[str]:
    name = f"kit_{os.urandom(4).hex()}"
    made = postgres.create_database(name)
    tables = files("services.kit").joinpath("migrations/0001_idempotency_and_outbox.sql").read_text()
    with psycopg.connect(made, autocommit=True) as connection:
        connection.execute(tables.encode())
        connection.execute("CREATE TABLE effects (resource_id text PRIMARY KEY, key text, body text)")
    yield made
    postgres.drop_database(name)


@pytest_asyncio.fixture
async def database(dsn: str) -> AsyncIterator[Database]:
    opened = Database(dsn, pool_size_max=POOL_SIZE)
    await opened.open()
    try:
        await opened.transact(lambda tx: tx.execute("TRUNCATE idempotency, effects"))
        yield opened
    finally:
        await opened.close()


def wish(key: str, body: str = "x", *, merchant: str = "mer_1", caller: str = "shop") -> Wish:
    """A command; `body` also says how it ends: see `work`."""
    fingerprint = hashlib.blake2b(body.encode(), digest_size=16).digest()
    return Command(merchant, caller, key, fingerprint, new_id("thing"), body, None)


async def work(tx: Transaction, fresh: list[Wish]) -> list[Made]:
    """One row per command, and what its body asks for: "refuse…", "busy…", "raise…", "clash…"."""
    outcomes: list[Made] = []
    for command in fresh:
        if command.request.startswith("refuse"):
            outcomes.append(Failed(Refused("NO", "no", facts={"key": command.key})))
            continue
        if command.request.startswith("busy"):
            outcomes.append(Failed(Retryable("BUSY", "later")))
            continue
        resource = "always the same" if command.request.startswith("clash") else command.resource_id
        await tx.execute(
            "INSERT INTO effects VALUES (%(resource)s, %(key)s, %(body)s)",
            {"resource": resource, "key": command.key, "body": command.request},
        )
        if command.request.startswith("raise"):
            raise ZeroDivisionError("a defect")
        outcomes.append(Answer(StringValue(value=command.resource_id)))
    return outcomes


async def make(database: Database, *wishes: Wish, how: Any = work, method: str = METHOD) -> list[Made]:
    """The outcomes of one set."""
    return await run_set(database, method, wishes, how, PACK, Deadline.after(10))


async def effects(database: Database) -> list[tuple[str, str]]:
    """(key, body) of all that was done, sorted."""
    return sorted((key, body) for key, body in await database.fetch("SELECT key, body FROM effects"))


async def keys(database: Database) -> dict[str, bool]:
    """The keys that are taken, and whether their answer is stored."""
    rows = await database.fetch("SELECT key, result IS NOT NULL FROM idempotency")
    return dict(rows)


def text(outcome: Made) -> str:
    """What came out, in a word: a resource id or the reason of a failure."""
    return outcome.message.value if isinstance(outcome, Answer) else outcome.error.reason


def texts(outcomes: Sequence[Made]) -> list[str]:
    return [text(outcome) for outcome in outcomes]


# --- one after another ---


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


# --- within one set ---


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


# --- work of more than one transaction ---


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
    await begin_set(database, METHOD, [first], _begin_only, PACK, Deadline.after(10))
    refusal, answer = Failed(Refused("NO", "no")), Answer(StringValue(value="too late"))
    for outcome in (refusal, answer):
        await remember_now(database, first, outcome)
    assert texts(await make(database, wish("k"))) == ["NO"]


async def test_a_key_freed_under_our_eyes_is_not_worked_on_unclaimed(database: Database) -> None:
    await begin_set(database, METHOD, [wish("k")], _begin_only, PACK, Deadline.after(10))

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


async def _begin_only(tx: Transaction, fresh: list[Wish]) -> list[Made | None]:
    return [None for _ in fresh]


# --- answers that are read back ---


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
    await begin_set(database, METHOD, [first], _begin_only, RECALLED, Deadline.after(10))
    (repeat,) = await make_recalled(database, wish("k"))
    assert isinstance(repeat, Failed)
    assert isinstance(repeat.error, InProgress)
    assert repeat.error.facts == {"resource_id": first.resource_id}
    await database.transact(lambda tx: work(tx, [first]))
    assert texts(await make_recalled(database, wish("k"))) == [first.resource_id]


async def test_a_barred_key_is_never_read_back(database: Database) -> None:
    await undo(database, wish("k"))
    assert texts(await make_recalled(database, wish("k"))) == ["UNDONE_BEFORE_ARRIVAL"]


# --- at the same time ---


class Held:
    """Work that waits in the middle of its transaction until it is let go, or made to fail."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.go = asyncio.Event()
        self.calls = 0
        self.error: Exception | None = None

    async def __call__(self, tx: Transaction, fresh: list[Wish]) -> list[Made]:
        self.calls += 1
        outcomes = await work(tx, fresh)
        self.entered.set()
        await self.go.wait()
        if self.error is not None:
            raise self.error
        return outcomes


async def until_waiting(database: Database, sessions: int = 1) -> None:
    """Wait until so many sessions wait for another transaction to end."""
    query = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event IN ('transactionid', 'SpeculativeToken')"
    )
    async with asyncio.timeout(10):
        while (await database.fetch(query))[0][0] < sessions:
            await asyncio.sleep(0.01)


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


# --- defects ---


@pytest.mark.parametrize("defect", ["raise", "clash"])
async def test_a_command_that_breaks_costs_its_neighbours_nothing(database: Database, defect: str) -> None:
    await database.transact(lambda tx: tx.execute("INSERT INTO effects VALUES ('always the same', '', '')"))
    one, culprit, two, twin = wish("a"), wish("k", defect), wish("b"), wish("a")
    outcomes = await make(database, one, culprit, two, twin)
    assert texts(outcomes) == [one.resource_id, "INTERNAL", two.resource_id, one.resource_id]
    assert isinstance(outcomes[1], Failed)
    assert outcomes[1].error.kind is Kind.BUG
    assert not outcomes[1].replayed
    assert await keys(database) == {"a": True, "b": True}
    assert await effects(database) == [("", ""), ("a", "x"), ("b", "x")]
    again = wish("k", "x")  # the defect was repaired
    assert texts(await make(database, again)) == [again.resource_id]


@pytest.mark.parametrize("defect", ["raise", "clash"])
async def test_a_command_that_breaks_alone_raises_and_frees_its_key(database: Database, defect: str) -> None:
    await database.transact(lambda tx: tx.execute("INSERT INTO effects VALUES ('always the same', '', '')"))
    with pytest.raises(ZeroDivisionError if defect == "raise" else pg.UniqueViolation):
        await make(database, wish("k", defect))
    assert await keys(database) == {}
    assert await effects(database) == [("", "")]


async def test_work_that_forgets_an_outcome_commits_nothing(database: Database) -> None:
    async def forgetful(tx: Transaction, fresh: list[Wish]) -> list[Made]:
        return (await work(tx, fresh))[:-1]

    outcomes = await make(database, wish("a"), wish("b"), how=forgetful)
    assert texts(outcomes) == ["INTERNAL", "INTERNAL"]
    assert await effects(database) == []
    assert await keys(database) == {}


async def test_what_the_whole_set_cannot_do_is_raised_for_the_whole_set(database: Database) -> None:
    async def away(tx: Transaction, fresh: list[Wish]) -> list[Made]:
        await work(tx, fresh)
        raise Retryable("BANK_AWAY", "nobody can be served")

    with pytest.raises(Retryable):
        await make(database, wish("a"), wish("b"), how=away)
    assert await effects(database) == []
    assert await keys(database) == {}


# --- the undo barrier ---


async def undo(database: Database, *wishes: Wish) -> dict[str, str]:
    """Bar the keys of `wishes`; the resource ids of those that were there first, by key."""

    async def barring(tx: Transaction) -> dict[tuple[str, str, str], str]:
        return await bar(tx, METHOD, [identity(w) for w in wishes], PACK)

    return {key: resource for (_, _, key), resource in (await database.transact(barring)).items()}


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
    await begin_set(database, METHOD, [do], _begin_only, PACK, Deadline.after(10))
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
