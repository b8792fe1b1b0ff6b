"""Who may import what, file by file. What follows from chains of imports is checked by import-linter.

A service has one shape, and each file of it one job: `domain` decides, `store` talks to the database, `service` and
`clients` talk to the wire, `__main__` puts them together. A file may also be a folder of that name.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.verify.repository import ROOT

# Standard modules that reach out of the process or run things beside the caller: a decision needs none of them.
STANDARD_IO = {
    "asyncio", "concurrent", "ctypes", "fcntl", "ftplib", "http", "imaplib", "io", "logging", "mmap", "multiprocessing",
    "os", "pathlib", "poplib", "queue", "select", "selectors", "shutil", "signal", "smtplib", "socket", "socketserver",
    "sqlite3", "ssl", "subprocess", "tempfile", "threading", "urllib",
}  # fmt: skip
# Reading an address is arithmetic, wherever the function lives.
STANDARD_PURE = {"socket.AF_INET", "socket.AF_INET6", "socket.inet_ntop", "socket.inet_pton"}
PURE_KIT = {
    f"services.kit.{name}"
    for name in ("backoff", "checks", "clock", "deadline", "errors", "ids", "money", "statements")
}
# What the pure half of the kit stands on: tables and numbers.
PURE_LIBRARIES = {"iso4217", "uuid_utils"}
STORES = {f"services.kit.{name}" for name in ("db", "idempotency", "migrate", "outbox", "process", "session")}


def _module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    _module(path): path for top in ("services", "sandbox") for path in sorted((ROOT / top).rglob("*.py"))
}


def imports(module: str, text: str) -> Iterator[str]:
    """Full names of what a module imports, wherever the statement stands, for type checking only or not."""
    package = (
        module.split(".")
        if module in MODULES and MODULES[module].name == "__init__.py"
        else module.split(".")[:-1]
    )
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            # `from a import b` may import the module a.b or a name that is in a.
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def _is_part_of(module: str, packages: set[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def _role(module: str) -> str:
    """The part that a module plays in its service: `store` for services.payment.store and all below it."""
    return [*module.split("."), "", ""][2]


def _own_module(module: str, name: str) -> str | None:
    """The module of the same service that `name` imports, if it does."""
    service = ".".join(module.split(".")[:2])
    if not name.startswith(f"{service}."):
        return None
    return name if name in MODULES else name.rpartition(".")[0]


def decides_purely(module: str, text: str) -> list[str]:
    """Imports that a domain may not have. It may have files beside it, if they obey the same law."""
    pure_kit = module.startswith("services.kit.")
    broken = []
    for name in imports(module, text):
        top = name.partition(".")[0]
        own = _own_module(module, name)
        if _is_part_of(name, PURE_KIT | STANDARD_PURE):
            continue
        if own is not None and not pure_kit:
            broken += [
                f"{own}: {found}" for found in decides_purely(own, MODULES[own].read_text(encoding="utf-8"))
            ]
        elif not (top in sys.stdlib_module_names - STANDARD_IO or (pure_kit and top in PURE_LIBRARIES)):
            broken.append(name)
    return broken


def touches_the_database(module: str, text: str) -> list[str]:
    """Imports of the driver outside the modules that may."""
    if _role(module) == "store" or _is_part_of(module, STORES):
        return []
    return [name for name in imports(module, text) if _is_part_of(name, {"psycopg", "psycopg_pool"})]


def touches_the_contracts(module: str, text: str) -> list[str]:
    """Imports of generated code outside the modules that may."""
    if _role(module) in {"service", "clients", "__main__"} or _is_part_of(
        module, {"services.kit.rpc", "services.kit.events"}
    ):
        return []
    return [name for name in imports(module, text) if name.startswith("paymesh.") and "_pb2" in name]


def _text(module: str) -> str:
    return MODULES[module].read_text(encoding="utf-8")


@pytest.mark.parametrize("module", [m for m in MODULES if _role(m) == "domain" or m in PURE_KIT])
def test_a_domain_imports_nothing_but_pure_code(module: str) -> None:
    assert decides_purely(module, _text(module)) == []


@pytest.mark.parametrize("module", MODULES)
def test_only_a_store_touches_the_database(module: str) -> None:
    assert touches_the_database(module, _text(module)) == []


@pytest.mark.parametrize("module", MODULES)
def test_only_the_edges_touch_the_contracts(module: str) -> None:
    assert touches_the_contracts(module, _text(module)) == []


@pytest.mark.parametrize("name", sorted(PURE_KIT | STORES))
def test_the_laws_speak_of_modules_that_exist(name: str) -> None:
    assert name in MODULES


def test_every_breach_is_seen() -> None:
    domain, runner = "services.inventory.domain", "services.inventory.runner"
    assert decides_purely(domain, "import decimal\nfrom services.kit.errors import Refused") == []
    assert decides_purely(domain, "import asyncio") == ["asyncio"]
    assert decides_purely(domain, "from services.kit.db import Database") == ["services.kit.db.Database"]
    assert decides_purely(domain, "from services.kit import db") == ["services.kit.db"]
    assert decides_purely(domain, "def f():\n    import grpc") == ["grpc"]
    assert decides_purely(domain, "from services.inventory import store") != []
    assert decides_purely(domain, "from . import store") != []
    assert touches_the_database(runner, "from psycopg.errors import UniqueViolation") != []
    assert touches_the_contracts(runner, "from paymesh.money.v1 import money_pb2") != []
    assert touches_the_contracts(runner, "from paymesh.channel import open_channel") == []
