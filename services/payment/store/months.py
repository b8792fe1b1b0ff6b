"""The parts that history is kept in: one for each month in which payments began."""

from __future__ import annotations

from services.kit.db import Database, Transaction
from services.kit.statements import Row


async def create_months(database: Database, ahead: int) -> int:
    """Make the parts of this month and of so many later ones that are not there. Returns for how many months from now
    on there are parts: less than `ahead` when one could not be made, -1 when that was this month's."""

    async def work(tx: Transaction) -> list[Row]:
        return await tx.fetch("SELECT create_history_months(%(ahead)s::int)", {"ahead": ahead})

    ((months,),) = await database.transact(work)
    return int(months)


async def count_elsewhere(database: Database) -> int:
    """Events that were written while the part of their month was missing, or after it had been taken away."""
    ((count,),) = await database.fetch("SELECT count(*) FROM payment_events_other")
    return int(count)
