"""Statements into tables: every event of a file goes into a temporary table by COPY as it is read, and from there, when
the file is known to be whole, into the books in three statements.

What makes an import repeatable: a file is known by its hash, a statement by account, currency and the bank's own name
for it, a line by its place in its statement. Where two statements of an account tell of the same days (a weekly one
after daily ones), a line with the bank's own reference, and otherwise equal, is the same line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from services.reconciler.domain.statement import Closed, Event, Line, Opened, Refusal
from services.reconciler.store.connection import Connection, count

ROWS_AT_ONCE = 2_000
"""Events that are sent in one piece; also how often a run looks whether it is to end."""
TEXT_CHARACTERS_MAX = 2_000
"""What is kept of a line's text for people. Everything that matching uses is kept whole, or refused."""

_SPECIAL = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})
_HAS_SPECIAL = re.compile(r"[\\\t\n\r]").search


class Imported(NamedTuple):
    """What came of a file."""

    name: str
    statements: int
    lines_new: int
    lines_known: int
    already_imported: bool = False


def find_file(connection: Connection, merchant_id: str, sha256: bytes) -> Imported | None:
    """What came of a file when it was imported, if it was."""
    row = connection.execute(
        """
        SELECT name, statements, lines_new + lines_known FROM statement_files
        WHERE merchant_id = %s AND sha256 = %s
        """,
        [merchant_id, sha256],
    ).fetchone()
    return None if row is None else Imported(row[0], row[1], 0, row[2], already_imported=True)


def insert_events(connection: Connection, events: Iterable[Event], progress: Callable[[int], None]) -> int:
    """Put the events of one file into the temporary table `incoming`; returns how many lines there are. `progress` is
    told their number now and then, and may raise to stop."""
    connection.execute("DROP TABLE IF EXISTS incoming")
    connection.execute(
        """
        CREATE TEMPORARY TABLE incoming (
            section integer NOT NULL, number integer NOT NULL, place integer NOT NULL, day date, value_date date,
            amount_minor bigint NOT NULL, currency text NOT NULL, reference text NOT NULL,
            counterpart_reference text NOT NULL, batch_reference text NOT NULL, kind text NOT NULL, text text NOT NULL,
            reversal boolean NOT NULL
        ) ON COMMIT DROP
        """
    )
    rows = _rows(events)
    total = 0
    with connection.cursor().copy("COPY incoming FROM STDIN") as copy:
        piece: list[str] = []
        for is_line, row in rows:
            piece.append(row)
            total += is_line
            if len(piece) >= ROWS_AT_ONCE:
                copy.write("".join(piece))
                piece.clear()
                progress(total)
        copy.write("".join(piece))
    progress(total)
    connection.execute("ANALYZE incoming")
    return total


def _rows(events: Iterable[Event]) -> Iterator[tuple[bool, str]]:
    """One row an event, in COPY's text format, and whether it is a line. The opening of a section has number 0 and its
    closing -1; account and statement stand in the columns of references."""
    section = 0
    currency = ""
    for event in events:
        if isinstance(event, Line):
            text = event.text
            if len(text) > TEXT_CHARACTERS_MAX:
                text = text[:TEXT_CHARACTERS_MAX] + " …"
            words = (
                f"{event.reference}\x00{event.counterpart_reference}\x00{event.batch_reference}\x00{event.kind}"
                f"\x00{text}"
            )
            row = (
                f"{section}\t{event.number}\t{event.line}\t{event.booking_date}\t{event.value_date}"
                f"\t{event.amount_minor}\t{currency}\t{_escaped(words, event.line)}"
                f"\t{'t' if event.reversal else 'f'}\n"
            )
            yield True, row
        elif isinstance(event, Opened):
            section += 1
            currency = event.currency
            yield False, _edge(section, 0, event.line, event.opening_date, event.opening_minor, event)
        else:
            yield False, _edge(section, -1, event.line, event.closing_date, event.closing_minor, event)


def _edge(
    section: int, number: int, line: int, day: object, amount_minor: int, event: Opened | Closed
) -> str:
    names = (event.account, event.statement_id, event.currency) if isinstance(event, Opened) else ("", "", "")
    words = _escaped("\x00".join((names[0], names[1], "", "", "")), line)
    return (
        f"{section}\t{number}\t{line}\t{day or chr(92) + 'N'}\t\\N\t{amount_minor}\t{names[2]}\t{words}\tf\n"
    )


def _escaped(words: str, line: int) -> str:
    """Columns that were joined by NUL, each escaped. Raises Refusal for a NUL of the file's own."""
    if words.count("\x00") != 4:
        raise Refusal(line, "text", "contains a NUL character")
    if _HAS_SPECIAL(words):
        words = words.translate(_SPECIAL)
    return words.replace("\x00", "\t")


