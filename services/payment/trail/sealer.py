"""The sealer: seals what is not sealed yet, off the hot path.

*What is sealed when.* Events are sealed in the order of time. An event bears the time at which its transaction began,
so an older one may become visible after a younger one; but no transaction is left that began before the horizon
(`store.find_horizon`), so what lies before it is complete. Should one turn up there nevertheless, because the server's
clock was set back, it is found by counting, and sealed late, in the next checkpoint. What was sealed is never touched.

*Who seals.* Every payment process tries. A checkpoint is a file that only one can make (`folder`); whoever comes second
reads what the first has sealed and goes on from there. No lease is needed.

*Killed.* The file is made first and then put on record in the database. A file that is not on record is read, checked
and put on record by the next round. A checkpoint that is on record and has no file was taken away: then nothing more is
sealed, since a chain that goes on as if nothing had happened would hide it.
"""

from __future__ import annotations

import asyncio
import logging
import random
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from prometheus_client import Counter, Gauge

from services.kit.clock import now_ms
from services.kit.db import Database
from services.kit.errors import PaymeshError
from services.payment import store
from services.payment.config import PaymentConfig
from services.payment.domain import PaymentKey
from services.payment.store.checkpoints import BEGINNING, Place, Unsealed
from services.payment.trail.checkpoint import (
    ENTRIES_MAX,
    Entry,
    Header,
    NoCheckpoint,
    faults_of,
    key_id_of,
    make,
    read_header,
    read_private_key,
)
from services.payment.trail.folder import CheckpointFolder, NumberTaken

log = logging.getLogger(__name__)

FETCH_EVENTS = 1_000
"""Events that are read at once: some milliseconds of the event loop, which callers share."""
LOOK_BACK_SECONDS = 10.0
"""How far behind what is sealed each round looks for events that came late."""
REMEMBERED_MAX = 200_000
"""Sealed events that a start reads back, to tell late ones from them: some 50 MB for a moment. Where there were more
within the time to look back, it looks back less far."""

SEALED = Counter("paymesh_payment_sealed_events_total", "Events that this process has sealed.")
SEAL_FAILURES = Counter("paymesh_payment_seal_failures_total", "Rounds of the sealer that failed.")
UNSEALED_SECONDS = Gauge(
    "paymesh_payment_unsealed_seconds_max", "How old the oldest event is that is in no checkpoint."
)


class TrailBroken(Exception):
    """The checkpoints are not those that were made; a person has to look."""


