"""The statements that were imported, for those who look at them."""

from __future__ import annotations

from datetime import date
from typing import NamedTuple

from services.kit.db import Database


class StatementRow(NamedTuple):
    """A statement as it is shown."""

    statement_no: int
    account: str
    currency: str
    statement_id: str
    opening_minor: int
    closing_minor: int
    closing_date: date | None
    lines: int
    file_name: str
    sha256: bytes
    imported_at_ms: int
    unproved: str


async def list_statements(
    database: Database, merchant_id: str, before: int, limit: int
) -> list[StatementRow]:
    """A merchant's statements with numbers below `before`, newest first."""
    rows = await database.fetch(
        """
        SELECT s.statement_no, s.account, s.currency, s.statement_id, s.opening_minor, s.closing_minor, s.closing_date,
               s.lines, coalesce(f.name, ''), s.sha256, (extract(epoch FROM s.imported_at) * 1000)::bigint, s.unproved
        FROM statements AS s LEFT JOIN statement_files AS f USING (merchant_id, sha256)
        WHERE s.merchant_id = %(merchant)s AND s.statement_no < %(before)s
        ORDER BY s.statement_no DESC LIMIT %(limit)s
        """,
        {"merchant": merchant_id, "before": before, "limit": limit},
    )
    return [StatementRow(*row) for row in rows]


class Standing(NamedTuple):
    """Cases of one kind that stand, of all merchants."""

    kind: str
    cases: int
    oldest_seconds: float


async def count_standing(database: Database) -> list[Standing]:
    """Standing cases by kind, and how long ago the oldest of each was opened."""
    rows = await database.fetch(
        """
        SELECT kind, count(*), extract(epoch FROM now() - min(opened_at))::float8 FROM cases
        WHERE state <> 'CLOSED' GROUP BY kind
        """
    )
    return [Standing(*row) for row in rows]


async def count_resolving(database: Database) -> float:
    """For how long the correction that has waited longest has been tried; 0 when none waits."""
    rows = await database.fetch(
        """
        SELECT coalesce(max(extract(epoch FROM now() - e.recorded_at)), 0)::float8
        FROM cases AS c JOIN case_events AS e
          ON e.merchant_id = c.merchant_id AND e.case_no = c.case_no AND e.number = c.version
        WHERE c.state = 'RESOLVING'
        """
    )
    seconds: float = rows[0][0]
    return seconds
