"""Exactly once: claim, replay, remember, and the undo barrier, for sets.

A key is claimed by inserting its row (unique on merchant, caller, method, key) as the first statement of the
transaction that does the work, and completed by writing the stored answer as the last. So:

* Of two transactions with one key the second waits at its insert until the first has ended. Did the first commit, the
  second finds the row and replays its answer; did it roll back, the second does the work.
* A row without a result, once it can be read, belongs to a call whose answer is read back from what it has saved
  (`Pack.recall`), or to one that takes more than one transaction and has not ended (a payment between its intent and
  its outcome): the repeat is told IN_PROGRESS.
* The same key with another fingerprint is refused and changes nothing.

Nearly every set has new keys only. So the work is begun on that assumption, and its first statements travel with the
claim. When the claim's answer says otherwise the transaction is rolled back, whatever has come of it, and the set is
worked on again in two steps: the claim first, then what was new.

The undo barrier is the same row. An undo first claims *the key of the call that it undoes*. If that succeeds, the call
has not arrived: the row is completed with the refusal UNDONE_BEFORE_ARRIVAL, and should the call arrive late, it
replays that refusal. If it fails, the call was there first and its `resource_id` says what is to be undone. No path
that goes well pays anything for this.

`run_set` is the frame of a handler that needs one transaction: claim, work, remember.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeAlias

import psycopg

from services.kit.db import Database, Sent, Transaction
from services.kit.deadline import Deadline
from services.kit.errors import InProgress, PaymeshError, Refused, key_reused, undone_before_arrival
from services.kit.rpc.failures import as_error
from services.kit.rpc.stored import Pack
from services.kit.sets import Answer, Command, Failed, M, Outcome, R

log = logging.getLogger(__name__)

IN_PROGRESS_RETRY_AFTER_MS = 200
"""A repeat that meets its first attempt under way asks again after this; most work has ended by then."""

_CLAIM = """
INSERT INTO idempotency (merchant_id, caller, method, key, fingerprint, resource_id)
SELECT merchant_id, caller, %(method)s, key, fingerprint, resource_id
FROM unnest(%(merchants)s::text[], %(callers)s::text[], %(keys)s::text[], %(fingerprints)s::bytea[],
            %(resources)s::text[]) AS claim (merchant_id, caller, key, fingerprint, resource_id)
ON CONFLICT DO NOTHING
"""

_FIND = """
SELECT row.merchant_id, row.caller, row.key, row.fingerprint, row.resource_id, row.result
FROM unnest(%(merchants)s::text[], %(callers)s::text[], %(keys)s::text[]) AS asked (merchant_id, caller, key)
JOIN idempotency AS row
  ON row.merchant_id = asked.merchant_id AND row.caller = asked.caller AND row.method = %(method)s
 AND row.key = asked.key
"""

_REMEMBER = """
UPDATE idempotency AS row SET result = answer.result
FROM unnest(%(merchants)s::text[], %(callers)s::text[], %(keys)s::text[], %(results)s::bytea[])
     AS answer (merchant_id, caller, key, result)
WHERE row.merchant_id = answer.merchant_id AND row.caller = answer.caller AND row.method = %(method)s
  AND row.key = answer.key AND row.result IS NULL
"""

_BAR = """
INSERT INTO idempotency (merchant_id, caller, method, key, fingerprint, resource_id, result)
SELECT merchant_id, caller, %(method)s, key, '', '', %(refusal)s
FROM unnest(%(merchants)s::text[], %(callers)s::text[], %(keys)s::text[]) AS undone (merchant_id, caller, key)
ON CONFLICT DO NOTHING
"""

Identity = tuple[str, str, str]
"""(merchant, caller, key): what a key is unique within, for one method."""
_Row = tuple[bytes, str, bytes | None]
"""(fingerprint, resource id, stored answer) of a claimed key."""


class _Standing(Exception):
    """Keys that were taken for new had been claimed before; nothing of this transaction may stay."""


@dataclass(frozen=True, slots=True)
class Claims(Generic[R, M]):
    """A set after its keys were claimed."""

    fresh: list[Command[R]]
    """To be carried out by this transaction, in the order of the set; never two with one key."""
    settled: dict[int, Outcome[M]]
    """Outcomes that stand already, by place in the set."""
    twins: dict[int, Identity]
    """Commands that repeat a fresh one of the same set, by place: they get its outcome, as a replay."""


def identity(command: Command[R]) -> Identity:
    """What the command's key is unique within."""
    return (command.merchant_id, command.caller, command.key)


