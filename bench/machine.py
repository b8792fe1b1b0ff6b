"""What a figure depends on: the machine, the server's settings, the revision of the code."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psycopg

MIB = 1024 * 1024

SETTINGS = (
    "server_version",
    "fsync",
    "synchronous_commit",
    "full_page_writes",
    "wal_level",
    "wal_sync_method",
    "wal_compression",
    "wal_buffers",
    "max_wal_size",
    "min_wal_size",
    "checkpoint_timeout",
    "commit_delay",
    "shared_buffers",
    "max_connections",
    "data_checksums",
    "jit",
)
SAFE = {
    "fsync": ("on",),
    "synchronous_commit": ("on", "remote_apply"),
    "full_page_writes": ("on",),
}
"""What each must be: with anything less, a commit that was answered may be gone after a power cut."""

_UNLOGGED_TABLES = (
    "SELECT relname FROM pg_class WHERE relpersistence = 'u' AND relkind = 'r' ORDER BY relname"
)


class NotDurableError(Exception):
    """Something is switched off that a payment needs; figures would be about another system."""


async def read_settings(dsns: Mapping[str, str]) -> dict[str, str]:
    """The server's settings as each service's role has them (the first one's, when all are safe).

    Raises NotDurableError when one of them could lose a commit.
    """
    settings: dict[str, str] = {}
    for service, dsn in dsns.items():
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection:
            found = {name: await _show(connection, name) for name in SETTINGS}
            unlogged = await (await connection.execute(_UNLOGGED_TABLES)).fetchall()
        check_durable(service, found, [str(row[0]) for row in unlogged])
        settings = settings or found
    return settings


def check_durable(service: str, settings: Mapping[str, str], unlogged_tables: list[str]) -> None:
    """Raises NotDurableError when the database of the service could lose a commit that was answered."""
    for name, safe in SAFE.items():
        if settings[name] not in safe:
            raise NotDurableError(
                f"{name} is {settings[name]} for {service}; there is no report without {name} = {safe[0]}"
            )
    if unlogged_tables:
        raise NotDurableError(f"table {unlogged_tables[0]} of {service} is UNLOGGED; a crash empties it")


async def _show(connection: psycopg.AsyncConnection[Any], name: str) -> str:
    row = await (await connection.execute(f"SHOW {name}".encode())).fetchone()
    return str(row[0]) if row else ""


def machine_facts(folder: Path) -> dict[str, Any]:
    """The machine, without its name. `folder` is where the data are."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_mib": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // MIB,
        "system": f"{platform.system()} {platform.machine()}",
        "kernel": platform.release(),
        "filesystem": filesystem_of(folder),
        "load_average_before": round(os.getloadavg()[0], 2),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "grpcio": version("grpcio"),
        "protobuf": version("protobuf"),
        "psycopg": version("psycopg"),
    }


def _cpu_model() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def filesystem_of(folder: Path) -> str:
    """Type of the file system, for example "ext4"; "unknown" where it cannot be told."""
    best, kind = "", "unknown"
    with suppress(OSError):
        for line in Path("/proc/self/mounts").read_text().splitlines():
            _, mounted_on, found, *_ = line.split()
            inside = folder.absolute().is_relative_to(mounted_on)
            if inside and len(mounted_on) >= len(best):
                best, kind = mounted_on, found
    return kind


def revision(root: Path) -> dict[str, Any]:
    """The revision of the code and whether it was changed since; empty outside of a git repository."""
    try:
        head = _git(root, "rev-parse", "HEAD")
        return {"revision": head, "changed": _git(root, "status", "--porcelain") != ""}
    except (OSError, subprocess.CalledProcessError):
        return {"revision": "", "changed": None}


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
