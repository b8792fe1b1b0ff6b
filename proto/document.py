"""Writes docs/events.md from the contracts: every event, who announces it, when, and with what.

python proto/document.py            write it
python proto/document.py --check    say that it is stale and exit 1, change nothing
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from google.protobuf import descriptor_pb2
from grpc_tools import protoc

PROTO = Path(__file__).resolve().parent
TARGET = PROTO.parent / "docs" / "events.md"
WELL_KNOWN = Path(protoc.__file__).parent / "_proto"
FILES = ("events.proto", "choreography.proto")
"""Contracts whose messages are events."""
CARRIERS = "paymesh.events.v1"
"""The package of what carries events; it has none of its own."""
HELPERS = {"Slip", "Step"}

HEAD = """# Events

What services announce, made from the contracts by `make proto`; do not edit. How events travel, and why none is lost,
is in [services/kit/events](../services/kit/events/__init__.py) and
[decision 33](decisions/0033-positions-after-the-commit.md).

## How to listen

An event comes with its source, a position without gaps, a merchant, the thing it is about, the name of its message, and
the message. Read them by `ListEvents` of the service that announces them (`paymesh.events.v1.EventLogService`), or
inside the mesh with `services.kit.events.listen`. Each event is delivered at least once and applied once; those of one
thing come in order.

## Versions

- An event is a message of the package `paymesh.<service>.v1`; its full name is its type, for ever.
- Fields and events are added, never renamed, renumbered, removed or given another meaning; `make verify` compares with
  `proto/baseline.binpb`. What was ever announced can be read for ever.
- A listener passes over types and fields that it does not know, and takes an enum value that it does not know as the
  least favourable one.
- What cannot be said that way becomes a new message, in `v2` if need be; both are announced until nobody listens to the
  old one.
"""


def _descriptors() -> descriptor_pb2.FileDescriptorSet:
    with tempfile.TemporaryDirectory() as folder:
        out = os.path.join(folder, "all")  # noqa: PTH118 - an argument of protoc
        arguments = [
            "protoc",
            f"--proto_path={PROTO}",
            f"--proto_path={WELL_KNOWN}",
            f"--descriptor_set_out={out}",
            "--include_source_info",
            *(str(path) for path in sorted(PROTO.rglob("*.proto")) if path.name in FILES),
        ]
        if protoc.main(arguments) != 0:
            raise SystemExit("protoc refused the contracts")
        return descriptor_pb2.FileDescriptorSet.FromString(Path(out).read_bytes())


def document() -> str:
    """The whole text."""
    parts = [HEAD]
    for file in sorted(_descriptors().file, key=lambda one: one.package):
        if file.package == CARRIERS:
            continue
        comments = {tuple(one.path): one.leading_comments for one in file.source_code_info.location}
        parts.append(f"## {file.package}\n")
        for place, message in enumerate(file.message_type):
            kind = "" if message.name in HELPERS else f"`{file.package}.{message.name}`: "
            parts.append(f"### {message.name}\n\n{kind}{_prose(comments.get((4, place), ''))}\n")
            parts.append("| field | type | |\n|---|---|---|")
            parts += [
                f"| `{field.name}` = {field.number} | {_type(field)} | "
                f"{_prose(comments.get((4, place, 2, number), ''))} |"
                for number, field in enumerate(message.field)
            ]
            parts.append("")
    return "\n".join(parts).rstrip() + "\n"


def _prose(comment: str) -> str:
    return " ".join(comment.split()).replace("|", "\\|")


def _type(field: descriptor_pb2.FieldDescriptorProto) -> str:
    name = field.type_name.lstrip(".") or descriptor_pb2.FieldDescriptorProto.Type.Name(field.type)
    name = name.removeprefix("TYPE_").lower() if name.startswith("TYPE_") else name
    repeated = field.label == descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED
    return f"{'map ' if repeated and name.endswith('Entry') else 'repeated ' if repeated else ''}`{name}`"


def main() -> int:
    """Write or check; returns the exit code."""
    parser = argparse.ArgumentParser(description="Write docs/events.md from the contracts.")
    parser.add_argument("--check", action="store_true", help="only say whether it is stale")
    text = document()
    if parser.parse_args().check:
        if not TARGET.is_file() or TARGET.read_text(encoding="utf-8") != text:
            print("stale: docs/events.md (run `make proto`)", file=sys.stderr)
            return 1
        return 0
    TARGET.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
