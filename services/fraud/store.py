"""All SQL of fraud. Nothing is decided here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import orjson

from services.fraud.domain import (
    Assessment,
    AssessPayment,
    Decision,
    FiredRule,
    ListEntry,
    ListKind,
    Verdict,
)
from services.fraud.rules import Trait
from services.kit.db import Database, Sent, Transaction
from services.kit.idempotency import Identity
from services.kit.sets import Command
from services.kit.statements import Row

EntryKey: TypeAlias = tuple[str, ListKind, Trait, str]
"""(merchant, kind, trait, value)."""

_ASSESSMENT = (
    "merchant_id, assessment_id, payment_id, decision, score_milli, fired_rules::text, degraded, created_at"
)
_NOTHING_FIRED = "[]"


def insert_assessments(
    tx: Transaction, commands: Sequence[Command[AssessPayment]], assessments: Sequence[Assessment]
) -> Sent:
    """Record the assessments of commands with distinct keys; the count tells how many of the keys were new. Nothing
    is written for the others. All of a set share their time and whether they are degraded."""
    verdicts = [assessment.verdict for assessment in assessments]
    return tx.later(
        """
        INSERT INTO assessments (merchant_id, caller, key, fingerprint, assessment_id, payment_id, decision,
                                 score_milli, fired_rules, degraded, created_at)
        SELECT merchant_id, caller, key, fingerprint, assessment_id, payment_id, decision, score_milli,
               fired_rules::jsonb, %(degraded)s::boolean, %(created_at)s::timestamptz
        FROM unnest(%(merchants)s::text[], %(callers)s::text[], %(keys)s::text[], %(fingerprints)s::bytea[],
                    %(ids)s::text[], %(payments)s::text[], %(decisions)s::text[], %(scores)s::int[],
                    %(fired)s::text[])
             AS new (merchant_id, caller, key, fingerprint, assessment_id, payment_id, decision, score_milli,
                     fired_rules)
        ON CONFLICT DO NOTHING
        """,
        {
            "merchants": [c.merchant_id for c in commands],
            "callers": [c.caller for c in commands],
            "keys": [c.key for c in commands],
            "fingerprints": [c.fingerprint for c in commands],
            "ids": [c.resource_id for c in commands],
            "payments": [c.request.payment_id for c in commands],
            "decisions": [v.decision.value for v in verdicts],
            "scores": [v.score_milli for v in verdicts],
            "fired": [_fired_text(v.fired) if v.fired else _NOTHING_FIRED for v in verdicts],
            "degraded": verdicts[0].degraded,
            "created_at": assessments[0].created_at,
        },
    )


async def find_assessments_by_key(
    database: Database, keys: Iterable[Identity]
) -> dict[Identity, tuple[bytes, Assessment]]:
    """The fingerprint and the assessment that stand under each key; unknown keys are missing."""
    asked = list(keys)
    rows = await database.fetch(
        f"""
        SELECT caller, key, fingerprint, {_ASSESSMENT}
        FROM unnest(%(merchants)s::text[], %(callers)s::text[], %(keys)s::text[])
             AS asked (merchant_id, caller, key)
        JOIN assessments USING (merchant_id, caller, key)
        """,
        {"merchants": [i[0] for i in asked], "callers": [i[1] for i in asked], "keys": [i[2] for i in asked]},
    )
    return {(row[3], row[0], row[1]): (row[2], _assessment(row[3:])) for row in rows}


async def find_assessment(database: Database, merchant_id: str, assessment_id: str) -> Assessment | None:
    """One assessment."""
    rows = await database.fetch(
        f"""
        SELECT {_ASSESSMENT} FROM assessments
        WHERE merchant_id = %(merchant_id)s AND assessment_id = %(assessment_id)s
        """,
        {"merchant_id": merchant_id, "assessment_id": assessment_id},
    )
    return _assessment(rows[0]) if rows else None


def raise_list_versions(tx: Transaction, merchant_ids: Iterable[str]) -> None:
    """Lock the lists of merchants, ascending, and mark them as changed."""
    tx.later(
        """
        INSERT INTO list_versions (merchant_id) SELECT * FROM unnest(%(merchants)s::text[])
        ON CONFLICT (merchant_id) DO UPDATE SET version = list_versions.version + 1
        """,
        {"merchants": sorted(set(merchant_ids))},
    )


async def insert_list_entries(
    tx: Transaction, entries: Sequence[tuple[EntryKey, str]]
) -> dict[EntryKey, ListEntry]:
    """Put entries (with their notes) on lists unless they are there; returns what stands."""
    notes = dict(reversed(entries))  # of two notes in one set the first stands
    columns = _columns(notes)
    await tx.execute(
        """
        INSERT INTO list_entries (merchant_id, kind, trait, value, note)
        SELECT * FROM unnest(%(merchants)s::text[], %(kinds)s::text[], %(traits)s::text[], %(values)s::text[],
                             %(notes)s::text[])
        ON CONFLICT DO NOTHING
        """,
        columns | {"notes": list(notes.values())},
    )
    rows = await tx.fetch(
        """
        SELECT merchant_id, kind, trait, value, note, created_at
        FROM unnest(%(merchants)s::text[], %(kinds)s::text[], %(traits)s::text[], %(values)s::text[])
             AS asked (merchant_id, kind, trait, value)
        JOIN list_entries USING (merchant_id, kind, trait, value)
        """,
        columns,
    )
    found = [_entry(row) for row in rows]
    return {(e.merchant_id, e.kind, e.trait, e.value): e for e in found}


def delete_list_entries(tx: Transaction, keys: Iterable[EntryKey]) -> None:
    """Take entries off lists."""
    tx.later(
        """
        DELETE FROM list_entries
        USING unnest(%(merchants)s::text[], %(kinds)s::text[], %(traits)s::text[], %(values)s::text[])
              AS gone (merchant_id, kind, trait, value)
        WHERE list_entries.merchant_id = gone.merchant_id AND list_entries.kind = gone.kind
          AND list_entries.trait = gone.trait AND list_entries.value = gone.value
        """,
        _columns(keys),
    )


async def list_entries(
    database: Database, merchant_id: str, after: tuple[str, str, str], limit: int
) -> list[ListEntry]:
    """A merchant's entries by ascending (kind, trait, value), those behind `after`."""
    rows = await database.fetch(
        """
        SELECT merchant_id, kind, trait, value, note, created_at FROM list_entries
        WHERE merchant_id = %(merchant_id)s
          AND (kind, trait, value) > (%(kind)s::text, %(trait)s::text, %(value)s::text)
        ORDER BY kind, trait, value LIMIT %(limit)s
        """,
        {"merchant_id": merchant_id, "kind": after[0], "trait": after[1], "value": after[2], "limit": limit},
    )
    return [_entry(row) for row in rows]


