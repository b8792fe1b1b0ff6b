"""Logs: one JSON object a line on standard error, with the ids of the trace that was under way.

No code of ours writes a card number into a log. Should a library, or the text of an error, do it nevertheless, the
number is masked on its way out.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import UTC, datetime

from opentelemetry import trace

from services.kit.checks import passes_luhn

_LIKE_A_CARD = re.compile(r"(?<![0-9A-Za-z])[2-6][0-9]{12,18}(?![0-9A-Za-z])")
"""Card numbers begin with 2 to 6; milliseconds since 1970 begin with 1, and identifiers have letters around."""
MASK = "[card number]"


class _JsonLines(logging.Formatter):
    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "service": self._service,
            "logger": record.name,
            "message": record.getMessage(),
        }
        context = trace.get_current_span().get_span_context()
        if context.is_valid:
            line["trace_id"] = f"{context.trace_id:032x}"
            line["span_id"] = f"{context.span_id:016x}"
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return mask(json.dumps(line, ensure_ascii=False))


def mask(text: str) -> str:
    """The text without what has the form and the check digit of a card number."""
    return _LIKE_A_CARD.sub(lambda found: MASK if passes_luhn(found.group()) else found.group(), text)


def set_up(service: str, level: str) -> None:
    """Configure logging; once, at the start of the process."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonLines(service))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
