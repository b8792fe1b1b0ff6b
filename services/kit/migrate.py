"""Brings a database to the schema that the code expects.

A migration is a numbered SQL file that is never edited after it has been released: expand, deploy, contract. Kit's own
tables come first, then the service's. Applied files are remembered with a checksum; an edited one is an error. Several
processes may start at once: the table lock lets one of them work while the others wait and then find nothing to do.
Where nothing is missing nothing is locked, and a role that may only read the book of migrations is enough.

The role that a service works under need not own its tables. `grant` then lets it do what services do, which for
history, a table with the trigger `history_is_kept`, is to read and to append.
"""

from __future__ import annotations

import hashlib
from importlib.resources import files
from importlib.resources.abc import Traversable

import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

HISTORY_TRIGGER = "history_is_kept"
"""A table with this trigger is written once."""

_BOOK = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    name       text        PRIMARY KEY,
    checksum   text        NOT NULL,
    applied_at timestamptz NOT NULL DEFAULT now()
)
"""


class MigrationEdited(Exception):
    """A released migration no longer has the text that was applied."""


def _files(package: str) -> list[tuple[str, str]]:
    """The (name, text) of a package's migrations, in order; the name is prefixed by the package."""
    folder: Traversable = files(package).joinpath("migrations")
    names = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".sql"))
    return [(f"{package}/{name}", folder.joinpath(name).read_text("utf-8")) for name in names]


async def migrate(dsn: str, package: str) -> list[str]:
    """Apply what is missing, all in one transaction, and return the names applied. `package` is for example
    "services.payment". Raises MigrationEdited."""
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
        if not await _missing(connection, package):
            return []
        # Two first starts at once can still collide on CREATE TABLE IF NOT EXISTS; the loser simply finds it there.
        try:
            await connection.execute(_BOOK)
        except (
            psycopg.errors.UniqueViolation,
            psycopg.errors.DuplicateTable,
            psycopg.errors.DuplicateObject,
        ):
            pass
        async with connection.transaction():
            await connection.execute("LOCK TABLE schema_migrations IN ACCESS EXCLUSIVE MODE")
            missing = await _missing(connection, package)
            for name, text in missing:
                await connection.execute(text.encode())
                await connection.execute(
                    "INSERT INTO schema_migrations VALUES (%s, %s)", (name, _checksum(text))
                )
            return [name for name, _ in missing]


async def grant(owner_dsn: str, dsn: str) -> None:
    """Let the role of `dsn` work with the tables of the role of `owner_dsn`. Repeating it changes nothing."""
    role = sql.Identifier(str(conninfo_to_dict(dsn)["user"]))
    async with await psycopg.AsyncConnection.connect(owner_dsn) as connection:
        # One at a time: two who grant the same at once would stumble over each other.
        await connection.execute("LOCK TABLE schema_migrations IN ACCESS EXCLUSIVE MODE")
        cursor = await connection.execute(
            """
            SELECT c.relname, EXISTS (
                SELECT FROM pg_trigger AS t WHERE t.tgrelid = c.oid AND t.tgname = %s
            ) FROM pg_class AS c
            WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind IN ('r', 'p')
              AND pg_has_role(c.relowner, 'USAGE')
            """,
            (HISTORY_TRIGGER,),
        )
        for name, history in await cursor.fetchall():
            allowed = "GRANT SELECT, INSERT, UPDATE, DELETE ON {} TO {}"
            if history:
                allowed = "GRANT SELECT, INSERT ON {} TO {}"
            if name == "schema_migrations":
                allowed = "GRANT SELECT ON {} TO {}"
            for statement in (sql.SQL("REVOKE ALL ON {} FROM {}"), sql.SQL(allowed)):
                await connection.execute(statement.format(sql.Identifier(name), role))
        await connection.execute(sql.SQL("GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {}").format(role))


async def _missing(connection: psycopg.AsyncConnection, package: str) -> list[tuple[str, str]]:
    """The (name, text) of migrations that were not applied yet. Raises MigrationEdited."""
    cursor = await connection.execute("SELECT to_regclass('schema_migrations') IS NOT NULL")
    row = await cursor.fetchone()
    applied: dict[str, str] = {}
    if row is not None and row[0]:
        cursor = await connection.execute("SELECT name, checksum FROM schema_migrations")
        applied = dict(await cursor.fetchall())
    files = _files("services.kit") + _files(package)
    for name, text in files:
        if applied.get(name, _checksum(text)) != _checksum(text):
            raise MigrationEdited(f"{name} was edited after it had been applied; add a new migration instead")
    return [(name, text) for name, text in files if name not in applied]


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
