"""What the reconciler's database can say of itself. Like `queries`: an offender is (merchant, identifier, the rest of a
sentence that begins with the identifier)."""

from __future__ import annotations

COUNT_STATEMENTS = "SELECT count(*) FROM statements"
# A line that another statement of the same days has told is not stored twice, so there may be fewer than the bank says.
STATEMENTS_APART = """
SELECT s.merchant_id, s.statement_id,
       format('opens with %s and closes with %s %s; the bank says %s lines of %s, and there are %s of %s',
              s.opening_minor, s.closing_minor, s.currency, s.lines, s.lines_minor, coalesce(l.lines, 0),
              coalesce(l.minor, 0))
FROM statements AS s LEFT JOIN (
    SELECT merchant_id, statement_no, count(*) AS lines, sum(amount_minor) AS minor FROM lines GROUP BY 1, 2
) AS l ON l.merchant_id = s.merchant_id AND l.statement_no = s.statement_no
LEFT JOIN (
    SELECT DISTINCT s.merchant_id, s.statement_no FROM statements AS s JOIN statements AS o
      ON o.merchant_id = s.merchant_id AND o.account = s.account AND o.currency = s.currency
     AND o.statement_no <> s.statement_no AND o.first_day <= s.last_day AND o.last_day >= s.first_day
) AS overlapping ON overlapping.merchant_id = s.merchant_id AND overlapping.statement_no = s.statement_no
WHERE s.opening_minor + s.lines_minor <> s.closing_minor
   OR coalesce(l.lines, 0) > s.lines
   OR (coalesce(l.lines, 0) < s.lines AND overlapping.statement_no IS NULL)
   OR (coalesce(l.lines, 0) = s.lines AND coalesce(l.minor, 0) <> s.lines_minor)
"""
LINES_WITHOUT_STATEMENT = """
SELECT l.merchant_id, 'line ' || l.line_no, format('is of the statement %s, which does not exist', l.statement_no)
FROM lines AS l LEFT JOIN statements AS s ON s.merchant_id = l.merchant_id AND s.statement_no = l.statement_no
WHERE s.statement_no IS NULL
"""

COUNT_LINES = "SELECT count(*) FROM lines"
COUNT_ITEMS = "SELECT count(*) FROM items"


def astray(side: str, one: str) -> str:
    """Lines, or items, that are not in exactly one place: matched or open, and if open and once a difference, in one
    case that stands."""
    key = f"{one}_no"
    return f"""
    SELECT merchant_id, '{one} ' || {key},
           CASE WHEN x.known IS NULL THEN 'is matched or open, and does not exist'
                WHEN m.known AND o.known THEN 'is matched, and open as well'
                WHEN m.known THEN format('is matched, and stands in %s cases', c.standing)
                WHEN o.known THEN format('is open, and of %s cases that it was in %s stand', c.cases, c.standing)
                ELSE 'is neither matched nor open' END
    FROM (SELECT merchant_id, {key}, true AS known FROM {side}) AS x
    FULL JOIN (SELECT merchant_id, {key}, true AS known FROM matched_{side}) AS m USING (merchant_id, {key})
    FULL JOIN (SELECT merchant_id, {key}, true AS known FROM open_{side}) AS o USING (merchant_id, {key})
    LEFT JOIN (
        SELECT merchant_id, {key}, count(*) AS cases,
               count(*) FILTER (WHERE m.standing AND c.state <> 'CLOSED') AS standing
        FROM case_{side} AS m JOIN cases AS c USING (merchant_id, case_no) GROUP BY 1, 2
    ) AS c USING (merchant_id, {key})
    WHERE x.known IS NULL OR (m.known IS NULL) = (o.known IS NULL)
       OR (m.known AND c.standing > 0) OR (o.known AND c.standing <> 1)
    """


def waiting(side: str, one: str) -> str:
    """Lines, or items, that are open and no difference yet: their day has not come."""
    key = f"{one}_no"
    return f"""
    SELECT o.merchant_id, '{one} ' || o.{key}, 'is open, and no difference yet'
    FROM open_{side} AS o LEFT JOIN case_{side} AS c ON c.merchant_id = o.merchant_id AND c.{key} = o.{key}
    WHERE c.{key} IS NULL ORDER BY o.merchant_id, o.{key}
    """


