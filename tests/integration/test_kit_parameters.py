"""PostgreSQL reads every parameter as it was meant: whatever goes in as a list comes out as rows, to the letter."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deploy.local.stores import EmbeddedPostgres
from services.kit.db import Database
from tests.depth import examples

WRITABLE = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]))
"""What PostgreSQL can store."""
TRAPS = st.sampled_from(
    ["", "NULL", "null", "{}", "{a,b}", '"', "\\", '\\"', '","', " ", ",", "a,b", "\n", "\\\\x00"]
)
LISTS: dict[str, st.SearchStrategy[list[Any]]] = {
    "text": st.lists(WRITABLE | TRAPS),
    "text with nulls": st.lists(WRITABLE | TRAPS | st.none()),
    "bigint": st.lists(st.integers(-(2**63), 2**63 - 1)),
    "bigint with nulls": st.lists(st.integers(-(2**63), 2**63 - 1) | st.none()),
    "float8": st.lists(st.floats(allow_nan=False)),
    "bytea": st.lists(st.binary()),
    "bytea with nulls": st.lists(st.binary() | st.none()),
    "boolean": st.lists(st.booleans()),
    "date": st.lists(st.dates()),
}


@pytest.fixture(scope="module")
def dsn(postgres: EmbeddedPostgres) -> Iterator[str]:
    name = f"kit_{os.urandom(4).hex()}"
    yield postgres.create_database(name)
    postgres.drop_database(name)


@pytest_asyncio.fixture
async def database(dsn: str) -> AsyncIterator[Database]:
    opened = Database(dsn, pool_size_max=2)
    await opened.open()
    yield opened
    await opened.close()


@pytest.mark.parametrize("kind", LISTS)
@settings(
    max_examples=examples(50, 150), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
async def test_a_list_comes_out_as_it_went_in(database: Database, kind: str, data: st.DataObject) -> None:
    values = data.draw(LISTS[kind])
    type_ = kind.split(maxsplit=1)[0]
    rows = await database.fetch(
        f"SELECT value FROM unnest(%(values)s::{type_}[]) WITH ORDINALITY AS v (value, place) ORDER BY place",
        {"values": values},
    )
    assert [value for (value,) in rows] == values


@settings(
    max_examples=examples(50, 150), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(value=WRITABLE | TRAPS | st.none())
async def test_a_text_comes_out_as_it_went_in(database: Database, value: str | None) -> None:
    assert await database.fetch("SELECT %(value)s::text", {"value": value}) == [(value,)]
