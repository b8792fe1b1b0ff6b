"""Generates the Python code of the contracts: messages, stubs and their types, into clients/python.

    python proto/generate.py            write it
    python proto/generate.py --check    say what is stale and exit 1, change nothing

Folder = proto package = Python package, so nothing is rewritten after protoc. Everything under
clients/python/paymesh/<name>/v<number>/ is generated; what protoc no longer makes is removed.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

PROTO = Path(__file__).resolve().parent
CLIENT = PROTO.parent / "clients" / "python"
WELL_KNOWN = Path(grpc_tools.__file__).parent / "_proto"
# The whole mesh is asyncio: typing the stubs for both worlds would make every `await` ambiguous.
GRPC_TYPES = "quiet,only_async,generate_concrete_servicer_stubs"


def generate(target: Path) -> dict[Path, bytes]:
    """Run protoc into the empty folder `target` and return the files to keep, by path relative to it."""
    contracts = sorted(PROTO.rglob("*.proto"))
    # protoc looks for its plugins in PATH, and this interpreter's folder need not be there.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    arguments = [
        "protoc",
        f"--proto_path={PROTO}",
        f"--proto_path={WELL_KNOWN}",
        f"--python_out={target}",
        f"--grpc_python_out={target}",
        f"--mypy_out=quiet:{target}",
        f"--mypy_grpc_out={GRPC_TYPES}:{target}",
        *(str(path) for path in contracts),
    ]
    if protoc.main(arguments) != 0:
        raise SystemExit("protoc refused the contracts")
    for contract in contracts:
        relative = contract.relative_to(PROTO).with_suffix("")
        if "\nservice " not in contract.read_text(encoding="utf-8"):
            # protoc writes a stub file for a contract without a service, too: it would be empty.
            for suffix in (".py", ".pyi"):
                (target / f"{relative}_pb2_grpc{suffix}").unlink(missing_ok=True)
        # Without these files the packages would be namespace packages, which mypy loses sight of in
        # incremental runs and import-linter does not see at all.
        name = ".".join(relative.parent.parts)
        (target / relative.parent / "__init__.py").write_text(
            f'"""Generated from the proto package {name}."""\n'
        )
        (target / relative.parent.parent / "__init__.py").touch()
    return {
        path.relative_to(target): path.read_bytes() for path in sorted(target.rglob("*")) if path.is_file()
    }


def committed() -> set[Path]:
    """The generated files that are there now, relative to clients/python."""
    versions = [folder for folder in (CLIENT / "paymesh").glob("*/v[0-9]*") if folder.is_dir()]
    found = [path for folder in versions for path in folder.rglob("*.py*") if path.suffix in {".py", ".pyi"}]
    return {path.relative_to(CLIENT) for path in found}


def main() -> int:
    """Write or check; returns the exit code."""
    parser = argparse.ArgumentParser(description="Generate the Python code of the contracts.")
    parser.add_argument("--check", action="store_true", help="only say what is stale")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as folder:
        wanted = generate(Path(folder))
    stale = sorted(
        path
        for path, content in wanted.items()
        if not (CLIENT / path).is_file() or (CLIENT / path).read_bytes() != content
    )
    surplus = sorted(committed() - wanted.keys())
    if check:
        for path in stale + surplus:
            print(f"stale: clients/python/{path} (run `make proto`)", file=sys.stderr)
        return 1 if stale or surplus else 0
    for path in stale:
        (CLIENT / path).parent.mkdir(parents=True, exist_ok=True)
        (CLIENT / path).write_bytes(wanted[path])
    for path in surplus:
        (CLIENT / path).unlink()
    print(f"{len(wanted)} files generated, {len(stale)} changed, {len(surplus)} removed")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