COUNT_MATCHES = """
SELECT count(*) FROM (
    SELECT merchant_id, match_no FROM matched_lines UNION SELECT merchant_id, match_no FROM matched_items
) AS matches
"""
# What two people have settled, and what moved nothing, needs no counterpart.
_MATCHES = """
(
    SELECT m.merchant_id, m.match_no, min(m.rule) AS rule, max(m.rule) AS last_rule, min(m.run_id) AS run,
           min(l.currency::text) AS currency, max(l.currency::text) AS last_currency, sum(l.amount_minor) AS minor
    FROM matched_lines AS m JOIN lines AS l ON l.merchant_id = m.merchant_id AND l.line_no = m.line_no GROUP BY 1, 2
) AS l FULL JOIN (
    SELECT m.merchant_id, m.match_no, min(m.rule) AS rule, max(m.rule) AS last_rule, min(m.run_id) AS run,
           min(i.currency::text) AS currency, max(i.currency::text) AS last_currency, sum(i.amount_minor) AS minor,
           sum(i.amount_minor - i.fee_minor) AS net_minor
    FROM matched_items AS m JOIN items AS i ON i.merchant_id = m.merchant_id AND i.item_no = m.item_no GROUP BY 1, 2
) AS i USING (merchant_id, match_no)
"""
_BY_RULE = "coalesce(l.rule, i.rule) NOT IN ('case', 'nothing_moved')"
MATCHES_APART = f"""
SELECT merchant_id, 'match ' || match_no,
       format('by the rule %s is of %s %s at the bank, and of %s %s in the books', coalesce(l.rule, i.rule),
              coalesce(l.minor::text, 'nothing'), l.currency, coalesce(i.minor::text, 'nothing'), i.currency)
FROM {_MATCHES}
WHERE {_BY_RULE} AND (
    l.rule IS NULL OR i.rule IS NULL OR l.rule <> l.last_rule OR i.rule <> i.last_rule OR l.rule <> i.rule
    OR l.run <> i.run OR l.currency <> l.last_currency OR i.currency <> i.last_currency OR l.currency <> i.currency)
"""
# Rules may allow a tolerance: that is no offence, but nobody should have to guess where it was used.
MATCHES_WITHIN_A_TOLERANCE = f"""
SELECT merchant_id, 'match ' || match_no,
       format('by the rule %s is of %s at the bank, and of %s (net %s) in the books', l.rule, l.minor, i.minor,
              i.net_minor)
FROM {_MATCHES} WHERE {_BY_RULE} AND l.minor <> i.minor AND l.minor <> i.net_minor
ORDER BY merchant_id, match_no
"""

COUNT_CASES = "SELECT count(*) FROM cases"
CASES_APART = """
SELECT c.merchant_id, 'case_' || c.case_no,
       format('is %s in version %s; it has %s events up to %s, and %s lines and items for which it stands', c.state,
              c.version, coalesce(e.events, 0), coalesce(e.last, 0), coalesce(m.standing, 0))
FROM cases AS c
LEFT JOIN (
    SELECT merchant_id, case_no, count(*) AS events, max(number) AS last FROM case_events GROUP BY 1, 2
) AS e ON e.merchant_id = c.merchant_id AND e.case_no = c.case_no
LEFT JOIN (
    SELECT merchant_id, case_no, count(*) AS standing FROM (
        SELECT merchant_id, case_no FROM case_lines WHERE standing
        UNION ALL SELECT merchant_id, case_no FROM case_items WHERE standing
    ) AS members GROUP BY 1, 2
) AS m ON m.merchant_id = c.merchant_id AND m.case_no = c.case_no
WHERE e.events IS DISTINCT FROM c.version OR e.last IS DISTINCT FROM c.version
   OR (c.state = 'CLOSED') = (coalesce(m.standing, 0) > 0)
"""
