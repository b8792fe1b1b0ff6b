"""What does not belong together, in sets: groups of open lines and items, each of which is one difference, and the
cases that stand for them.

`find_single` and `find_rest` look at what matching has left, from the most telling to the least: what names the same
and differs in amount or currency, what repeats something that is matched, what is on one side only and due. Every group
has a number and at most one case. `save_cases` then holds the groups against the cases that stand: a case goes on with
the group that it has a line or an item in common with, also if that is another kind of difference now; a case whose
members are all matched is closed; a group without a case opens one.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

from services.reconciler.domain.cases import RECONCILER
from services.reconciler.domain.rules import Rule, Rules, Shape
from services.reconciler.store.connection import Connection, count
from services.reconciler.store.matching import ITEM_KEYS, LINE_KEYS

_TABLES = """
DROP TABLE IF EXISTS found, found_lines, found_items, picked, touched;
CREATE TEMPORARY TABLE found (
    group_no bigint NOT NULL GENERATED ALWAYS AS IDENTITY, kind text NOT NULL, first_line bigint, first_item bigint,
    bank_minor bigint, bank_currency text, ledger_minor bigint, ledger_currency text, reference text NOT NULL,
    lines integer NOT NULL, items integer NOT NULL, since date NOT NULL, case_no bigint
) ON COMMIT DROP;
CREATE TEMPORARY TABLE found_lines (group_no bigint NOT NULL, line_no bigint NOT NULL) ON COMMIT DROP;
CREATE TEMPORARY TABLE found_items (group_no bigint NOT NULL, item_no bigint NOT NULL) ON COMMIT DROP;
CREATE TEMPORARY TABLE picked (
    label text NOT NULL, currency text NOT NULL, line_no bigint, item_no bigint
) ON COMMIT DROP;
CREATE TEMPORARY TABLE touched (
    case_no bigint NOT NULL, is_new boolean NOT NULL, closed boolean NOT NULL
) ON COMMIT DROP
"""


def find_single(connection: Connection, merchant_id: str, rules: Rules) -> None:
    """Begin to fill `found`, `found_lines` and `found_items`: with what names a single item and disagrees with it. Such
    an item is no part of what its settlement was paid with: after that some may match which did not before."""
    connection.execute(_TABLES)
    single = [rule for rule in rules.rules if rule.keyed and rule.shape is not Shape.MANY_TO_ONE]
    _find_same_name(connection, merchant_id, single)


def find_rest(connection: Connection, merchant_id: str, rules: Rules, until: date) -> None:
    """All other differences, as of a day."""
    whole = [rule for rule in rules.rules if rule.shape is Shape.MANY_TO_ONE]
    nameless = ""
    for column in ("reference", "batch_reference", "counterpart_reference"):
        _pick_repeated(connection, merchant_id, column, nameless)
        _take(connection, "DUPLICATE", net=False)
        nameless += f" AND w.{column} = ''"
    _find_same_name(connection, merchant_id, whole)
    params = {
        "until": until,
        "late": rules.late_after_days,
        "missing": rules.missing_after_days,
        "unknown": rules.unknown_after_days,
    }
    connection.execute(
        "INSERT INTO picked SELECT line_no::text, currency, line_no FROM work_lines"
        " WHERE booking_date + %(unknown)s <= %(until)s::date",
        params,
    )
    _take(connection, "MISSING_IN_LEDGER", net=False)
    _pick_overdue(connection, merchant_id, rules.rules)
    for kind, days in (("MISSING_IN_BANK", "missing"), ("LATE", "late")):
        connection.execute(
            f"""
            INSERT INTO picked SELECT label, currency, NULL, item_no FROM overdue
            WHERE value_on + %({days})s < %(until)s::date
            """.encode(),
            params,
        )
        connection.execute("DELETE FROM overdue USING picked WHERE overdue.item_no = picked.item_no")
        _take(connection, kind, net=True)


def _find_same_name(connection: Connection, merchant_id: str, rules: Sequence[Rule]) -> None:
    """What lines and items name alike, and disagree on."""
    for kind, same_currency in (("AMOUNT", True), ("CURRENCY", False)):
        for line_key, item_key, shape in dict.fromkeys((r.line, r.item, r.shape) for r in rules):
            # Where the bank may keep its fee of it, what it keeps is no difference.
            net = any(r.net for r in rules if (r.line, r.item) == (line_key, item_key))
            whole = shape is Shape.MANY_TO_ONE
            _pick_same_name(
                connection,
                merchant_id,
                LINE_KEYS[line_key],
                ITEM_KEYS[item_key],
                same_currency=same_currency,
                whole=whole,
            )
            _take(connection, kind, net=net)


def _pick_same_name(
    connection: Connection,
    merchant_id: str,
    line_key: str,
    item_key: str,
    *,
    same_currency: bool,
    whole: bool,
) -> None:
    """Lines and items that have a key in common, all of one key in one group. With `whole` only of keys none of whose
    items is matched: where a bank books one by one, a settlement's name says nothing of what is left of it."""
    label, using = ("currency", "key, currency") if same_currency else ("''", "key")
    untouched = f"""
        AND NOT EXISTS (
            SELECT FROM items AS m JOIN matched_items USING (merchant_id, item_no)
            WHERE m.merchant_id = %(merchant)s AND m.{item_key} = w.{item_key})
    """
    connection.execute(
        f"""
        INSERT INTO picked
        WITH l AS (SELECT {line_key} AS key, currency, line_no FROM work_lines WHERE {line_key} <> ''),
             i AS (SELECT {item_key} AS key, currency, item_no FROM work_items AS w
                   WHERE {item_key} <> '' {untouched if whole else ""}),
             shared AS (
                SELECT {using} FROM (SELECT DISTINCT key, currency FROM l) AS ls
                JOIN (SELECT DISTINCT key, currency FROM i) AS "is" USING ({using}) GROUP BY {using}
             )
        SELECT key, {label}, line_no, NULL FROM l JOIN shared USING ({using})
        UNION ALL
        SELECT key, {label}, NULL, item_no FROM i JOIN shared USING ({using})
        """.encode(),
        {"merchant": merchant_id},
    )


