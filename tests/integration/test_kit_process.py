"""The life of a process: it starts completely or says why not, and when told to stop it ends in order with code 0.

Real services show how a start fails; a service of this test's own shows the order of things.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest

from tests.conftest import Services
from tests.processes import ROOT, ServiceProcess, free_port

SHOP = """
import asyncio
from functools import partial

from paymesh.inventory.v1 import inventory_pb2_grpc
from services.kit.config import ServiceConfig
from services.kit.process import Process, run

attempts = 0


def say(text):
    print(text, flush=True)


class Servicer(inventory_pb2_grpc.InventoryServiceServicer):
    async def drain(self):
        await asyncio.sleep(0.05)
        say("= drained")


async def loop():
    global attempts
    attempts += 1
    say(f"= loop begun {attempts}")
    if attempts == 1:
        raise KeyError("the loop broke")
    try:
        await asyncio.sleep(3600)
    finally:
        say("= loop stopped")


async def close(name):
    say(f"= {name} closed")


async def wire(process: Process, config: ServiceConfig) -> None:
    process.closing(partial(close, "first"))
    process.serve(
        inventory_pb2_grpc.add_InventoryServiceServicer_to_server, Servicer(), "paymesh.inventory.v1.InventoryService"
    )
    process.closing(partial(close, "second"))
    process.background("loop", loop)


run("shop", ServiceConfig, wire, package="shop")
"""


def run_service(name: str, settings: dict[str, str]) -> tuple[int, str]:
    """Run a service that is expected not to start: its exit code and all it wrote."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PAYMESH_")}
    environment |= {f"PAYMESH_{name.upper()}_{key.upper()}": value for key, value in settings.items()}
    ended = subprocess.run(
        [sys.executable, "-m", f"services.{name}"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return ended.returncode, ended.stdout + ended.stderr


def last_words(output: str) -> str:
    """The message of the last line, which must be the reason why the process ended, at level critical."""
    line = json.loads(output.splitlines()[-1])
    assert line["level"] == "critical"
    assert "Traceback" not in output
    return str(line["message"])


def test_every_mistake_in_the_configuration_is_named_and_nothing_starts() -> None:
    code, output = run_service(
        "inventory", {"listen": "nowhere", "database_pool_size": "0", "log_level": "loud"}
    )
    assert code == 2
    assert output.splitlines()[0] == "inventory: the configuration has 4 mistake(s):"
    for field in ("LISTEN", "DATABASE_DSN", "DATABASE_POOL_SIZE", "LOG_LEVEL"):
        assert f"  PAYMESH_INVENTORY_{field}: " in output
    assert "Traceback" not in output


def test_a_database_that_is_away_is_said_so_at_start() -> None:
    dsn = f"postgresql://inventory:hushhush@127.0.0.1:{free_port()}/inventory"
    code, output = run_service("inventory", {"listen": f"127.0.0.1:{free_port()}", "database_dsn": dsn})
    assert code == 1
    assert last_words(output).startswith("inventory cannot run: connection failed")
    assert "hushhush" not in output


def test_a_database_that_refuses_us_is_said_so_at_start(services: Services) -> None:
    dsn = services.dsn("inventory")
    wrong = dsn.replace(dsn.split(":")[2].split("@")[0], "hushhush")
    code, output = run_service("inventory", {"listen": f"127.0.0.1:{free_port()}", "database_dsn": wrong})
    assert code == 1
    assert "password authentication failed" in last_words(output)
    assert "hushhush" not in output


def test_a_port_that_is_taken_is_said_so_at_start(services: Services) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        code, output = run_service(
            "inventory", {"listen": address, "database_dsn": services.dsn("inventory")}
        )
    assert code == 1
    assert address in last_words(output)


def test_a_migration_that_was_edited_is_said_so_at_start(services: Services) -> None:
    services.start("inventory").kill()
    dsn = services.dsn("inventory")
    with psycopg.connect(dsn) as connection:
        connection.execute(
            "UPDATE schema_migrations SET checksum = 'another' WHERE name LIKE 'services.inventory/%'"
        )
    code, output = run_service("inventory", {"listen": f"127.0.0.1:{free_port()}", "database_dsn": dsn})
    assert code == 1
    assert "was edited after it had been applied" in last_words(output)


@pytest.fixture
def shop(services: Services, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ServiceProcess:
    """A service of our own, with a loop that breaks at its first attempt."""
    (tmp_path / "shop" / "migrations").mkdir(parents=True)
    (tmp_path / "shop" / "__init__.py").touch()
    (tmp_path / "shop" / "__main__.py").write_text(SHOP)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    return services.start("shop", "shop")


def said(process: ServiceProcess) -> list[str]:
    return [line.removeprefix("= ") for line in process.log().splitlines() if line.startswith("= ")]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_process_that_is_told_to_stop_ends_in_order(shop: ServiceProcess, number: signal.Signals) -> None:
    until = time.monotonic() + 10
    while "loop begun 2" not in said(shop) and time.monotonic() < until:
        time.sleep(0.05)
    assert said(shop) == ["loop begun 1", "loop begun 2"]
    assert "background loop loop failed; starting it again" in shop.log()
    assert "the loop broke" in shop.log()
    shop.send(number)
    assert shop.exit_code(10) == 0
    assert said(shop)[2:] == ["drained", "loop stopped", "second closed", "first closed"]
