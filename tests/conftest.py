"""Fixtures for every test: one real PostgreSQL and one real Valkey per run, and services as real processes.

Each test that asks for a service gets fresh databases; the servers are shared. See tests/README.md.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from hypothesis import settings

from deploy.local.stores import EmbeddedPostgres, EmbeddedValkey
from tests.depth import examples
from tests.processes import ServiceProcess, free_port

# No deadline: how long an example takes says more about the machine than about the code.
settings.register_profile("paymesh", deadline=None, max_examples=examples(50, 100))
settings.load_profile("paymesh")


@pytest.fixture(scope="session")
def store_folder() -> Iterator[Path]:
    """The servers' data. Not under pytest's own folder: another run would take the server's access away, which works
    under an unprivileged account."""
    folder = Path(tempfile.mkdtemp(prefix="paymesh-test-"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres(store_folder: Path) -> Iterator[EmbeddedPostgres]:
    """A PostgreSQL server for the whole run; `create_database(name)` gives a DSN. It does not wait for the disk: tests
    kill services, not the machine."""
    server = EmbeddedPostgres(store_folder, durable=False)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def valkey(store_folder: Path) -> Iterator[EmbeddedValkey]:
    """A Valkey server for the whole run."""
    server = EmbeddedValkey(store_folder)
    server.start()
    yield server
    server.stop()


class Services:
    """Starts services as processes, each with an empty database of its own, and ends them after the test."""

    def __init__(self, postgres: EmbeddedPostgres, folder: Path) -> None:
        self._postgres = postgres
        self._folder = folder
        self._started: list[ServiceProcess] = []
        self._databases: dict[str, str] = {}

    def dsn(self, name: str) -> str:
        """The database of service `name`, created empty on first use."""
        if name not in self._databases:
            database = f"{name}_{os.urandom(4).hex()}"
            self._databases[name] = self._postgres.create_database(database)
        return self._databases[name]

    def start(self, name: str, module: str = "", **settings: str) -> ServiceProcess:
        """Start `python -m services.<name>` and wait until it serves. `settings` become PAYMESH_<NAME>_<SETTING>."""
        environment = {
            f"PAYMESH_{name.upper()}_{key.upper()}": value
            for key, value in {
                "database_dsn": self.dsn(name),
                "listen": f"127.0.0.1:{free_port()}",
                **settings,
            }.items()
        }
        log = self._folder / f"{name}-{len(self._started)}.log"
        process = ServiceProcess(module or f"services.{name}", environment, log, speaks_http=name == "edge")
        process.start()
        self._started.append(process)
        return process

    def empty(self, name: str) -> None:
        """Forget everything that service `name` has stored, so that tests can share its process. It must be at rest."""
        with psycopg.connect(self.dsn(name), autocommit=True) as connection:
            tables = connection.execute(
                "SELECT string_agg(quote_ident(tablename), ', ') FROM pg_tables"
                " WHERE schemaname = 'public' AND tablename <> 'schema_migrations'"
            ).fetchone()
            assert tables is not None
            if tables[0] is not None:
                connection.execute(f"TRUNCATE {tables[0]}".encode())

    @property
    def last(self) -> ServiceProcess:
        """The process that was started last."""
        return self._started[-1]

    def stop(self) -> None:
        """Kill what still runs and drop the databases."""
        for process in self._started:
            process.kill()
        for dsn in self._databases.values():
            self._postgres.drop_database(dsn.rsplit("/", 1)[-1].split("?")[0])


@pytest.fixture
def services(postgres: EmbeddedPostgres, tmp_path: Path) -> Iterator[Services]:
    """See `Services`."""
    started = Services(postgres, tmp_path)
    yield started
    started.stop()