def _pick_repeated(connection: Connection, merchant_id: str, column: str, nameless: str) -> None:
    """Lines that say what a matched line has said, by the first name that they have."""
    if not count(connection, f"SELECT count(*) FROM work_lines AS w WHERE {column} <> ''{nameless}"):
        return
    connection.execute(
        f"""
        INSERT INTO picked
        SELECT w.line_no::text, w.currency, w.line_no FROM work_lines AS w
        WHERE w.{column} <> ''{nameless} AND EXISTS (
            SELECT FROM lines AS l JOIN matched_lines AS m USING (merchant_id, line_no)
            WHERE l.merchant_id = %(merchant)s AND l.{column} = w.{column} AND l.{column} <> ''
              AND l.amount_minor = w.amount_minor AND l.currency = w.currency AND l.line_no <> w.line_no)
        """.encode(),
        {"merchant": merchant_id},
    )


def _pick_overdue(connection: Connection, merchant_id: str, rules: Sequence[Rule]) -> None:
    """What is left of items. A settlement none of which has come is one difference; otherwise each item is one."""
    whole = any(rule.shape is Shape.MANY_TO_ONE for rule in rules)
    connection.execute("DROP TABLE IF EXISTS overdue")
    connection.execute(
        """
        CREATE TEMPORARY TABLE overdue ON COMMIT DROP AS
        SELECT CASE WHEN %(whole)s AND w.batch_reference <> '' AND matched.batch_reference IS NULL
                    THEN w.batch_reference ELSE w.item_id END AS label,
               w.currency, w.item_no, w.value_on
        FROM work_items AS w LEFT JOIN (
            SELECT DISTINCT i.batch_reference, i.currency::text AS currency
            FROM (SELECT DISTINCT batch_reference FROM work_items WHERE batch_reference <> '') AS b
            JOIN items AS i ON i.merchant_id = %(merchant)s AND i.batch_reference = b.batch_reference
            JOIN matched_items AS m ON m.merchant_id = i.merchant_id AND m.item_no = i.item_no
        ) AS matched ON matched.batch_reference = w.batch_reference AND matched.currency = w.currency
        """,
        {"merchant": merchant_id, "whole": whole},
    )


