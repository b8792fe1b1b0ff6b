"""`paymesh events`: who is how far, what is parked, and having it tried again; on a database as a listener leaves
it."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator

import psycopg
import pytest
from typer.testing import CliRunner

from deploy.local.events import commands
from deploy.local.stores import EmbeddedPostgres
from tests.events import prepare_database

ROWS = """
INSERT INTO inbox (listener, source, position) VALUES ('shipping', 'inventory', 3);
UPDATE event_log SET position = 5;
INSERT INTO events_set_aside
SELECT 'mer_1', 'shipping', 'inventory', position, 'saga_1', 'paymesh.choreography.v1.StepDone', '', '', now(), tries,
       'INTERNAL', 'a defect', now(), parked_at
FROM (VALUES (2, 12, now()), (3, 0, NULL)) AS one (position, tries, parked_at);
"""


@pytest.fixture
def dsn(postgres: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    name = f"events_{os.urandom(4).hex()}"
    made = postgres.create_database(name)
    asyncio.run(prepare_database(made))
    with psycopg.connect(made, autocommit=True) as connection:
        connection.execute(ROWS.encode())
    for variable in [name for name in os.environ if name.startswith("PAYMESH_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("PAYMESH_INVENTORY_DATABASE_DSN", made)
    yield made
    postgres.drop_database(name)


def run(*arguments: str) -> str:
    """What the command prints."""
    result = CliRunner().invoke(commands, [*arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_lag_says_how_far_each_listener_is(dsn: str) -> None:
    assert json.loads(run("lag", "--json")) == [
        {
            "listener": "shipping",
            "source": "inventory",
            "applied": 3,
            "behind": 2,
            "set aside": 2,
            "parked": 1,
        }
    ]
    assert "shipping" in run("lag")


def test_a_parked_event_is_shown_with_its_reason_and_tried_again_once_asked_for(dsn: str) -> None:
    (shown,) = json.loads(run("parked", "--json"))
    assert (shown["position"], shown["about"], shown["event"], shown["tries"]) == (
        2,
        "saga_1",
        "StepDone",
        12,
    )
    assert shown["waiting behind"] == 1
    assert shown["why"] == "INTERNAL: a defect"
    assert run("retry", "inventory", "4") == "0 events will be tried again\n"
    assert run("retry", "inventory", "2") == "1 event will be tried again\n"
    assert run("parked") == "no event waits for a person\n"
    with psycopg.connect(dsn) as connection:
        rows = connection.execute(
            "SELECT position, tries, parked_at FROM events_set_aside ORDER BY 1"
        ).fetchall()
    assert rows == [(2, 0, None), (3, 0, None)]


def test_retry_wants_to_be_told_what(dsn: str) -> None:
    for arguments in (["retry"], ["retry", "inventory", "--all"]):
        result = CliRunner().invoke(commands, arguments)
        assert result.exit_code == 2
    assert run("retry", "--all") == "1 event will be tried again\n"