class Sealer:
    """One loop per process."""

    def __init__(
        self, database: Database, folder: Path, key: Ed25519PrivateKey, config: PaymentConfig
    ) -> None:
        self._database = database
        self._folder = CheckpointFolder(folder)
        self._key = key
        self._keys = {key_id_of(key.public_key()): key.public_key()}
        self._pause_seconds = config.seal_seconds
        self._settle_seconds = config.seal_settle_seconds
        self._look_back_us = int(config.seal_look_back_seconds * 1_000_000)
        self._last: Header | None = None
        self._remembered: set[Place] = set()
        self._begun = False

    @property
    def _through(self) -> Place:
        return self._last.through if self._last else BEGINNING

    async def run(self) -> None:
        """Seal for ever."""
        while True:
            # Not all processes at the same moment: they would do the same work, and one of them in vain.
            await asyncio.sleep(self._pause_seconds * random.uniform(0.5, 1.5))  # noqa: S311 - jitter
            try:
                await self.seal_all()
            except (TrailBroken, NoCheckpoint, OSError, PaymeshError) as error:
                SEAL_FAILURES.inc()
                log.error("nothing was sealed: %s", error)  # noqa: TRY400 - it says what is wrong
                self._begun = False  # what is in memory may not be what is on disk
            except Exception:
                SEAL_FAILURES.inc()
                self._begun = False
                raise

    async def seal_all(self) -> int:
        """Seal all that is behind the horizon. Returns how many events that were."""
        await self._catch_up()
        UNSEALED_SECONDS.set(await store.find_unsealed_seconds(self._database, self._through))
        horizon_us = await store.find_horizon(self._database, self._settle_seconds)
        sealed = 0
        while entries := await self._next(horizon_us):
            if await self._seal(entries):
                sealed += len(entries)
        UNSEALED_SECONDS.set(await store.find_unsealed_seconds(self._database, self._through))
        return sealed

    async def _catch_up(self) -> None:
        """Learn what is sealed: all that is on record, and what others, or we before we were killed, made since."""
        if not self._begun:
            await asyncio.to_thread(self._folder.clean)
            self._last, self._remembered = None, set()
            on_record = await store.find_last_checkpoint(self._database)
            if on_record is not None:
                await self._take_over(*on_record)
        while await asyncio.to_thread(self._folder.file(self._number_next).exists):
            header = await asyncio.to_thread(self._folder.header, self._number_next)
            if faults := [*faults_of(header, self._last, self._keys)] or header.number != self._number_next:
                raise TrailBroken(f"checkpoint {self._number_next} {faults}, and is not on record")
            await store.insert_checkpoint(self._database, header.number, header.line().decode())
            await self._remember(header)
        self._begun = True

    @property
    def _number_next(self) -> int:
        return self._last.number + 1 if self._last else 1

    async def _take_over(self, number: int, header_line: str) -> None:
        """Go on behind a checkpoint that is on record, and remember what was sealed lately."""
        recorded = read_header(header_line.encode())
        try:
            last = await asyncio.to_thread(self._folder.header, number)
        except FileNotFoundError as error:
            raise TrailBroken(
                f"checkpoint {number} is on record, and {self._folder.file(number)} is gone"
            ) from error
        if last != recorded:
            raise TrailBroken(f"checkpoint {number} is not the one that is on record")
        await self._remember(last)
        # All of a checkpoint, and of those before it, lies before its `through`: the first that ends too early ends
        # this. What is not remembered is not looked for either, or it would be taken for late.
        since_us = last.through[0] - self._look_back_us
        for earlier in range(number - 1, 0, -1):
            header = await asyncio.to_thread(self._folder.header, earlier)
            if header.through[0] < since_us or len(self._remembered) >= REMEMBERED_MAX:
                self._look_back_us = min(self._look_back_us, last.through[0] - header.through[0] - 1)
                break
            self._remembered |= await asyncio.to_thread(self._places, earlier)

    async def _remember(self, header: Header) -> None:
        self._remembered |= await asyncio.to_thread(self._places, header.number)
        self._last = header

    def _places(self, number: int) -> set[Place]:
        return {entry[:4] for entry in self._folder.entries(number)}

    async def _next(self, horizon_us: int) -> list[Entry]:
        """What goes into the next checkpoint: what came late, and what lies between the last one and the horizon."""
        events = await self._late()
        place = self._through
        while len(events) < ENTRIES_MAX:
            limit = min(FETCH_EVENTS, ENTRIES_MAX - len(events))
            more = await store.list_unsealed(self._database, place, horizon_us, limit)
            events += more
            if len(more) < limit:
                break
            place = more[-1].place
        return await self._entries(events)

    async def _late(self) -> list[Unsealed]:
        """Events before the last one that is sealed which are not: usually none, which counting tells."""
        if self._last is None:
            return []
        through = self._through
        since_us = through[0] - self._look_back_us
        self._remembered = {place for place in self._remembered if place[0] >= since_us}
        if await store.count_recorded(self._database, since_us, through) <= len(self._remembered):
            self._look_back_us = int(LOOK_BACK_SECONDS * 1_000_000)
            return []
        late: list[Unsealed] = []
        place: Place = (since_us, "", "", 0)
        while len(late) < ENTRIES_MAX:
            read = await store.list_unsealed(self._database, place, through[0] + 1, FETCH_EVENTS)
            late += [one for one in read if one.place <= through and one.place not in self._remembered]
            if len(read) < FETCH_EVENTS:
                break
            place = read[-1].place
        if late:
            log.warning("%d events were recorded before others that are sealed already", len(late))
        return late[:ENTRIES_MAX]

    async def _entries(self, events: list[Unsealed]) -> list[Entry]:
        """With the hashes that rows from before there was a chain do not tell."""
        bare = sorted({one.place[1:3] for one in events if one.hash is None})
        chains: dict[PaymentKey, list[bytes]] = {}
        for first in range(0, len(bare), FETCH_EVENTS):
            chains |= await store.list_chains(self._database, bare[first : first + FETCH_EVENTS])
        return [Entry(*place, (hashed or chains[place[1:3]][place[3] - 1]).hex()) for place, hashed in events]

    async def _seal(self, entries: list[Entry]) -> bool:
        """Make one checkpoint; False when another process was quicker."""
        header, lines = await asyncio.to_thread(make, sorted(entries), self._last, now_ms(), self._key)
        try:
            await asyncio.to_thread(self._folder.write, header, lines)
        except NumberTaken:
            await self._catch_up()
            return False
        await store.insert_checkpoint(self._database, header.number, header.line().decode())
        self._remembered.update(entry[:4] for entry in entries)
        self._last = header
        SEALED.inc(len(entries))
        log.info("sealed %d events in checkpoint %d", len(entries), header.number)
        return True


def open_sealer(database: Database, config: PaymentConfig) -> Sealer:
    """As the configuration says. Raises OSError or RuntimeError when the key cannot be had: it is never made here, for
    what a new key signs nobody can verify."""
    if not config.seal_key_file:
        raise RuntimeError("there is a SEAL_FOLDER and no SEAL_KEY_FILE to sign with")
    try:
        key = read_private_key(Path(config.seal_key_file).read_bytes())
    except ValueError as error:
        raise RuntimeError(f"the key in {config.seal_key_file} cannot be used: {error}") from error
    return Sealer(database, Path(config.seal_folder), key, config)
