"""Commands that break, and sets that fail, leave nothing behind."""

from __future__ import annotations

import pytest
from psycopg import errors as pg

from services.kit.db import Database, Transaction
from services.kit.errors import Kind, Retryable
from services.kit.sets import Failed
from tests.wishes import (
    Made,
    Wish,
    effects,
    keys,
    make,
    texts,
    wish,
    work,
)


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
