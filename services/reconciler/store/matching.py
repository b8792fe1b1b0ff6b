"""What belongs together, in sets. Rules come from the domain; this turns each into a handful of statements.

A run copies what is open into two temporary tables, `work_lines` and `work_items`, and takes from them what a rule has
matched. Every statement is a join by hash or an aggregate, so that twice as much takes twice as long. Most lines are
matched by the run that imports them: of those only the work table knows that they are open (`insert_open`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from operator import itemgetter
from typing import LiteralString, NamedTuple

from services.reconciler.domain.pairing import Candidate, Pair
from services.reconciler.domain.rules import ItemKey, LineKey, Rule, Shape
from services.reconciler.store.connection import Connection, count

NOTHING_MOVED = "nothing_moved"
"""Name of the match of what adds up to nothing on its own: a line of zero, a settlement of zero."""
FAR_AWAY_DAYS = 100_000
"""A window without an end."""
FETCH_ROWS = 5_000

LINE_KEYS: dict[LineKey, LiteralString] = {
    LineKey.NONE: "''",
    LineKey.REFERENCE: "reference",
    LineKey.COUNTERPART_REFERENCE: "counterpart_reference",
    LineKey.BATCH_REFERENCE: "batch_reference",
}
ITEM_KEYS: dict[ItemKey, LiteralString] = {
    ItemKey.NONE: "''",
    ItemKey.ITEM_ID: "item_id",
    ItemKey.BANK_REFERENCE: "bank_reference",
    ItemKey.BATCH_REFERENCE: "batch_reference",
    ItemKey.PAYMENT_ID: "payment_id",
    ItemKey.SETTLEMENT_ID: "settlement_id",
}
"""Columns of the work tables."""


class Matched(NamedTuple):
    """What a rule has matched."""

    rule: str
    matches: int
    lines: int
    items: int


def copy_open(connection: Connection, merchant_id: str) -> None:
    """Fill the work tables with what is open, except what an approved resolution is about. Imports then add to
    `work_lines` what is new."""
    params = {"merchant": merchant_id}
    connection.execute("DROP TABLE IF EXISTS work_lines, work_items, made, late")
    connection.execute(
        """
        CREATE TEMPORARY TABLE work_lines ON COMMIT DROP AS
        SELECT l.line_no, l.currency::text AS currency, l.amount_minor, l.booking_date, l.value_date, l.reference,
               l.counterpart_reference, l.batch_reference
        FROM open_lines AS o JOIN lines AS l USING (merchant_id, line_no)
        WHERE o.merchant_id = %(merchant)s AND NOT EXISTS (
            SELECT FROM case_lines AS c JOIN cases USING (merchant_id, case_no)
            WHERE c.merchant_id = o.merchant_id AND c.line_no = o.line_no AND c.standing AND state = 'RESOLVING')
        """,
        params,
    )
    connection.execute(
        """
        CREATE TEMPORARY TABLE work_items ON COMMIT DROP AS
        SELECT i.item_no, i.currency::text AS currency, i.amount_minor, i.fee_minor, i.booked_on, i.value_on, i.item_id,
               i.bank_reference, i.batch_reference, i.payment_id, i.settlement_id
        FROM open_items AS o JOIN items AS i USING (merchant_id, item_no)
        WHERE o.merchant_id = %(merchant)s AND NOT EXISTS (
            SELECT FROM case_items AS c JOIN cases USING (merchant_id, case_no)
            WHERE c.merchant_id = o.merchant_id AND c.item_no = o.item_no AND c.standing AND state = 'RESOLVING')
        """,
        params,
    )
    connection.execute(
        """
        CREATE TEMPORARY TABLE made (
            match_no bigint NOT NULL, line_no bigint, item_no bigint, days integer
        ) ON COMMIT DROP;
        CREATE TEMPORARY TABLE late (match_no bigint NOT NULL, days integer NOT NULL) ON COMMIT DROP
        """
    )


def count_open(connection: Connection) -> tuple[int, int]:
    """How many lines and items there are to match."""
    connection.execute("ANALYZE work_lines; ANALYZE work_items")
    lines = count(connection, "SELECT count(*) FROM work_lines")
    return lines, count(connection, "SELECT count(*) FROM work_items")


def insert_open(connection: Connection, merchant_id: str) -> None:
    """Note the lines that are open for good, whether they are found to be a difference or not; after the matching."""
    connection.execute(
        """
        INSERT INTO open_lines (merchant_id, line_no)
        SELECT %(merchant)s, line_no
        FROM (SELECT line_no FROM work_lines UNION ALL SELECT line_no FROM found_lines) AS open
        ORDER BY line_no
        ON CONFLICT DO NOTHING
        """,
        {"merchant": merchant_id},
    )


def match(
    connection: Connection,
    merchant_id: str,
    run_id: str,
    rule: Rule,
    decide: Callable[[Sequence[Candidate], Sequence[Candidate], Rule], list[Pair]],
    *,
    any_day: bool = False,
) -> Matched:
    """Match by one rule. `decide` pairs what the database leaves open: groups of several lines or items with one key.
    With `any_day` the rule's window does not count, and what would have missed it is noted as late."""
    if rule.shape is not Shape.ONE_TO_ONE:
        _match_sums(connection, rule, any_day)
        return _take(connection, merchant_id, run_id, rule.name, late=any_day)
    _match_singles(connection, rule, any_day)
    singles = _take(connection, merchant_id, run_id, rule.name, late=any_day)
    _match_contested(connection, rule, decide, any_day)
    contested = _take(connection, merchant_id, run_id, rule.name, late=any_day)
    return Matched(
        rule.name,
        singles.matches + contested.matches,
        singles.lines + contested.lines,
        singles.items + contested.items,
    )


