"""Reads ISO 20022 camt.053, the bank's XML statement, as a stream. Pure.

Elements are found by their local names, so that versions 001.02 to 001.13 and whatever a bank wraps around them are one
format; see docs/statements.md for what is read of it.

A hostile file costs no more than an honest one. A document type, the only place where entities come from, is refused;
nothing is loaded from anywhere; libxml2 bounds depth (256) and text (10 MB) unless it is told not to; what has been
read is let go of at once; and a file that never finishes an entry is refused after `SILENCE_BYTES_MAX`.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from typing import BinaryIO, cast

from lxml import etree

from services.reconciler.domain.statement import Event, Refusal
from services.reconciler.statements.camt_entry import NAMES, line_of
from services.reconciler.statements.camt_section import Section
from services.reconciler.statements.exact import quoted
from services.reconciler.statements.text_lines import CHUNK_BYTES, Rewound, peek, utf8_chunks, utf16_codec

SILENCE_BYTES_MAX = 4 * 1024 * 1024
"""Longest stretch of a file in which nothing ends that we know: an entry, a transaction, a balance, a statement. Real
entries have some kilobytes. What is read in between is kept in memory, at up to thirty times its size."""

_TAGS = ("Document", "GrpHdr", "Acct", "Bal", "TxsSummry", "TxDtls", "Ntry", "Stmt", "BkToCstmrStmt")
_ROOTS = {"Document", "BkToCstmrStmt", "Stmt"}
LEVELS_MAX = 256
"""As deep as libxml2 goes."""
_LEVELS = {"TxDtls": 2, "Ntry": 1}
"""How many levels are cleared when an element ends. Transactions and entries come by the million, and what stands
before them further up is cleared when their entry, or their statement, ends."""
_NAMESPACE = re.compile(r"\{(?:.*:)?([a-z]{4}\.\d{3})\.\d{3}\.\d{2}\}")
_DOCTYPE = re.compile(rb"<!(?:DOCTYPE|ENTITY)", re.IGNORECASE)


def read_camt(stream: BinaryIO | Rewound, *, name: str) -> Iterator[Event]:
    """The events of a camt.053 document. Raises Refusal."""
    del name
    statements = last = 0
    silence_bytes = 0
    section: Section | None = None
    parser, chunks = _parser(stream)
    for chunk in chunks:
        _feed(parser, chunk)
        silence_bytes += len(chunk)
        for moment, element in cast("Iterator[tuple[str, etree._Element]]", parser.read_events()):
            local = NAMES[element.tag]
            if moment == "start":
                if local in _ROOTS:
                    _check_root(element, local)
                    last = line_of(element)
                    if local == "Stmt" and section is None:
                        statements += 1
                        section = Section(statements, element)
                continue
            if section is not None:
                known, events = section.ended(local, element)
                yield from events
                if not known:
                    continue
                if element is section.element:
                    section = None
            silence_bytes = 0
            _let_go(element, _LEVELS.get(local, LEVELS_MAX))
        if silence_bytes > SILENCE_BYTES_MAX:
            raise Refusal(
                0,
                "Document",
                f"{silence_bytes:,} bytes without an entry's end; this is not a bank's statement",
            )
    _finish(parser)
    if not statements:
        raise Refusal(last or 1, "BkToCstmrStmt/Stmt", "is missing: the document has no statement in it")


def _parser(stream: BinaryIO | Rewound) -> tuple[etree.XMLPullParser, Iterator[bytes]]:
    """A parser and what to feed it with. UTF-16 becomes UTF-8 here, for libxml2 to see one thing only."""
    head, rewound = peek(stream, CHUNK_BYTES)
    codec = utf16_codec(head)
    if _DOCTYPE.search(head if codec is None else head.replace(b"\0", b"")):
        raise Refusal(
            0, "DOCTYPE", "a document type with its entities is not allowed in a statement; banks send none"
        )
    encoding = "utf-8" if codec is not None or head.startswith(codecs.BOM_UTF8) else None
    parser = etree.XMLPullParser(
        events=("start", "end"),
        tag=[f"{{*}}{tag}" for tag in _TAGS],
        encoding=encoding,
        resolve_entities=False,
        load_dtd=False,
        no_network=True,
        huge_tree=False,
        remove_comments=True,
        remove_pis=True,
        collect_ids=False,
    )
    return parser, utf8_chunks(rewound) if encoding else _raw_chunks(rewound)


def _raw_chunks(stream: Rewound) -> Iterator[bytes]:
    while chunk := stream.read(CHUNK_BYTES):
        yield chunk


def _feed(parser: etree.XMLPullParser, chunk: bytes) -> None:
    try:
        parser.feed(chunk)
    except etree.XMLSyntaxError as error:
        raise _malformed(error) from None


def _finish(parser: etree.XMLPullParser) -> None:
    try:
        parser.close()
    except etree.XMLSyntaxError as error:
        raise _malformed(error) from None


def _malformed(error: etree.XMLSyntaxError) -> Refusal:
    line, column = error.position
    found = (error.msg or "cannot be read").strip()
    return Refusal(
        line or 0, "XML", f"column {column}: {quoted_sentence(found)}; ask the bank for a whole file"
    )


def quoted_sentence(text: str) -> str:
    """What libxml2 says, on one line and not longer than a sentence: it repeats names out of the file."""
    return re.sub(r"[^ -~]+", " ", text)[:200]


def _check_root(element: etree._Element, local: str) -> None:
    """Refuses another message of the family by its name: a camt.054 holds the same entries, twice."""
    if element.getroottree().docinfo.internalDTD is not None:
        raise Refusal(
            0, "DOCTYPE", "a document type with its entities is not allowed in a statement; banks send none"
        )
    match = _NAMESPACE.match(str(element.tag))
    if local == "Document" and match is not None and match[1] != "camt.053":
        raise Refusal(
            line_of(element),
            "Document",
            f"is a {quoted(match[1])}; only camt.053, the booked statement of a day, is read",
        )


def _let_go(element: etree._Element, levels: int) -> None:
    """Frees what has been read: the inside of the element, and what stands before it, also on some levels above."""
    element.clear()
    above: etree._Element | None = element
    for _ in range(levels):
        parent = above.getparent() if above is not None else None
        if parent is None:
            return
        while parent[0] is not above:
            del parent[0]
        above = parent