_STATEMENTS = """
CREATE TEMPORARY TABLE sections ON COMMIT DROP AS
SELECT o.section, o.place, o.reference AS account, o.currency::char(3) AS currency,
       o.counterpart_reference AS statement_id, o.amount_minor AS opening_minor, c.amount_minor AS closing_minor,
       o.day AS opening_date, c.day AS closing_date,
       coalesce(l.lines, 0) AS lines, coalesce(l.lines_minor, 0)::bigint AS lines_minor, l.first_day, l.last_day,
       c.text AS unproved, NULL::bigint AS statement_no, false AS known
FROM incoming AS o
JOIN incoming AS c ON c.section = o.section AND c.number = -1
LEFT JOIN (
    SELECT section, count(*) AS lines, sum(amount_minor) AS lines_minor, min(day) AS first_day, max(day) AS last_day
    FROM incoming WHERE number > 0 GROUP BY section
) AS l ON l.section = o.section
WHERE o.number = 0
"""

_REPEATED_SECTIONS = """
SELECT min(place), max(place), account, currency, statement_id FROM sections
GROUP BY account, currency, statement_id HAVING count(*) > 1 ORDER BY 2 LIMIT 1
"""

_KNOWN_SECTIONS = """
UPDATE sections AS s SET statement_no = k.statement_no, known = true
FROM statements AS k
WHERE k.merchant_id = %(merchant)s AND k.account = s.account AND k.currency = s.currency
  AND k.statement_id = s.statement_id
"""

_CHANGED_SECTIONS = """
SELECT s.place, s.statement_id,
       format('opening %%s, %%s lines, closing %%s', k.opening_minor, k.lines, k.closing_minor),
       format('opening %%s, %%s lines, closing %%s', s.opening_minor, s.lines, s.closing_minor)
FROM sections AS s JOIN statements AS k ON k.merchant_id = %(merchant)s AND k.statement_no = s.statement_no
WHERE (k.opening_minor, k.lines, k.closing_minor) IS DISTINCT FROM (s.opening_minor, s.lines, s.closing_minor)
ORDER BY s.place LIMIT 1
"""

_CHANGED_LINES = """
SELECT n.place, s.statement_id, n.number
FROM sections AS s
JOIN incoming AS n ON n.section = s.section AND n.number > 0
LEFT JOIN lines AS l ON l.merchant_id = %(merchant)s AND l.statement_no = s.statement_no AND l.number = n.number
WHERE s.known AND l.line_no IS NOT NULL
  AND (l.booking_date, l.value_date, l.amount_minor, l.reference, l.counterpart_reference, l.batch_reference)
      IS DISTINCT FROM (n.day, n.value_date, n.amount_minor, n.reference, n.counterpart_reference, n.batch_reference)
ORDER BY n.place LIMIT 1
"""

_INSERT_STATEMENTS = """
WITH new AS (
    INSERT INTO statements (merchant_id, account, currency, statement_id, sha256, opening_minor, lines_minor,
                            closing_minor, opening_date, closing_date, lines, first_day, last_day, unproved)
    SELECT %(merchant)s, account, currency, statement_id, %(sha256)s, opening_minor, lines_minor, closing_minor,
           opening_date, closing_date, lines, first_day, last_day, unproved
    FROM sections WHERE NOT known ORDER BY section
    RETURNING statement_no, account, currency, statement_id
)
UPDATE sections AS s SET statement_no = new.statement_no FROM new
WHERE s.account = new.account AND s.currency = new.currency AND s.statement_id = new.statement_id AND NOT s.known
"""

_OVERLAPS = """
SELECT count(*) FROM sections AS s JOIN statements AS k
  ON k.merchant_id = %(merchant)s AND k.account = s.account AND k.currency = s.currency
 AND k.statement_no <> s.statement_no AND k.first_day <= s.last_day AND k.last_day >= s.first_day
WHERE NOT s.known
"""