def match_nothing(connection: Connection, merchant_id: str, run_id: str) -> Matched:
    """What moved nothing needs no counterpart: lines of zero, and settlements that add up to zero."""
    connection.execute("INSERT INTO made SELECT line_no, line_no FROM work_lines WHERE amount_minor = 0")
    connection.execute(
        """
        INSERT INTO made
        SELECT -first_no, NULL, item_no FROM work_items JOIN (
            SELECT batch_reference, currency, min(item_no) AS first_no FROM work_items
            WHERE batch_reference <> '' GROUP BY 1, 2 HAVING sum(amount_minor - fee_minor) = 0
        ) AS zero USING (batch_reference, currency)
        """
    )
    return _take(connection, merchant_id, run_id, NOTHING_MOVED, late=False)


class _Parts(NamedTuple):
    """What the statements of a rule have in common."""

    lines: str
    """(key, currency, amount_minor, day, no) of work_lines."""
    items: str
    """The same of work_items."""
    params: dict[str, object]


def _parts(rule: Rule, any_day: bool) -> _Parts:
    line_key, item_key = LINE_KEYS[rule.line], ITEM_KEYS[rule.item]
    amount = "amount_minor - fee_minor" if rule.net else "amount_minor"
    # What names something is never taken for something else of the same amount.
    nameless = " WHERE reference = '' AND counterpart_reference = '' AND batch_reference = ''"
    keyed = (f" WHERE {line_key} <> ''", f" WHERE {item_key} <> ''") if rule.keyed else (nameless, "")
    return _Parts(
        f"SELECT {line_key} AS key, currency, amount_minor, value_date AS day, line_no AS no FROM work_lines{keyed[0]}",
        f"SELECT {item_key} AS key, currency, {amount} AS amount_minor, value_on AS day, item_no AS no"
        f" FROM work_items{keyed[1]}",
        {
            "before": -FAR_AWAY_DAYS if any_day else -rule.days_before,
            "after": FAR_AWAY_DAYS if any_day else rule.days_after,
            "tolerance": rule.tolerance_minor,
        },
    )