def _take(connection: Connection, kind: str, *, net: bool) -> None:
    """Make groups of what was `picked`, by label and currency, and take it from the work tables."""
    if not count(connection, "SELECT count(*) FROM picked"):
        return
    connection.execute("ANALYZE picked")
    amount = "i.amount_minor - i.fee_minor" if net else "i.amount_minor"
    connection.execute(
        f"""
        INSERT INTO found (kind, first_line, first_item, bank_minor, bank_currency, ledger_minor, ledger_currency,
                           reference, lines, items, since)
        SELECT %(kind)s, min(p.line_no), min(p.item_no), sum(l.amount_minor), min(l.currency), sum({amount}),
               min(i.currency),
               coalesce(nullif(min(l.reference), ''), nullif(min(l.batch_reference), ''),
                        nullif(min(l.counterpart_reference), ''),
                        CASE WHEN count(p.item_no) > 1 THEN nullif(min(i.batch_reference), '') END, min(i.item_id), ''),
               count(p.line_no), count(p.item_no), min(coalesce(l.booking_date, i.value_on))
        FROM picked AS p LEFT JOIN work_lines AS l USING (line_no) LEFT JOIN work_items AS i USING (item_no)
        GROUP BY p.label, p.currency ORDER BY min(p.line_no), min(p.item_no)
        """.encode(),
        {"kind": kind},
    )
    connection.execute(
        """
        CREATE TEMPORARY TABLE numbered AS
        SELECT f.group_no, p.line_no, p.item_no FROM picked AS p
        JOIN (SELECT label, currency, min(line_no) AS first_line, min(item_no) AS first_item FROM picked
              GROUP BY label, currency) AS g USING (label, currency)
        JOIN found AS f ON coalesce(f.first_line, 0) = coalesce(g.first_line, 0)
                       AND coalesce(f.first_item, 0) = coalesce(g.first_item, 0);
        INSERT INTO found_lines SELECT group_no, line_no FROM numbered WHERE line_no IS NOT NULL;
        INSERT INTO found_items SELECT group_no, item_no FROM numbered WHERE item_no IS NOT NULL;
        DELETE FROM work_lines AS w USING numbered AS n WHERE w.line_no = n.line_no;
        DELETE FROM work_items AS w USING numbered AS n WHERE w.item_no = n.item_no;
        DROP TABLE numbered;
        TRUNCATE picked
        """
    )


def save_cases(connection: Connection, merchant_id: str, run_id: str) -> None:
    """Let the cases say what was found; `touched` then names every case that was opened or closed or stands."""
    connection.execute("ANALYZE found; ANALYZE found_lines; ANALYZE found_items")
    params = {"merchant": merchant_id, "run": run_id, "actor": RECONCILER}
    for statement in (
        _GO_ON, _NOTE_CHANGED, _CHANGE, _LEAVE_MEMBERS_LINES, _LEAVE_MEMBERS_ITEMS, _OPEN, _NUMBER_OPENED, _NOTE_OPENED,
        _MEMBERS_LINES, _MEMBERS_ITEMS, _CLOSE, _LEAVE_MATCHED_LINES, _LEAVE_MATCHED_ITEMS, _NOTE_STANDING,
    ):  # fmt: skip
        connection.execute(statement.encode(), params)
    _save_late(connection, params)


