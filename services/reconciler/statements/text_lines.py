"""Lines of text out of a stream of bytes, in bounded memory, whatever the encoding and the ends of lines. Pure.

UTF-8 is tried first, line by line; what is not UTF-8 is read as Windows-1252, which every byte of Latin-1 text is too.
UTF-16 is recognised by its mark, or by every other byte being zero. References and amounts are ASCII in every format,
so that a wrong guess costs an umlaut and no money.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from typing import BinaryIO

from services.reconciler.domain.statement import Refusal

CHUNK_BYTES = 256 * 1024
LINE_BYTES_MAX = 1024 * 1024
"""Longest line. Banks write lines of up to some hundred characters; this bounds what a hostile file makes us hold."""


class Rewound:
    """A stream of which the beginning has been looked at already, and is read again."""

    def __init__(self, head: bytes, rest: BinaryIO | Rewound) -> None:
        self._head = head
        self._rest = rest

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none at the end. A short answer does not mean the end."""
        if self._head:
            piece, self._head = self._head[:size], self._head[size:]
            return piece
        return self._rest.read(size) or b""


def peek(stream: BinaryIO | Rewound, size: int) -> tuple[bytes, Rewound]:
    """Up to `size` bytes from the beginning of a stream that need not seek, and the stream with all of its bytes."""
    pieces, wanted = [], size
    while wanted and (piece := stream.read(wanted)):
        pieces.append(piece)
        wanted -= len(piece)
    head = b"".join(pieces)
    return head, Rewound(head, stream)


def utf16_codec(head: bytes) -> str | None:
    """The codec of text in UTF-16 or UTF-32, by its first bytes; None for everything else."""
    for mark, codec in (
        (codecs.BOM_UTF32_LE, "utf-32"),
        (codecs.BOM_UTF32_BE, "utf-32"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
    ):
        if head.startswith(mark):
            return codec
    sample = head[:64]
    if len(sample) >= 4 and not any(sample[1::2]) and all(sample[0:-1:2]):
        return "utf-16-le"
    if len(sample) >= 4 and not any(sample[0::2]) and all(sample[1::2]):
        return "utf-16-be"
    return None


def utf8_chunks(stream: BinaryIO | Rewound) -> Iterator[bytes]:
    """The bytes of a stream in pieces, without a byte order mark; UTF-16 and UTF-32 become UTF-8."""
    head = stream.read(CHUNK_BYTES)
    codec = utf16_codec(head)
    if codec is None:
        yield head.removeprefix(codecs.BOM_UTF8)
        while chunk := stream.read(CHUNK_BYTES):
            yield chunk
        return
    decoder = codecs.getincrementaldecoder(codec)()
    chunk = head
    try:
        while chunk:
            yield decoder.decode(chunk).encode()
            chunk = stream.read(CHUNK_BYTES)
        yield decoder.decode(b"", final=True).encode()
    except UnicodeError:
        raise Refusal(
            0, "encoding", f"the text begins as {codec.upper()} and does not go on so; save it as UTF-8"
        ) from None


def text_lines(stream: BinaryIO | Rewound) -> Iterator[tuple[int, str]]:
    """Number, from 1, and text of each line, without its end. Raises Refusal for lines that no bank writes."""
    number = 0
    rest = b""
    for chunk in utf8_chunks(stream):
        data = rest + chunk
        lines = data.splitlines(keepends=True)
        # The last line may go on in the next chunk, and so may a line end of two bytes.
        rest = lines.pop() if lines else b""
        for line in lines:
            number += 1
            yield number, _text(number, line)
        if len(rest) > LINE_BYTES_MAX:
            _text(number + 1, rest)
    if rest:
        yield number + 1, _text(number + 1, rest)


def _text(number: int, line: bytes) -> str:
    if len(line) > LINE_BYTES_MAX:
        raise Refusal(
            number, "line", f"is longer than {LINE_BYTES_MAX:,} bytes; a statement has no such lines"
        )
    if b"\0" in line:
        raise Refusal(
            number, "encoding", "there is a NUL byte in the text: this is not a text file, or a damaged one"
        )
    try:
        text = line.decode()
    except UnicodeDecodeError:
        text = line.decode("cp1252", "replace")
    return text.rstrip("\r\n")