def _group(rule: Rule) -> str:
    """What the members of a group have in common. Within a tolerance the amounts differ."""
    return "key, currency" if rule.tolerance_minor else "key, currency, amount_minor"


def _match_singles(connection: Connection, rule: Rule, any_day: bool) -> None:
    """Groups of one line and one item, nearly all of them."""
    parts, group = _parts(rule, any_day), _group(rule)
    # Without a tolerance a group has one amount. One pass over both sides takes half the time of an aggregate of each
    # and a join of the two.
    tolerance = "AND abs(max(line_minor) - max(item_minor)) <= %(tolerance)s" if rule.tolerance_minor else ""
    connection.execute(
        f"""
        INSERT INTO made
        SELECT max(line_no), max(line_no), max(item_no), max(line_day) - max(item_day)
        FROM (
            SELECT key, currency, amount_minor, amount_minor AS line_minor, day AS line_day, no AS line_no,
                   NULL::bigint AS item_minor, NULL::date AS item_day, NULL::bigint AS item_no FROM ({parts.lines}) AS l
            UNION ALL
            SELECT key, currency, amount_minor, NULL, NULL, NULL, amount_minor, day, no FROM ({parts.items}) AS i
        ) AS both_sides
        GROUP BY {group}
        HAVING count(line_no) = 1 AND count(item_no) = 1 {tolerance}
           AND max(line_day) - max(item_day) BETWEEN %(before)s AND %(after)s
        """.encode(),
        parts.params,
    )


def _match_contested(
    connection: Connection,
    rule: Rule,
    decide: Callable[[Sequence[Candidate], Sequence[Candidate], Rule], list[Pair]],
    any_day: bool,
) -> None:
    """Groups of several lines or several items, which the domain decides one after the other."""
    wide = _any_day(rule) if any_day else rule
    pairs: list[tuple[Pair, int]] = []
    for lines, items in _contested(connection, rule, any_day):
        days = {c.number: c.day for c in items}
        line_days = {c.number: c.day for c in lines}
        pairs += [((line, item), line_days[line] - days[item]) for line, item in decide(lines, items, wide)]
    if not pairs:
        return
    with connection.cursor().copy("COPY made FROM STDIN") as copy:
        for (line_no, item_no), days_apart in pairs:
            copy.write_row((line_no, line_no, item_no, days_apart))


def _any_day(rule: Rule) -> Rule:
    return replace(rule, days_before=FAR_AWAY_DAYS, days_after=FAR_AWAY_DAYS)


def _contested(
    connection: Connection, rule: Rule, any_day: bool
) -> Iterator[tuple[list[Candidate], list[Candidate]]]:
    """(lines, items) of every group that has both, and more than one of either."""
    parts, group = _parts(rule, any_day), _group(rule)
    query = f"""
        WITH l AS ({parts.lines}), i AS ({parts.items}), contested AS (
            SELECT {group}
            FROM (SELECT {group}, count(*) AS lines FROM l GROUP BY {group}) AS ls
            JOIN (SELECT {group}, count(*) AS items FROM i GROUP BY {group}) AS "is" USING ({group})
            WHERE lines + items > 2
        )
        SELECT {group}, side, amount_minor, day - date '1970-01-01', no
        FROM (SELECT 0 AS side, l.* FROM l UNION ALL SELECT 1, i.* FROM i) AS m JOIN contested USING ({group})
        ORDER BY {group}
    """
    width = group.count(",") + 1
    with connection.cursor(name="contested", binary=True) as cursor:
        cursor.itersize = FETCH_ROWS
        cursor.execute(query.encode(), parts.params)
        for _, rows in groupby(cursor, key=itemgetter(*range(width))):
            sides: tuple[list[Candidate], list[Candidate]] = ([], [])
            for row in rows:
                sides[row[width]].append(Candidate(*row[width + 1 :]))
            yield sides