# A case goes on with the first group that shares something with it, a group with the oldest of its cases.
_GO_ON = """
UPDATE found AS f SET case_no = c.case_no
FROM (
    SELECT DISTINCT ON (group_no) group_no, case_no FROM (
        SELECT DISTINCT ON (case_no) case_no, group_no FROM (
            SELECT c.case_no, f.group_no FROM case_lines AS c JOIN found_lines AS f USING (line_no)
            WHERE c.merchant_id = %(merchant)s AND c.standing
            UNION ALL
            SELECT c.case_no, f.group_no FROM case_items AS c JOIN found_items AS f USING (item_no)
            WHERE c.merchant_id = %(merchant)s AND c.standing
        ) AS shared ORDER BY case_no, group_no
    ) AS first ORDER BY group_no, case_no
) AS c WHERE f.group_no = c.group_no
"""

_DIFFERS = """
(c.kind, c.bank_minor, c.bank_currency::text, c.ledger_minor, c.ledger_currency::text, c.lines, c.items)
IS DISTINCT FROM (f.kind, f.bank_minor, f.bank_currency, f.ledger_minor, f.ledger_currency, f.lines, f.items)
"""

# What somebody has proposed was about the case as it was.
_NOTE_CHANGED = f"""
INSERT INTO case_events (merchant_id, case_no, number, type, actor, data)
SELECT c.merchant_id, c.case_no, c.version + 1, CASE c.state WHEN 'PROPOSED' THEN 'overtaken' ELSE 'changed' END,
       %(actor)s, json_build_object('kind', f.kind, 'before', c.kind, 'lines', f.lines, 'items', f.items)
FROM cases AS c JOIN found AS f USING (case_no) WHERE c.merchant_id = %(merchant)s AND {_DIFFERS}
"""

_CHANGE = f"""
UPDATE cases AS c
SET kind = f.kind, bank_minor = f.bank_minor, bank_currency = f.bank_currency, ledger_minor = f.ledger_minor,
    ledger_currency = f.ledger_currency, lines = f.lines, items = f.items, reference = f.reference,
    version = c.version + 1, state = 'OPEN', reason = '', proposed_by = '', debit_account = '', credit_account = '',
    correct_minor = NULL, correct_currency = NULL
FROM found AS f WHERE c.merchant_id = %(merchant)s AND c.case_no = f.case_no AND {_DIFFERS}
"""


def _leave(side: str, key: str) -> str:
    """Members that a standing case had and its group does not have, and those of cases that another one goes on for."""
    return f"""
    UPDATE case_{side} AS c SET standing = false
    FROM found_{side} AS m JOIN found AS f USING (group_no)
    WHERE c.merchant_id = %(merchant)s AND c.{key} = m.{key} AND c.standing AND c.case_no IS DISTINCT FROM f.case_no
    """


_LEAVE_MEMBERS_LINES, _LEAVE_MEMBERS_ITEMS = _leave("lines", "line_no"), _leave("items", "item_no")

_OPEN = """
WITH new AS (
    INSERT INTO cases (merchant_id, kind, bank_minor, bank_currency, ledger_minor, ledger_currency, reference, lines,
                       items, since, opened_run)
    SELECT %(merchant)s, kind, bank_minor, bank_currency, ledger_minor, ledger_currency, reference, lines, items, since,
           %(run)s
    FROM found WHERE case_no IS NULL ORDER BY group_no
    RETURNING case_no
)
INSERT INTO touched SELECT case_no, true, false FROM new
"""

# Rows were inserted in the order of the groups, and numbered in that order.
_NUMBER_OPENED = """
UPDATE found AS f SET case_no = t.case_no
FROM (SELECT case_no, row_number() OVER (ORDER BY case_no) AS place FROM touched WHERE is_new) AS t
JOIN (SELECT group_no, row_number() OVER (ORDER BY group_no) AS place FROM found WHERE case_no IS NULL) AS g
USING (place)
WHERE f.group_no = g.group_no
"""