@dataclass(frozen=True, slots=True)
class _Claiming(Generic[R]):
    """A claim that is on its way."""

    first: dict[Identity, Command[R]]
    """The commands, of those with one key the first, in the order of the set."""
    sent: Sent

    async def all_new(self) -> bool:
        """Whether no key had been claimed before."""
        return await self.sent.count() == len(self.first)


def _send_claim(tx: Transaction, method: str, commands: Sequence[Command[R]]) -> _Claiming[R]:
    first: dict[Identity, Command[R]] = {}
    for command in commands:
        first.setdefault(identity(command), command)
    # Sorted, so that two sets that share keys wait for each other in one direction only.
    ordered = sorted(first.items())
    params = {
        "method": method,
        "merchants": [i[0] for i, _ in ordered],
        "callers": [i[1] for i, _ in ordered],
        "keys": [i[2] for i, _ in ordered],
        "fingerprints": [c.fingerprint for _, c in ordered],
        "resources": [c.resource_id for _, c in ordered],
    }
    return _Claiming(first, tx.later(_CLAIM, params))


async def claim(tx: Transaction, method: str, commands: Sequence[Command[R]], pack: Pack[M]) -> Claims[R, M]:
    """Claim the keys of a set. `pack` reads stored answers."""
    claiming = _send_claim(tx, method, commands)
    if await claiming.all_new():
        return _claims(commands, claiming.first, {})
    asked = _columns(method, list(claiming.first))
    rows: dict[Identity, _Row] = {row[:3]: row[3:] for row in await tx.fetch(_FIND, asked)}
    fresh = {i: c for i, c in claiming.first.items() if i in rows and rows[i][1] == c.resource_id}
    recalled = await _recall(tx, [(i, row) for i, row in rows.items() if i not in fresh], pack)
    # Whatever the others in the set ask for under such a key: the stored row was there before them.
    settled = {
        place: _standing(command, rows.get(key), recalled.get(key), pack)
        for place, command in enumerate(commands)
        if (key := identity(command)) not in fresh
    }
    return _claims(commands, fresh, settled)


def _claims(
    commands: Sequence[Command[R]], fresh: Mapping[Identity, Command[R]], settled: dict[int, Outcome[M]]
) -> Claims[R, M]:
    """Add to `settled` what becomes of commands that repeat a fresh one of their own set."""
    twins: dict[int, Identity] = {}
    if len(fresh) + len(settled) < len(commands):
        for place, command in enumerate(commands):
            if place in settled or fresh[identity(command)] is command:
                continue
            if fresh[identity(command)].fingerprint == command.fingerprint:
                twins[place] = identity(command)
            else:
                settled[place] = Failed(key_reused(command.key))
    return Claims(list(fresh.values()), settled, twins)


async def _recall(
    tx: Transaction, standing: Sequence[tuple[Identity, _Row]], pack: Pack[M]
) -> dict[Identity, Outcome[M]]:
    """The answers of earlier calls that were not stored, read back from what those calls have saved."""
    if pack.recall is None:
        return {}
    resources = {(key[0], resource): key for key, (_, resource, result) in standing if result is None}
    if not resources:
        return {}
    messages = await pack.recall(tx, sorted(resources))
    return {resources[resource]: Answer(message, replayed=True) for resource, message in messages.items()}


