"""Who owns which saga.

Each orchestrator holds a lease on an epoch, renewed by heartbeat. Sagas carry the epoch of their owner, and every write
of a saga requires it. When a lease runs out, the other orchestrators take the sagas over, in batches with a pause in
between, without waiting for new work to wake them. An orchestrator that finds its own lease gone (it was stopped, or
cut off, for too long) forgets everything in memory, takes a new epoch and joins again as if it had just started.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Sequence

from opentelemetry.trace import Span

from services.kit import telemetry
from services.kit.db import Database, Transaction
from services.orchestrator import domain, store
from services.orchestrator.config import OrchestratorConfig
from services.orchestrator.runner import Engine, Running
from services.orchestrator.store import StoredSaga

log = logging.getLogger(__name__)

STRAY_SECONDS = 15.0
"""A saga that is older and that we own must be driven here; a start takes well under the ten seconds of its
transaction."""


class Ownership:
    """The lease of this orchestrator, and what it takes over."""

    def __init__(self, database: Database, engine: Engine, config: OrchestratorConfig) -> None:
        self._database = database
        self._engine = engine
        self._config = config
        self.epoch = 0

    async def join(self) -> None:
        """Take an epoch."""
        self.epoch = await store.insert_instance(
            self._database, socket.gethostname(), self._config.lease_seconds
        )
        log.info("owner epoch %d", self.epoch)

    async def leave(self) -> None:
        """Give the epoch back."""
        await store.delete_instance(self._database, self.epoch)

    async def keep(self) -> None:
        """Renew the lease for ever."""
        while True:
            await asyncio.sleep(self._config.heartbeat_seconds)
            if not await store.save_lease(self._database, self.epoch, self._config.lease_seconds):
                log.error("the lease of epoch %d ran out; starting over", self.epoch)
                self._engine.abandon_all()
                await self.join()

    async def take_over(self) -> None:
        """Take over orphans for ever, and find strays."""
        while True:
            taken = await self.take_over_some() + await self.find_strays()
            pause_ms = self._config.takeover_pause_ms
            await asyncio.sleep(pause_ms / 1000 if taken else self._config.heartbeat_seconds)

    async def take_over_some(self) -> int:
        """One batch of orphans. Returns how many."""
        epoch = self.epoch

        async def work(tx: Transaction) -> list[StoredSaga]:
            return await store.take_over(tx, epoch, self._config.takeover_batch_size)

        orphans = await self._database.transact(work)
        if orphans:
            log.warning("took over %d sagas", len(orphans))
        return self.drive(orphans, epoch)

    async def find_strays(self) -> int:
        """Sagas that we own and do not drive: their start was committed, but the connection broke before we knew. Those
        under way here before the look into the table are not among them, whatever they have come to since."""
        epoch, driven = self.epoch, self._engine.keys()
        owned = await store.list_owned(self._database, epoch, STRAY_SECONDS)
        driven |= self._engine.keys()
        strays = [stored for stored in owned if stored.saga.key not in driven]
        if strays:
            log.warning("found %d stray sagas", len(strays))
        return self.drive(strays, epoch)

    def drive(self, sagas: Sequence[StoredSaga], epoch: int) -> int:
        """Go on with sagas that this epoch owns. Returns how many."""
        for stored in sagas:
            try:
                self._engine.drive(_running(self._engine, stored, epoch))
            except Exception:
                # One that cannot be driven must not keep its neighbours from it; it is found again as a stray.
                log.exception("saga %s cannot be driven", stored.saga.saga_id)
        return len(sagas)


def _running(engine: Engine, stored: StoredSaga, epoch: int) -> Running:
    saga = domain.resumed(stored.saga)
    span: Span | None = telemetry.resume(
        stored.traceparent,
        f"saga {saga.kind} (taken over)",
        {"saga.id": saga.saga_id, "saga.owner_epoch": epoch},
    )
    ended = asyncio.get_running_loop().create_future()
    return Running(saga, engine.read(saga.kind, stored.input), epoch, span, ended)