_NOTE_OPENED = """
INSERT INTO case_events (merchant_id, case_no, number, type, actor, data)
SELECT %(merchant)s, f.case_no, 1, 'opened', %(actor)s,
       json_build_object('kind', f.kind, 'run', %(run)s::text, 'lines', f.lines, 'items', f.items)
FROM found AS f JOIN touched AS t USING (case_no) WHERE t.is_new
"""


def _members(side: str, key: str) -> str:
    return f"""
    INSERT INTO case_{side} (merchant_id, case_no, {key})
    SELECT %(merchant)s, f.case_no, m.{key} FROM found AS f JOIN found_{side} AS m USING (group_no)
    ON CONFLICT (merchant_id, case_no, {key}) DO UPDATE SET standing = true WHERE NOT case_{side}.standing
    """


_MEMBERS_LINES, _MEMBERS_ITEMS = _members("lines", "line_no"), _members("items", "item_no")

# A case that no group goes on for, and none of whose members is open. If some of them went over to another case it has
# become part of that one.
_CLOSE = """
WITH ended AS (
    SELECT c.case_no, bool_or(m.moved) AS merged
    FROM cases AS c
    LEFT JOIN LATERAL (
        SELECT NOT l.standing AND o.line_no IS NOT NULL AS moved, l.standing AND o.line_no IS NOT NULL AS stays
        FROM case_lines AS l LEFT JOIN open_lines AS o USING (merchant_id, line_no)
        WHERE l.merchant_id = c.merchant_id AND l.case_no = c.case_no
        UNION ALL
        SELECT NOT i.standing AND o.item_no IS NOT NULL, i.standing AND o.item_no IS NOT NULL
        FROM case_items AS i LEFT JOIN open_items AS o USING (merchant_id, item_no)
        WHERE i.merchant_id = c.merchant_id AND i.case_no = c.case_no
    ) AS m ON true
    WHERE c.merchant_id = %(merchant)s AND c.state IN ('OPEN', 'PROPOSED')
    GROUP BY c.case_no HAVING NOT bool_or(coalesce(m.stays, false))
), closed AS (
    UPDATE cases AS c SET state = 'CLOSED', outcome = CASE WHEN e.merged THEN 'MERGED' ELSE 'MATCHED' END,
                          closed_at = now(), version = c.version + 1
    FROM ended AS e WHERE c.merchant_id = %(merchant)s AND c.case_no = e.case_no
    RETURNING c.case_no, c.version, c.outcome
), noted AS (
    INSERT INTO case_events (merchant_id, case_no, number, type, actor, data)
    SELECT %(merchant)s, case_no, version, 'closed', %(actor)s,
           json_build_object('outcome', outcome, 'run', %(run)s::text)
    FROM closed
)
INSERT INTO touched SELECT case_no, false, true FROM closed
"""


def _leave_matched(side: str, key: str) -> str:
    """A case that goes on does so without what has been matched, and one that is closed stands for nothing."""
    return f"""
    UPDATE case_{side} AS m SET standing = false FROM cases AS c
    WHERE m.merchant_id = %(merchant)s AND m.standing AND c.merchant_id = m.merchant_id AND c.case_no = m.case_no
      AND (c.state = 'CLOSED' OR NOT EXISTS (
          SELECT FROM open_{side} AS o WHERE o.merchant_id = m.merchant_id AND o.{key} = m.{key}))
    """


_LEAVE_MATCHED_LINES, _LEAVE_MATCHED_ITEMS = (
    _leave_matched("lines", "line_no"),
    _leave_matched("items", "item_no"),
)

_NOTE_STANDING = """
INSERT INTO touched SELECT case_no, false, false FROM cases
WHERE merchant_id = %(merchant)s AND state <> 'CLOSED' AND case_no NOT IN (SELECT case_no FROM touched)
"""