async def list_versions(database: Database) -> dict[str, int]:
    """The version of every merchant's lists; missing where there never were any."""
    return dict(await database.fetch("SELECT merchant_id, version FROM list_versions"))


async def list_values(database: Database, merchant_ids: Sequence[str]) -> list[EntryKey]:
    """Everything that stands on the lists of some merchants, without notes."""
    rows = await database.fetch(
        """
        SELECT merchant_id, kind, trait, value FROM list_entries
        WHERE merchant_id = ANY (%(merchants)s::text[])
        """,
        {"merchants": list(merchant_ids)},
    )
    return [(merchant_id, ListKind(kind), Trait(trait), value) for merchant_id, kind, trait, value in rows]


def _columns(keys: Iterable[EntryKey]) -> dict[str, object]:
    held = list(keys)
    return {
        "merchants": [key[0] for key in held],
        "kinds": [key[1].value for key in held],
        "traits": [key[2].value for key in held],
        "values": [key[3] for key in held],
    }


def _entry(row: Row) -> ListEntry:
    merchant_id, kind, trait, value, note, created_at = row
    return ListEntry(merchant_id, ListKind(kind), Trait(trait), value, note, created_at)


def _fired_text(fired: Sequence[FiredRule]) -> str:
    return orjson.dumps(
        [{"rule": f.rule, "score_milli": f.score_milli, "explanation": f.explanation} for f in fired]
    ).decode()


def _assessment(row: Row) -> Assessment:
    merchant_id, assessment_id, payment_id, decision, score_milli, fired_text, degraded, created_at = row
    fired = tuple(FiredRule(f["rule"], f["score_milli"], f["explanation"]) for f in orjson.loads(fired_text))
    verdict = Verdict(Decision(decision), score_milli, fired, degraded)
    return Assessment(merchant_id, assessment_id, payment_id, verdict, created_at)