def _standing(
    command: Command[R], row: _Row | None, recalled: Outcome[M] | None, pack: Pack[M]
) -> Outcome[M]:
    """The outcome of a command whose key was claimed before."""
    # No row any more: the key was freed between the two statements, and the next attempt can claim it.
    fingerprint, resource_id, result = row or (command.fingerprint, "", None)
    if fingerprint and fingerprint != command.fingerprint:
        return Failed(key_reused(command.key))
    if recalled is not None:
        return recalled
    if result is None:
        return Failed(
            InProgress(
                "IN_PROGRESS",
                "an earlier call with this key has not ended; ask again with the same key",
                facts={"resource_id": resource_id},
                retry_after_ms=IN_PROGRESS_RETRY_AFTER_MS,
            )
        )
    return pack.unpack(result)


def remember(
    tx: Transaction, method: str, answers: Sequence[tuple[Identity, Outcome[M]]], pack: Pack[M]
) -> None:
    """Complete claimed keys with their answers, those that cannot be read back."""
    answers = [(key, outcome) for key, outcome in answers if pack.stores(outcome)]
    if not answers:
        return
    tx.later(
        _REMEMBER,
        {
            "method": method,
            "merchants": [i[0] for i, _ in answers],
            "callers": [i[1] for i, _ in answers],
            "keys": [i[2] for i, _ in answers],
            "results": [pack.pack(outcome) for _, outcome in answers],
        },
    )


async def bar(tx: Transaction, method: str, keys: Sequence[Identity], pack: Pack[M]) -> dict[Identity, str]:
    """The undo barrier, for calls of `method` that are about to be undone: the `resource_id` of those that have
    arrived. Those that are missing from the answer have not arrived and never will have any effect."""
    asked = sorted(set(keys))
    arrived = await _resources(tx, method, asked)
    absent = [i for i in asked if i not in arrived]
    if absent:
        params = _columns(method, absent) | {"refusal": pack.pack(Failed(undone_before_arrival()))}
        count = await tx.execute(_BAR, params)
        if count < len(absent):  # one of them arrived in this very moment
            arrived |= await _resources(tx, method, absent)
    return {i: resource for i, resource in arrived.items() if resource}


async def _resources(tx: Transaction, method: str, keys: Sequence[Identity]) -> dict[Identity, str]:
    rows = await tx.fetch(_FIND, _columns(method, keys))
    return {(merchant, caller, key): resource for merchant, caller, key, _, resource, _ in rows}


def _columns(method: str, keys: Sequence[Identity]) -> dict[str, object]:
    return {
        "method": method,
        "merchants": [i[0] for i in keys],
        "callers": [i[1] for i in keys],
        "keys": [i[2] for i in keys],
    }


Work: TypeAlias = Callable[[Transaction, list[Command[R]]], Awaitable[Sequence[Answer[M] | Failed]]]
"""Carries out fresh commands."""
Beginning: TypeAlias = Callable[
    [Transaction, list[Command[R]]], Awaitable[Sequence[Answer[M] | Failed | None]]
]
"""Carries out fresh commands; None for one whose outcome comes in a later transaction."""


@dataclass(frozen=True, slots=True)
class _Set(Generic[R, M]):
    """A set of commands and how they are carried out, as transactions."""

    method: str
    commands: Sequence[Command[R]]
    work: Beginning[R, M]
    pack: Pack[M]

    async def at_once(self, tx: Transaction) -> list[Outcome[M] | None]:
        """Work as if all keys were new. Raises _Standing when they turn out not to be."""
        claiming = _send_claim(tx, self.method, self.commands)
        try:
            results = await self._carry_out(tx, _claims(self.commands, claiming.first, {}))
        except Exception as error:
            known = claiming.sent.answered
            if await claiming.all_new() if known else isinstance(error, psycopg.OperationalError):
                raise
            # What failed may have failed because it had been done before.
            raise _Standing from error
        if not await claiming.all_new():
            raise _Standing
        return results

    async def in_two_steps(self, tx: Transaction) -> list[Outcome[M] | None]:
        """Claim, and then work on what is new."""
        return await self._carry_out(tx, await claim(tx, self.method, self.commands, self.pack))

    async def _carry_out(self, tx: Transaction, claims: Claims[R, M]) -> list[Outcome[M] | None]:
        worked: dict[Identity, Outcome[M] | None] = {}
        if claims.fresh:
            outcomes = await self.work(tx, claims.fresh)
            worked = {identity(c): outcome for c, outcome in zip(claims.fresh, outcomes, strict=True)}
            ended = [(i, outcome) for i, outcome in worked.items() if outcome is not None]
            remember(tx, self.method, [(i, o) for i, o in ended if lasting(o)], self.pack)
            _free(tx, self.method, [i for i, o in ended if not lasting(o)])
        if not claims.settled and not claims.twins:
            return list(worked.values())
        results: list[Outcome[M] | None] = []
        for place, command in enumerate(self.commands):
            if place in claims.settled:
                results.append(claims.settled[place])
            elif place in claims.twins:
                results.append(as_replay(worked[claims.twins[place]]))
            else:
                results.append(worked[identity(command)])
        return results


