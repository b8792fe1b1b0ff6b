"""Every relative link and every #anchor in the documents leads somewhere."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

from tests.verify.repository import ROOT, name_of, tracked_files

DOCUMENTS = [path for path in tracked_files() if path.suffix == ".md"]
HTML_LINK = re.compile(r"""(?:href|src)\s*=\s*["']([^"']+)["']""", re.IGNORECASE)
HTML_ANCHOR = re.compile(r"""(?:id|name)\s*=\s*["']([^"']+)["']""", re.IGNORECASE)


def _tokens(text: str) -> Iterator[Token]:
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        yield token
        yield from token.children or ()


def links(text: str) -> list[str]:
    """Targets of all links and images, in order; code is not looked at."""
    found: list[str] = []
    for token in _tokens(text):
        if token.type in {"link_open", "image"}:
            found.append(str(token.attrGet("href") or token.attrGet("src") or ""))
        elif token.type in {"html_inline", "html_block"}:
            found.extend(HTML_LINK.findall(token.content))
    return found


def anchors(text: str) -> set[str]:
    """The names that headings get when the document is shown, and those given in HTML."""
    found: set[str] = set()
    seen: Counter[str] = Counter()
    tokens = MarkdownIt("commonmark").enable("table").parse(text)
    for before, token in zip([None, *tokens], tokens, strict=False):
        if before is not None and before.type == "heading_open":
            shown = "".join(c.content for c in token.children or () if c.type in {"text", "code_inline"})
            slug = re.sub(r"[^\w\- ]", "", shown.strip().lower()).replace(" ", "-")
            found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
            seen[slug] += 1
        if token.type in {"html_block", "inline"}:
            found.update(HTML_ANCHOR.findall(token.content))
    return found


def broken_links(document: Path, text: str) -> list[str]:
    """Each link of the document that leads nowhere, with the reason."""
    there = set(tracked_files())
    there.update(folder for path in tracked_files() for folder in path.parents)
    broken = []
    for link in links(text):
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            continue
        path = unquote(parts.path)
        # A leading slash means the root of the repository, as on the pages that show it.
        target = document if not path else (ROOT / path[1:] if path[0] == "/" else document.parent / path)
        target = target.resolve()
        if target != document and target not in there:
            broken.append(f"{link}: there is no such file")
        elif parts.fragment and target.suffix == ".md":
            shown = text if target == document else target.read_text(encoding="utf-8")
            if unquote(parts.fragment) not in anchors(shown):
                broken.append(f"{link}: there is no such heading")
    return broken


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_link_leads_somewhere(document: Path) -> None:
    assert broken_links(document, document.read_text(encoding="utf-8")) == []


def test_broken_links_are_seen() -> None:
    text = """# One `two`, three!

## Twice
## Twice
[a](#one-two-three) [b](#twice-1) [c](tests/conftest.py) [d](/Makefile) [e](tests/) [f](https://x.test/y)
[bad](#twice-2) ![bad](no.png) [bad][ref] <a href="nowhere.md">bad</a> `[code](nowhere)`

[ref]: tests/nothing.py
"""
    broken = [entry.partition(":")[0] for entry in broken_links(ROOT / "README.md", text)]
    assert broken == ["#twice-2", "no.png", "tests/nothing.py", "nowhere.md"]
