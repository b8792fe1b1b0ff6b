"""What can be wrong with statements, matches, cases and corrections."""

from __future__ import annotations

from tests.breakages.breakage import Breakage

_MATCHED = "(SELECT min(line_no) FROM matched_lines WHERE rule NOT IN ('case', 'nothing_moved'))"

RECONCILIATION = (
    Breakage(
        "a line of a statement was changed",
        {"reconciler": f"UPDATE lines SET amount_minor = amount_minor + 1 WHERE line_no = {_MATCHED};"},
        {"statements-add-up"},
        "opens with 0 and closes with",
    ),
    Breakage(
        "a line of a statement was deleted",
        {
            "reconciler": f"DELETE FROM lines WHERE line_no = {_MATCHED};"
            "DELETE FROM matched_items WHERE match_no NOT IN"
            " (SELECT match_no FROM matched_lines JOIN lines USING (line_no));"
            "DELETE FROM matched_lines WHERE line_no NOT IN (SELECT line_no FROM lines);"
            "INSERT INTO open_items SELECT merchant_id, item_no FROM items"
            " WHERE item_no NOT IN (SELECT item_no FROM matched_items UNION SELECT item_no FROM open_items);"
        },
        {"statements-add-up"},
        "lines of",
    ),
    Breakage(
        "a line is of no statement",
        {"reconciler": "DELETE FROM statements;"},
        {"statements-add-up"},
        "which does not exist",
    ),
    Breakage(
        "a line is forgotten",
        {"reconciler": "DELETE FROM open_lines;"},
        {"lines-accounted-for"},
        "is neither matched nor open",
    ),
    Breakage(
        "an item is matched and may be matched again",
        {"reconciler": "INSERT INTO open_items SELECT merchant_id, item_no FROM matched_items LIMIT 1;"},
        {"lines-accounted-for"},
        "is matched, and open as well",
    ),
    Breakage(
        "a difference was dropped from its case",
        {"reconciler": "UPDATE case_lines SET standing = false WHERE standing;"},
        {"lines-accounted-for", "cases-are-their-events"},
        "is open, and of 1 cases that it was in 0 stand",
    ),
    Breakage(
        "a match has no line any more",
        {
            "reconciler": f"DELETE FROM matched_lines WHERE line_no = {_MATCHED};"
            "INSERT INTO open_lines SELECT merchant_id, line_no FROM lines WHERE line_no NOT IN"
            " (SELECT line_no FROM matched_lines UNION SELECT line_no FROM open_lines);"
        },
        {"matches-have-two-sides"},
        "is of nothing",
    ),
    Breakage(
        "a match was made by two rules",
        {"reconciler": f"UPDATE matched_lines SET rule = 'mine' WHERE line_no = {_MATCHED};"},
        {"matches-have-two-sides"},
        "by the rule mine is of",
    ),
    Breakage(
        "what became of a case was deleted",
        {"reconciler": "DELETE FROM case_events WHERE number = 1;"},
        {"cases-are-their-events"},
        "is CLOSED in version",
    ),
    Breakage(
        "a correction was posted for less than was agreed on",
        {"reconciler": "UPDATE cases SET correct_minor = correct_minor + 1 WHERE outcome = 'CORRECTED';"},
        {"corrections-posted-once"},
        "is corrected by (",
    ),
    Breakage(
        "a correction was posted twice",
        {
            "payment": "INSERT INTO corrections SELECT merchant_id, 'cor_ghost', debit_account, credit_account,"
            " amount_minor, currency, reference, reason, proposed_by, approved_by, posted_at FROM corrections;"
            "INSERT INTO journal_entries (merchant_id, journal_id, line, account, amount_minor, currency)"
            " SELECT merchant_id, 'cor_ghost', line, account, amount_minor, currency"
            " FROM journal_entries WHERE journal_id LIKE 'cor\\_%';"
        },
        {"corrections-posted-once"},
        "and payment has posted cor_",
    ),
    Breakage(
        "a correction never reached the ledger",
        {"payment": "DELETE FROM corrections;DELETE FROM journal_entries WHERE journal_id LIKE 'cor\\_%';"},
        {"corrections-posted-once"},
        "and payment has posted nothing for it",
    ),
    Breakage(
        "a correction without its journal",
        {"payment": "DELETE FROM journal_entries WHERE journal_id LIKE 'cor\\_%';"},
        {"corrections-posted-once", "accounts"},
        "and its journal books nothing",
    ),
)