def _match_sums(connection: Connection, rule: Rule, any_day: bool) -> None:
    """One line that is the sum of all items with its key, or one item that is the sum of all lines with its. Of several
    that would fit, the earliest."""
    parts = _parts(rule, any_day)
    many, one = (parts.items, parts.lines) if rule.shape is Shape.MANY_TO_ONE else (parts.lines, parts.items)
    days = "one.day - sums.day" if rule.shape is Shape.MANY_TO_ONE else "sums.day - one.day"
    numbers = "fit.no, fit.no, m.no" if rule.shape is Shape.MANY_TO_ONE else "fit.first_no, m.no, fit.no"
    connection.execute(
        f"""
        INSERT INTO made
        WITH many AS ({many}), one AS ({one}), fit AS (
            SELECT one.key, one.currency, one.no, sums.first_no, {days} AS days,
                   row_number() OVER (PARTITION BY one.key, one.currency ORDER BY one.day, one.no) AS place
            FROM one JOIN (
                SELECT key, currency, sum(amount_minor) AS amount_minor, max(day) AS day, min(no) AS first_no
                FROM many GROUP BY key, currency
            ) AS sums ON sums.key = one.key AND sums.currency = one.currency
            WHERE abs(one.amount_minor - sums.amount_minor) <= %(tolerance)s
              AND {days} BETWEEN %(before)s AND %(after)s
        )
        SELECT {numbers}, fit.days FROM fit JOIN many AS m ON m.key = fit.key AND m.currency = fit.currency
        WHERE fit.place = 1
        """.encode(),
        parts.params,
    )


def _take(connection: Connection, merchant_id: str, run_id: str, rule: str, *, late: bool) -> Matched:
    """Move what was `made` into the books."""
    made = count(connection, "SELECT count(*) FROM made")
    if not made:
        return Matched(rule, 0, 0, 0)
    connection.execute("ANALYZE made")
    params: dict[str, object] = {"merchant": merchant_id, "run": run_id, "rule": rule}
    if late:
        connection.execute(
            "INSERT INTO late SELECT match_no, max(days) FROM made WHERE line_no IS NOT NULL GROUP BY match_no"
        )
    counts = {}
    for side, key in (("lines", "line_no"), ("items", "item_no")):
        # In the order of the key, so that its index grows at its end.
        counts[side] = connection.execute(
            f"""
            INSERT INTO matched_{side} (merchant_id, {key}, match_no, rule, run_id)
            SELECT %(merchant)s, {key}, match_no, %(rule)s, %(run)s
            FROM (SELECT DISTINCT {key}, match_no FROM made WHERE {key} IS NOT NULL ORDER BY {key}) AS matched
            """.encode(),
            params,
        ).rowcount
        connection.execute(
            f"""
            DELETE FROM open_{side} AS o USING made
            WHERE o.merchant_id = %(merchant)s AND o.{key} = made.{key}
            """.encode(),
            params,
        )
        _leave_rest(connection, side, key, taken=counts[side])
    matches = count(connection, "SELECT count(DISTINCT match_no) FROM made")
    connection.execute("TRUNCATE made")
    connection.execute("ANALYZE work_lines; ANALYZE work_items")
    return Matched(rule, matches, counts["lines"], counts["items"])


def _leave_rest(connection: Connection, side: str, key: str, *, taken: int) -> None:
    """Take what was `made` from a work table. Where it is most of it, what is left is copied: that is less work than
    marking a million rows as deleted and passing over them ever after."""
    if not taken:
        return
    if taken <= count(connection, f"SELECT count(*) FROM work_{side}") // 2:
        connection.execute(f"DELETE FROM work_{side} AS w USING made WHERE w.{key} = made.{key}".encode())
        return
    connection.execute(
        f"""
        CREATE TEMPORARY TABLE rest ON COMMIT DROP AS
        SELECT w.* FROM work_{side} AS w WHERE NOT EXISTS (SELECT FROM made WHERE made.{key} = w.{key});
        DROP TABLE work_{side};
        ALTER TABLE rest RENAME TO work_{side}
        """.encode()
    )
