"""Keeps the lists in memory in step with the database."""

from __future__ import annotations

import asyncio
from collections import defaultdict

from services.fraud import store
from services.fraud.domain import ListKind, Lists
from services.fraud.rules import Trait
from services.kit.db import Database


class ListReader:
    """Reads again what has changed: after every change made here, and every `seconds` for those made
    elsewhere."""

    def __init__(self, database: Database, lists: Lists, seconds: float) -> None:
        self._database = database
        self._lists = lists
        self._seconds = seconds
        self._read: dict[str, int] = {}
        self._one_at_a_time = asyncio.Lock()

    async def refresh(self) -> None:
        """Read the lists of every merchant whose version is not the one that was read."""
        async with self._one_at_a_time:
            # The versions come first: entries newer than their version are merely read once more.
            versions = await store.list_versions(self._database)
            changed = [
                merchant for merchant, version in versions.items() if self._read.get(merchant) != version
            ]
            if not changed:
                return
            entries: dict[str, list[tuple[ListKind, Trait, str]]] = defaultdict(list)
            for merchant_id, kind, trait, value in await store.list_values(self._database, changed):
                entries[merchant_id].append((kind, trait, value))
            for merchant_id in changed:
                self._lists.replace(merchant_id, entries[merchant_id])
                self._read[merchant_id] = versions[merchant_id]

    async def run(self) -> None:
        """Refresh for ever."""
        while True:
            await asyncio.sleep(self._seconds)
            await self.refresh()
