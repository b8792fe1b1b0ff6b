"""Reports as files: JSON for machines, CSV for spreadsheets, a page for people."""

import csv
import io
import json
from dataclasses import asdict, fields
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

from google.protobuf.json_format import MessageToDict

from paymesh.amounts import format_amount
from paymesh.reconciler.v1 import reconciler_pb2 as pb
from paymesh.reconciliation.sending import Findings
from paymesh.reconciliation.words import KIND_SENTENCES, RULE_WORDS, Row, kind_word, row_of


def as_json(findings: Findings) -> dict[str, Any]:
    """Everything, in protobuf's JSON form with the names of the contract."""

    def plain(message: Any) -> dict[str, Any]:
        return MessageToDict(
            message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
        )

    return {
        "summary": plain(findings.summary),
        "differences": [plain(difference) for difference in findings.differences],
    }


def json_text(findings: Findings) -> str:
    """`as_json`, as text."""
    return json.dumps(as_json(findings), indent=2, ensure_ascii=False) + "\n"


def csv_text(findings: Findings) -> str:
    """One row a difference, with a heading. A text that a spreadsheet would take for a formula is quoted."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        [
            *(field.name for field in fields(Row)),
            "is_new",
            "at_bank_minor",
            "in_ledger_minor",
            "bank_currency",
            "ledger_currency",
        ]
    )
    for difference in findings.differences:
        case = difference.case
        words = [_harmless(value) for value in asdict(row_of(case)).values()]
        bank, ledger = case.HasField("at_bank"), case.HasField("in_ledger")
        writer.writerow(
            [
                *words,
                "true" if difference.is_new else "false",
                case.at_bank.amount_minor if bank else "",
                case.in_ledger.amount_minor if ledger else "",
                case.at_bank.currency,
                case.in_ledger.currency,
            ]
        )
    return text.getvalue()


def _harmless(value: object) -> object:
    """References come from banks, and what begins like a formula is one to a spreadsheet. Amounts may be negative."""
    if isinstance(value, str) and value[:1] in ("=", "+", "@", "\t", "\r"):
        return f"'{value}"
    return value


def page(findings: Findings) -> str:
    """A page that needs nothing else: to look at, to print, to send."""
    from jinja2 import Environment, StrictUndefined  # only a page needs it, and it takes its time

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(files(__package__).joinpath("page.html.jinja").read_text("utf-8"))
    summary = findings.summary
    matched = sum(rule.matches for rule in summary.rules)
    return template.render(
        summary=summary,
        made_at=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        standing=findings.standing,
        closed=sum(count.closed for count in summary.differences),
        matched=matched,
        matched_lines=sum(rule.lines for rule in summary.rules),
        matched_items=sum(rule.items for rule in summary.rules),
        rules=[
            {"name": RULE_WORDS.get(rule.name, rule.name.replace("_", " ")), "rule": rule,
             "share": 100 * rule.matches // max(matched, 1)}
            for rule in summary.rules
        ],
        counts=[_count(count) for count in summary.differences],
        rows=[(row_of(d.case), d.is_new, d.case.state == pb.CASE_STATE_CLOSED) for d in findings.differences],
    )  # fmt: skip


def _count(count: pb.Summary.Count) -> dict[str, Any]:
    return {
        "kind": kind_word(count.kind),
        "sentence": KIND_SENTENCES.get(count.kind, ""),
        "currency": count.currency,
        "count": count,
        "difference": format_amount(count.difference_minor, count.currency) if count.currency else "",
    }