async def run_set(
    database: Database,
    method: str,
    commands: Sequence[Command[R]],
    work: Work[R, M],
    pack: Pack[M],
    deadline: Deadline,
) -> list[Outcome[M]]:
    """Claim, work, remember: one transaction over a set. The outcomes come in the order of the set; see `begin_set`."""
    outcomes = await begin_set(database, method, commands, work, pack, deadline)
    return [outcome for outcome in outcomes if outcome is not None]


async def begin_set(
    database: Database,
    method: str,
    commands: Sequence[Command[R]],
    work: Beginning[R, M],
    pack: Pack[M],
    deadline: Deadline,
) -> list[Outcome[M] | None]:
    """`run_set` for work that takes more than one transaction: None means that `work` has only begun (for a twin of
    such a command, too), its key stays claimed, and `remember` is called by the transaction that ends it.

    Refusals are remembered like answers. Any other failure that `work` reports for a command is not, and its key is
    freed. Should the transaction itself break on a defect, the commands are tried one by one, so that only the culprit
    fails.
    """

    one = _Set(method, commands, work, pack)
    try:
        try:
            return await database.transact(one.at_once, deadline)
        except _Standing:
            return await database.transact(one.in_two_steps, deadline)
    except (PaymeshError, psycopg.OperationalError):
        raise
    except Exception:
        if len(commands) == 1:
            raise
        log.exception("%s: a set of %d broke; trying its commands one by one", method, len(commands))
        return [await _alone(database, method, command, work, pack, deadline) for command in commands]


async def _alone(
    database: Database,
    method: str,
    command: Command[R],
    work: Beginning[R, M],
    pack: Pack[M],
    deadline: Deadline,
) -> Outcome[M] | None:
    try:
        return (await begin_set(database, method, [command], work, pack, deadline))[0]
    except PaymeshError as error:
        return Failed(error)
    except Exception as error:
        log.exception("%s: this command broke the set: key %r", method, command.key)
        return Failed(as_error(error))


_FREE = """
DELETE FROM idempotency AS row
USING unnest(%(merchants)s::text[], %(callers)s::text[], %(keys)s::text[]) AS freed (merchant_id, caller, key)
WHERE row.merchant_id = freed.merchant_id AND row.caller = freed.caller AND row.method = %(method)s
  AND row.key = freed.key AND row.result IS NULL
"""


def _free(tx: Transaction, method: str, keys: Sequence[Identity]) -> None:
    if keys:
        tx.later(_FREE, _columns(method, keys))


def lasting(outcome: Outcome[M]) -> bool:
    """Whether an outcome is final for its key: answers and refusals replay, everything else may be tried again."""
    return isinstance(outcome, Answer) or isinstance(outcome.error, Refused)


def as_replay(outcome: Outcome[M] | None) -> Outcome[M] | None:
    """The same outcome, marked as that of an earlier call."""
    match outcome:
        case Answer(message):
            return Answer(message, replayed=True)
        case Failed(error):
            return Failed(error, replayed=True)
    return None
