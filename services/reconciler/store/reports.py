"""What a run has found, read inside its transaction, before it is kept or rolled back."""

from __future__ import annotations

from datetime import date
from typing import NamedTuple

from services.reconciler.domain.cases import Case, CaseKind
from services.reconciler.store.cases import CASE_COLUMNS, case_of
from services.reconciler.store.connection import Connection, count


class Count(NamedTuple):
    """Differences of one kind and currency."""

    kind: CaseKind
    currency: str
    new: int
    standing: int
    closed: int
    difference_minor: int
    """At the bank less in the ledger, of those that stand."""


def count_differences(connection: Connection) -> list[Count]:
    """By kind and currency, of what the run has touched."""
    rows = connection.execute(
        """
        SELECT c.kind, coalesce(c.bank_currency, c.ledger_currency)::text AS currency,
               count(*) FILTER (WHERE t.is_new), count(*) FILTER (WHERE NOT t.closed), count(*) FILTER (WHERE t.closed),
               coalesce(sum(coalesce(c.bank_minor, 0)
                            - CASE WHEN c.bank_currency IS DISTINCT FROM c.ledger_currency AND c.bank_minor IS NOT NULL
                                   THEN 0 ELSE coalesce(c.ledger_minor, 0) END)
                        FILTER (WHERE NOT t.closed), 0)::bigint
        FROM touched AS t JOIN cases AS c USING (case_no)
        GROUP BY 1, 2 ORDER BY 1, 2
        """
    ).fetchall()
    return [Count(CaseKind(row[0]), *row[1:]) for row in rows]


def list_differences(connection: Connection, limit: int) -> list[tuple[Case, bool]]:
    """The differences of the run, and whether it has found them first: those that stand before those it has closed, the
    largest first."""
    rows = connection.execute(
        f"""
        SELECT {CASE_COLUMNS}, t.is_new FROM touched AS t JOIN cases AS c USING (case_no)
        ORDER BY t.closed, abs(coalesce(c.bank_minor, 0) - coalesce(c.ledger_minor, 0)) DESC, c.case_no LIMIT %s
        """.encode(),
        [limit],
    ).fetchall()
    return [(case_of(row), row[-1]) for row in rows]


def count_touched(connection: Connection) -> int:
    """How many differences the run has to tell of."""
    return count(connection, "SELECT count(*) FROM touched")


def count_waiting(connection: Connection) -> tuple[int, int]:
    """Lines and items that are open and no difference yet: what is left in the work tables."""
    return count(connection, "SELECT count(*) FROM work_lines"), count(
        connection, "SELECT count(*) FROM work_items"
    )


def insert_run(connection: Connection, merchant_id: str, run_id: str, until: date, summary_json: str) -> None:
    """Keep a record of the run."""
    connection.execute(
        "INSERT INTO runs (merchant_id, run_id, date, summary) VALUES (%s, %s, %s, %s)",
        [merchant_id, run_id, until, summary_json],
    )
    connection.execute("UPDATE books SET matched_at = now() WHERE merchant_id = %s", [merchant_id])


def insert_announcement(
    connection: Connection, merchant_id: str, run_id: str, event: str, payload: bytes
) -> None:
    """Announce, by the full name and the bytes of a message, that the run has ended."""
    connection.execute(
        "INSERT INTO outbox (merchant_id, aggregate_id, type, payload) VALUES (%s, %s, %s, %s)",
        [merchant_id, run_id, event, payload],
    )
