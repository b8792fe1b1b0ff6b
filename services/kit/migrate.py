"""Brings a database to the schema that the code expects.

A migration is a numbered SQL file that is never edited after it has been released: expand, deploy, contract. Kit's own
tables come first, then the service's. Applied files are remembered with a checksum; an edited one is an error. Several
processes may start at once: the table lock lets one of them work while the others wait and then find nothing to do.
"""

from __future__ import annotations

import hashlib
from importlib.resources import files
from importlib.resources.abc import Traversable

import psycopg

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
        # Two first starts at once can still collide on CREATE TABLE IF NOT EXISTS; the loser simply finds it there.
        try:
            await connection.execute(_BOOK)
        except (psycopg.errors.UniqueViolation, psycopg.errors.DuplicateTable):
            pass
        async with connection.transaction():
            await connection.execute("LOCK TABLE schema_migrations IN ACCESS EXCLUSIVE MODE")
            cursor = await connection.execute("SELECT name, checksum FROM schema_migrations")
            applied: dict[str, str] = dict(await cursor.fetchall())
            done = []
            for name, text in _files("services.kit") + _files(package):
                checksum = hashlib.sha256(text.encode()).hexdigest()
                if name not in applied:
                    await connection.execute(text.encode())
                    await connection.execute(
                        "INSERT INTO schema_migrations VALUES (%s, %s)", (name, checksum)
                    )
                    done.append(name)
                elif applied[name] != checksum:
                    raise MigrationEdited(
                        f"{name} was edited after it had been applied; add a new migration instead"
                    )
            return done
