"""The schema stays one that a sharded PostgreSQL can take: Citus and YugabyteDB at once, CockroachDB with little work.

Two rules, read from the migrations themselves: the merchant, who is the shard, leads every primary and unique key;
and nothing is used that only a single server can give.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlglot
from sqlglot import Tokenizer, TokenType, exp

from tests.verify.repository import ROOT, name_of

SHARD_KEY = "merchant_id"
MIGRATIONS = sorted(
    path
    for top in ("services", "sandbox")
    for path in (ROOT / top).rglob("migrations/*.sql")
    if path.is_file()
)

# Tables whose keys another column may lead, each with its reason: (folder, table).
NOT_SHARDED: dict[tuple[str, str], str] = {
    ("services/kit", "event_log"): "one row: how far the relay of a database is",
    ("services/kit", "event_batches"): "the order of events of all merchants, a row for hundreds of them",
    ("services/kit", "inbox"): "a row per listener and source",
    (
        "services/orchestrator",
        "instances",
    ): "the leases of processes: a handful of rows that belong to no merchant",
    (
        "services/payment",
        "event_checkpoints",
    ): "a row a minute at most, each over events of all merchants",
}

# Words in a row, as they stand in a statement.
SINGLE_SERVER_ONLY = {
    "a transaction stays within one service: no two-phase commit": r"PREPARE TRANSACTION",
    "an advisory lock is known to one server only": r"PG_(?:TRY_)?ADVISORY_\w+",
    "constraints are checked at once": r"DEFERRABLE|INITIALLY DEFERRED|SET CONSTRAINTS",
    "no domains: use a CHECK": r"CREATE DOMAIN",
    "no range types: use two columns": r"(?:INT4|INT8|NUM|TS|TSTZ|DATE)(?:MULTI)?RANGE|CREATE TYPE (?:\S+ )+?AS RANGE",
    "no exclusion constraints: they need one server and ranges": r"EXCLUDE USING",
    "notifications do not cross servers": r"LISTEN|UNLISTEN|NOTIFY|PG_NOTIFY",
}


def statements(sql: str) -> Iterator[str]:
    """Upper-cased words of each statement; comments and strings are left out, function bodies are not."""
    words: list[str] = []
    after_command = False
    for token in sqlglot.tokenize(sql, read="postgres"):
        if token.token_type is TokenType.HEREDOC_STRING:
            yield from statements(token.text)
        elif after_command and token.token_type is TokenType.STRING:
            # The tokenizer hands the rest of a statement that it does not know over as one string.
            words.extend(re.findall(r"\w+", token.text.upper()))
        elif token.token_type is TokenType.SEMICOLON:
            yield " ".join(words)
            words = []
        elif token.token_type not in {TokenType.STRING, TokenType.NATIONAL_STRING, TokenType.IDENTIFIER}:
            words.append(token.text.upper())
        after_command = token.token_type in Tokenizer.COMMANDS
    yield " ".join(words)


def unportable(sql: str) -> list[str]:
    """Reasons why not every server takes this SQL."""
    return [
        f"{reason} ({found.group()})"
        for words in statements(sql)
        for reason, pattern in SINGLE_SERVER_ONLY.items()
        for found in re.finditer(rf"(?<!\S)(?:{pattern})(?!\S)", words)
    ]


def unique_keys(sql: str) -> list[tuple[str, str]]:
    """(table, leading column) of every primary key, unique constraint and unique index."""
    keys: list[tuple[str, str]] = []
    for statement in sqlglot.parse(sql, read="postgres"):
        if statement is None:
            continue
        if isinstance(statement, exp.Command):
            # sqlglot keeps as text what it cannot parse: triggers, grants. None of them may make a key.
            assert not re.search(r"\b(PRIMARY KEY|UNIQUE)\b", statement.sql(), re.IGNORECASE), statement.sql()
            continue
        table = statement.find(exp.Table)
        name = table.name if table is not None else ""
        keys += [
            (name, column.name)
            for column in statement.find_all(exp.ColumnDef)
            if column.find(exp.PrimaryKeyColumnConstraint, exp.UniqueColumnConstraint)
        ]
        keys += [
            (name, _leading(constraint))
            for constraint in statement.find_all(exp.PrimaryKey, exp.UniqueColumnConstraint)
            if constraint.find_ancestor(exp.ColumnDef) is None
        ]
        if isinstance(statement, exp.Create) and statement.kind == "INDEX" and statement.args.get("unique"):
            parameters = statement.find(exp.IndexParameters)
            assert parameters is not None
            keys.append((name, parameters.args["columns"][0].this.name))
    return keys


def _leading(constraint: exp.Expression) -> str:
    columns = constraint.expressions or constraint.this.expressions
    first: str = columns[0].name
    return first


def _folder(path: Path) -> str:
    return name_of(path.parent.parent)


@pytest.mark.parametrize("path", MIGRATIONS, ids=name_of)
def test_a_migration_is_portable(path: Path) -> None:
    assert unportable(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", MIGRATIONS, ids=name_of)
def test_the_merchant_leads_every_unique_key(path: Path) -> None:
    others = [
        (table, column)
        for table, column in unique_keys(path.read_text(encoding="utf-8"))
        if column != SHARD_KEY and (_folder(path), table) not in NOT_SHARDED
    ]
    assert others == []


def test_every_exception_is_still_needed() -> None:
    found = {
        (_folder(path), table)
        for path in MIGRATIONS
        for table, column in unique_keys(path.read_text(encoding="utf-8"))
        if column != SHARD_KEY
    }
    assert NOT_SHARDED.keys() - found == set()


def test_every_way_to_make_a_key_is_seen() -> None:
    sql = """
    CREATE TABLE a (merchant_id text, x int PRIMARY KEY, y int UNIQUE);
    CREATE TABLE b (
        x int, y int, PRIMARY KEY (x, y), UNIQUE (y), CONSTRAINT c UNIQUE (merchant_id, x)
    ) WITH (fillfactor = 50);
    CREATE UNIQUE INDEX d ON e (x, y) WHERE x > 0;
    CREATE INDEX f ON e (y);
    ALTER TABLE g ADD CONSTRAINT h UNIQUE (x);
    ALTER TABLE i ADD PRIMARY KEY (y);
    """
    assert sorted(unique_keys(sql)) == [
        ("a", "x"),
        ("a", "y"),
        ("b", "merchant_id"),
        ("b", "x"),
        ("b", "y"),
        ("e", "x"),
        ("g", "x"),
        ("i", "y"),
    ]


@pytest.mark.parametrize(
    "sql",
    [
        "PREPARE TRANSACTION 'x'",
        "SELECT pg_advisory_xact_lock(1)",
        "SELECT pg_try_advisory_lock(1)",
        "CREATE TABLE t (x int REFERENCES u DEFERRABLE INITIALLY DEFERRED)",
        "CREATE DOMAIN d AS text",
        "CREATE TABLE t (x tstzrange NOT NULL)",
        "CREATE TYPE r AS RANGE (subtype = float8)",
        "CREATE TYPE s.r AS RANGE (subtype = float8)",
        "CREATE FUNCTION f() RETURNS void LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_notify('a', 'b'); END $$",
        "CREATE FUNCTION f() RETURNS void LANGUAGE plpgsql AS $body$ BEGIN NOTIFY a; END $body$",
        "LISTEN a",
    ],
)
def test_what_is_not_portable_is_seen(sql: str) -> None:
    assert unportable(sql)
    assert not unportable(f"-- {sql}\nSELECT 1")
