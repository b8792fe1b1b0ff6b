"""Runs, one after the other for each merchant: items are copied from payment first, then a thread does the rest."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial

from services.reconciler.copying import ItemCopy
from services.reconciler.domain.rules import Rules
from services.reconciler.domain.statement import Read
from services.reconciler.reconciliation import Job, Keep, Report, Tell, reconcile
from services.reconciler.store.connection import Stop


class Runs:
    """Carries jobs out. `keep` writes down what one has found, in its transaction."""

    def __init__(self, dsn: str, copy: ItemCopy, rules: Rules, read: Read, keep: Keep) -> None:
        self._dsn = dsn
        self._copy = copy
        self._rules = rules
        self._read = read
        self._keep = keep

    async def run(self, job: Job, tell: Tell) -> Report:
        """Copy items, import, match, look for differences. Raises what `reconcile` raises, and what payment says when
        it does not give its items. When it is cancelled nothing of it stays but the items."""
        copied = await self._copy.copy(job.merchant_id, lambda done: tell("copying items", done, 0, ""))
        stop = Stop()
        job = replace(job, items_copied=copied)
        work = partial(reconcile, self._dsn, job, self._rules, self._read, tell, stop, self._keep)
        thread = asyncio.ensure_future(asyncio.to_thread(work))
        try:
            return await asyncio.shield(thread)
        except asyncio.CancelledError:
            await asyncio.to_thread(stop.ask)
            await asyncio.wait([thread])
            if not thread.cancelled():
                thread.exception()
            raise
