"""What says that a database was made for a benchmark, to be thrown away."""

from __future__ import annotations

from services.kit.db import Database

MARK = "made by paymesh bench, to be thrown away: "
"""How the description of such a database begins. Only its owner or an administrator can write one, which payment's role
is not."""


async def find_mark(database: Database) -> str:
    """What stands behind the mark in the description of the database; empty without one."""
    ((described,),) = await database.fetch(
        "SELECT coalesce(shobj_description(oid, 'pg_database'), '') FROM pg_database WHERE datname = current_database()"
    )
    return str(described).removeprefix(MARK) if str(described).startswith(MARK) else ""


async def has_history(database: Database, unchained: bytes) -> bool:
    """Whether anything was ever written here with its ledger entries, or with a hash other than `unchained`."""
    ((found,),) = await database.fetch(
        """
        SELECT EXISTS (SELECT FROM journal_entries)
            OR EXISTS (SELECT FROM payment_events WHERE hash IS DISTINCT FROM %(unchained)s::bytea)
        """,
        {"unchained": unchained},
    )
    return bool(found)