# What matched on another day than it may, and had no case that told so before.
_LATE = """
CREATE TEMPORARY TABLE late_groups ON COMMIT DROP AS
SELECT row_number() OVER (ORDER BY match_no) AS place, match_no, days, NULL::bigint AS case_no
FROM late AS t
WHERE NOT EXISTS (
    SELECT FROM matched_lines AS m JOIN case_lines AS c USING (merchant_id, line_no)
    WHERE m.merchant_id = %(merchant)s AND m.line_no >= t.match_no AND m.match_no = t.match_no AND m.run_id = %(run)s
) AND NOT EXISTS (
    SELECT FROM matched_items AS m JOIN case_items AS c USING (merchant_id, item_no)
    WHERE m.merchant_id = %(merchant)s AND m.match_no = t.match_no AND m.run_id = %(run)s
)
"""

_OPEN_LATE = """
WITH sums AS (
    SELECT g.place, l.reference, l.bank_minor, l.currency, l.lines, i.items, i.ledger_minor, i.since
    FROM late_groups AS g
    JOIN (SELECT m.match_no, count(*) AS lines, sum(l.amount_minor) AS bank_minor, min(l.currency) AS currency,
                 coalesce(nullif(min(l.reference), ''), nullif(min(l.batch_reference), ''),
                          min(l.counterpart_reference)) AS reference
          FROM matched_lines AS m JOIN lines AS l USING (merchant_id, line_no)
          WHERE m.merchant_id = %(merchant)s AND m.run_id = %(run)s GROUP BY m.match_no) AS l USING (match_no)
    JOIN (SELECT m.match_no, count(*) AS items, min(i.value_on) AS since, sum(i.amount_minor) AS ledger_minor
          FROM matched_items AS m JOIN items AS i USING (merchant_id, item_no)
          WHERE m.merchant_id = %(merchant)s AND m.run_id = %(run)s GROUP BY m.match_no) AS i USING (match_no)
), new AS (
    INSERT INTO cases (merchant_id, kind, state, outcome, closed_at, bank_minor, bank_currency, ledger_minor,
                       ledger_currency, reference, lines, items, since, opened_run)
    SELECT %(merchant)s, 'LATE', 'CLOSED', 'MATCHED', now(), bank_minor, currency, bank_minor, currency, reference,
           lines, items, since, %(run)s
    FROM sums ORDER BY place
    RETURNING case_no
), placed AS (SELECT case_no, row_number() OVER (ORDER BY case_no) AS place FROM new)
UPDATE late_groups AS g SET case_no = p.case_no FROM placed AS p WHERE g.place = p.place
"""

_NOTE_LATE = """
INSERT INTO case_events (merchant_id, case_no, number, type, actor, data)
SELECT %(merchant)s, case_no, 1, 'closed', %(actor)s,
       json_build_object('kind', 'LATE', 'outcome', 'MATCHED', 'run', %(run)s::text, 'days', days)
FROM late_groups
"""


def _late_members(side: str, key: str) -> str:
    return f"""
    INSERT INTO case_{side} (merchant_id, case_no, {key}, standing)
    SELECT %(merchant)s, g.case_no, m.{key}, false
    FROM late_groups AS g JOIN matched_{side} AS m USING (match_no)
    WHERE m.merchant_id = %(merchant)s AND m.run_id = %(run)s
    """


def _save_late(connection: Connection, params: dict[str, str]) -> None:
    """Keep a record of what came on another day than it may: a case that is closed by the match that shows it."""
    if not count(connection, "SELECT count(*) FROM late"):
        return
    connection.execute("DROP TABLE IF EXISTS late_groups")
    for statement in (
        _LATE, _OPEN_LATE, _NOTE_LATE, _late_members("lines", "line_no"), _late_members("items", "item_no"),
        "INSERT INTO touched SELECT case_no, true, true FROM late_groups",
    ):  # fmt: skip
        connection.execute(statement.encode(), params)
