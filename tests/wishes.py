"""Commands under keys, and work that makes one row for each, so that what happened can be counted."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from typing import Any, TypeAlias

from google.protobuf.wrappers_pb2 import StringValue

from services.kit.db import Database, Transaction
from services.kit.deadline import Deadline
from services.kit.errors import Refused, Retryable
from services.kit.idempotency import bar, identity, run_set
from services.kit.ids import new_id
from services.kit.rpc.stored import Pack
from services.kit.sets import Answer, Command, Failed

METHOD = "Make"
PACK = Pack(StringValue)

Wish: TypeAlias = Command[str]
Made: TypeAlias = Answer[StringValue] | Failed


def wish(key: str, body: str = "x", *, merchant: str = "mer_1", caller: str = "shop") -> Wish:
    """A command; `body` also says how it ends: see `work`."""
    fingerprint = hashlib.blake2b(body.encode(), digest_size=16).digest()
    return Command(merchant, caller, key, fingerprint, new_id("thing"), body, None)


async def work(tx: Transaction, fresh: list[Wish]) -> list[Made]:
    """One row per command, and what its body asks for: "refuse…", "busy…", "raise…", "clash…"."""
    outcomes: list[Made] = []
    for command in fresh:
        if command.request.startswith("refuse"):
            outcomes.append(Failed(Refused("NO", "no", facts={"key": command.key})))
            continue
        if command.request.startswith("busy"):
            outcomes.append(Failed(Retryable("BUSY", "later")))
            continue
        resource = "always the same" if command.request.startswith("clash") else command.resource_id
        await tx.execute(
            "INSERT INTO effects VALUES (%(resource)s, %(key)s, %(body)s)",
            {"resource": resource, "key": command.key, "body": command.request},
        )
        if command.request.startswith("raise"):
            raise ZeroDivisionError("a defect")
        outcomes.append(Answer(StringValue(value=command.resource_id)))
    return outcomes


async def make(database: Database, *wishes: Wish, how: Any = work, method: str = METHOD) -> list[Made]:
    """The outcomes of one set."""
    return await run_set(database, method, wishes, how, PACK, Deadline.after(10))


async def effects(database: Database) -> list[tuple[str, str]]:
    """(key, body) of all that was done, sorted."""
    return sorted((key, body) for key, body in await database.fetch("SELECT key, body FROM effects"))


async def keys(database: Database) -> dict[str, bool]:
    """The keys that are taken, and whether their answer is stored."""
    rows = await database.fetch("SELECT key, result IS NOT NULL FROM idempotency")
    return dict(rows)


def text(outcome: Made) -> str:
    """What came out, in a word: a resource id or the reason of a failure."""
    return outcome.message.value if isinstance(outcome, Answer) else outcome.error.reason


def texts(outcomes: Sequence[Made]) -> list[str]:
    return [text(outcome) for outcome in outcomes]


class Held:
    """Work that waits in the middle of its transaction until it is let go, or made to fail."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.go = asyncio.Event()
        self.calls = 0
        self.error: Exception | None = None

    async def __call__(self, tx: Transaction, fresh: list[Wish]) -> list[Made]:
        self.calls += 1
        outcomes = await work(tx, fresh)
        self.entered.set()
        await self.go.wait()
        if self.error is not None:
            raise self.error
        return outcomes


async def until_waiting(database: Database, sessions: int = 1) -> None:
    """Wait until so many sessions wait for another transaction to end."""
    query = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event IN ('transactionid', 'SpeculativeToken')"
    )
    async with asyncio.timeout(10):
        while (await database.fetch(query))[0][0] < sessions:
            await asyncio.sleep(0.01)


async def undo(database: Database, *wishes: Wish) -> dict[str, str]:
    """Bar the keys of `wishes`; the resource ids of those that were there first, by key."""

    async def barring(tx: Transaction) -> dict[tuple[str, str, str], str]:
        return await bar(tx, METHOD, [identity(w) for w in wishes], PACK)

    return {key: resource for (_, _, key), resource in (await database.transact(barring)).items()}


async def begin_only(tx: Transaction, fresh: list[Wish]) -> list[Made | None]:
    """Work that has not come to anything yet."""
    return [None for _ in fresh]