# Of equal lines of one booking the first is the first, the second the second …, in either statement.
_TOLD_BEFORE = """
WITH told AS (
    SELECT k.account, l.currency, l.counterpart_reference, l.reference, l.booking_date, l.amount_minor,
           row_number() OVER (PARTITION BY l.statement_no, l.counterpart_reference, l.reference, l.booking_date,
                              l.amount_minor ORDER BY l.number) AS nth
    FROM (SELECT DISTINCT k.* FROM sections AS s JOIN statements AS k
            ON k.merchant_id = %(merchant)s AND k.account = s.account AND k.currency = s.currency
           AND k.statement_no <> s.statement_no AND k.first_day <= s.last_day AND k.last_day >= s.first_day
          WHERE NOT s.known) AS k
    JOIN lines AS l ON l.merchant_id = %(merchant)s AND l.statement_no = k.statement_no
    WHERE l.counterpart_reference <> ''
), incoming_lines AS (
    SELECT n.section, n.number, s.account, s.currency, n.counterpart_reference, n.reference, n.day, n.amount_minor,
           row_number() OVER (PARTITION BY n.section, n.counterpart_reference, n.reference, n.day, n.amount_minor
                              ORDER BY n.number) AS nth
    FROM incoming AS n JOIN sections AS s USING (section)
    WHERE n.number > 0 AND n.counterpart_reference <> '' AND NOT s.known
)
DELETE FROM incoming AS n USING incoming_lines AS i JOIN told AS t
  ON t.account = i.account AND t.currency = i.currency AND t.counterpart_reference = i.counterpart_reference
 AND t.reference = i.reference AND t.booking_date = i.day AND t.amount_minor = i.amount_minor AND t.nth = i.nth
WHERE n.section = i.section AND n.number = i.number
"""

# In the order of the file, in which they came.
_INSERT_LINES = """
INSERT INTO lines (merchant_id, statement_no, number, booking_date, value_date, amount_minor, currency, reference,
                   counterpart_reference, batch_reference, kind, text, reversal)
SELECT %(merchant)s, s.statement_no, n.number, n.day, n.value_date, n.amount_minor, s.currency, n.reference,
       n.counterpart_reference, n.batch_reference, n.kind, n.text, n.reversal
FROM incoming AS n JOIN sections AS s USING (section)
WHERE n.number > 0 AND NOT s.known
ORDER BY n.section, n.number
"""

_OPEN_LINES = """
INSERT INTO work_lines
SELECT l.line_no, l.currency, l.amount_minor, l.booking_date, l.value_date, l.reference, l.counterpart_reference,
       l.batch_reference
FROM sections AS s JOIN lines AS l ON l.merchant_id = %(merchant)s AND l.statement_no = s.statement_no
WHERE NOT s.known
"""

_INSERT_FILE = """
INSERT INTO statement_files (merchant_id, sha256, name, size_bytes, statements, lines_new, lines_known)
VALUES (%(merchant)s, %(sha256)s, %(name)s, %(size_bytes)s, %(statements)s, %(new)s, %(known)s)
"""


def insert_file(
    connection: Connection, merchant_id: str, sha256: bytes, name: str, size_bytes: int, lines: int
) -> Imported:
    """Move what `insert_events` has put down into the books, and its new lines into `work_lines`. Raises Refusal for
    a statement that was imported before and said something else then."""
    params: dict[str, object] = {"merchant": merchant_id, "sha256": sha256}
    connection.execute("DROP TABLE IF EXISTS sections")
    connection.execute(_STATEMENTS)
    _check_repeated(connection)
    if connection.execute(_KNOWN_SECTIONS.encode(), params).rowcount:
        _check_known(connection, params)
    connection.execute(_INSERT_STATEMENTS.encode(), params)
    if count(connection, _OVERLAPS, params):
        connection.execute(_TOLD_BEFORE.encode(), params)
    new = connection.execute(_INSERT_LINES.encode(), params).rowcount
    connection.execute(_OPEN_LINES.encode(), params)
    statements = count(connection, "SELECT count(*) FROM sections")
    params |= {
        "name": name, "size_bytes": size_bytes, "statements": statements, "new": new, "known": lines - new
    }  # fmt: skip
    connection.execute(_INSERT_FILE.encode(), params)
    connection.execute("DROP TABLE incoming, sections")
    return Imported(name, statements, new, lines - new)


def _check_repeated(connection: Connection) -> None:
    row = connection.execute(_REPEATED_SECTIONS).fetchone()
    if row is not None:
        raise Refusal(
            row[1],
            "statement",
            f"{row[4]!r} of account {row[2]!r} ({row[3]}) stands in this file twice: line {row[0]}",
        )


def _check_known(connection: Connection, params: dict[str, object]) -> None:
    changed = connection.execute(_CHANGED_SECTIONS.encode(), params).fetchone()
    if changed is not None:
        place, statement_id, before, now = changed
        raise Refusal(
            place,
            "statement",
            f"{statement_id!r} was imported before with {before}, and now has {now} (minor units)",
        )
    line = connection.execute(_CHANGED_LINES.encode(), params).fetchone()
    if line is not None:
        place, statement_id, number = line
        raise Refusal(
            place, "line", f"{number} of {statement_id!r} was imported before and said something else then"
        )
