"""The stores of a local run: embedded ones in the data folder, or those the environment names.

- `PAYMESH_POSTGRES_DSN` (an administrator's DSN): no embedded PostgreSQL; roles and databases are made there.
- `PAYMESH_<SERVICE>_DATABASE_DSN`: that service uses it as it is; nothing is created for it.
- `PAYMESH_VALKEY_URL`: no embedded Valkey.
"""

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import psycopg

from deploy.local import databases
from deploy.local.errors import UserMistake
from deploy.local.folder import DataFolder
from deploy.local.postgres import EmbeddedPostgres
from deploy.local.valkey import EmbeddedValkey

__all__ = ["EmbeddedPostgres", "EmbeddedValkey", "ExternalPostgres", "Stores"]

POSTGRES_VARIABLE = "PAYMESH_POSTGRES_DSN"
VALKEY_VARIABLE = "PAYMESH_VALKEY_URL"


class ExternalPostgres:
    """A PostgreSQL server of the user's own; we hold an administrator's DSN and never start or stop it."""

    pid = None

    def __init__(self, admin_dsn: str, data_dir: Path | str) -> None:
        self.admin_dsn = admin_dsn
        self.folder = DataFolder(Path(data_dir))

    def create_database(self, name: str, *, template: str | None = None) -> str:
        """Create the role and the database `name` if missing; returns the role's DSN."""
        return databases.create_database(self.admin_dsn, name, self.folder.password, template=template)

    def create_apart(self, name: str) -> tuple[str, str]:
        """Create the database `name` and its two roles if missing; see `databases.create_apart`."""
        return databases.create_apart(self.admin_dsn, name, self.folder.password)

    def drop_database(self, name: str) -> None:
        """Drop the database and its role, ending every connection to it."""
        databases.drop_database(self.admin_dsn, name)


class Stores:
    """What the services of one mesh keep their data in. Those named in `apart` do not own their tables."""

    def __init__(
        self,
        data_dir: Path,
        services: Sequence[str],
        *,
        apart: Collection[str] = (),
        with_valkey: bool = True,
        postgres_port: int | None = None,
        valkey_port: int | None = None,
        durable: bool = True,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        self._dsns = {
            name: dsn for name in services if (dsn := environment.get(f"PAYMESH_{name.upper()}_DATABASE_DSN"))
        }
        self._apart = apart
        self._owner_dsns: dict[str, str] = {}
        self._to_create = [name for name in services if name not in self._dsns]
        self.embedded_postgres: EmbeddedPostgres | None = None
        self.embedded_valkey: EmbeddedValkey | None = None
        self._external: ExternalPostgres | None = None
        self._valkey_url = environment.get(VALKEY_VARIABLE)
        if admin_dsn := environment.get(POSTGRES_VARIABLE):
            self._external = ExternalPostgres(admin_dsn, data_dir)
        elif self._to_create:
            self.embedded_postgres = EmbeddedPostgres(data_dir, port=postgres_port, durable=durable)
        if with_valkey and self._valkey_url is None:
            self.embedded_valkey = EmbeddedValkey(data_dir, port=valkey_port)

    @property
    def embedded(self) -> dict[str, EmbeddedPostgres | EmbeddedValkey]:
        """The stores we run ourselves, by name."""
        found: dict[str, EmbeddedPostgres | EmbeddedValkey] = {}
        if self.embedded_postgres:
            found["postgres"] = self.embedded_postgres
        if self.embedded_valkey:
            found["valkey"] = self.embedded_valkey
        return found

    @property
    def external(self) -> dict[str, str]:
        """The stores of the user's own, by name, with the variable that named them."""
        found = {"postgres": POSTGRES_VARIABLE} if self._external else {}
        return found | ({"valkey": VALKEY_VARIABLE} if self._valkey_url else {})

    @property
    def opened_folders(self) -> list[Path]:
        """Folders whose permissions had to be widened (see `account.let_pass`)."""
        return self.embedded_postgres.opened_folders if self.embedded_postgres else []

    @property
    def valkey_url(self) -> str | None:
        """Where Valkey answers; None when this mesh has none."""
        return self.embedded_valkey.url if self.embedded_valkey else self._valkey_url

    def dsn(self, service: str) -> str:
        """The DSN of one service's own role and database; known after `start`."""
        return self._dsns[service]

    def owner_dsn(self, service: str) -> str | None:
        """The DSN of the role that owns a service's tables, where it is another one and ours to tell."""
        return self._owner_dsns.get(service)

    def start(self) -> None:
        """Start what is embedded and create what is missing; safe to repeat."""
        for store in self.embedded.values():
            store.start()
        self.create_databases()

    def create_databases(self) -> None:
        """Create the roles and databases that are missing; PostgreSQL must be running.

        Raises UserMistake when a server of the user's own refuses.
        """
        server = self.embedded_postgres or self._external
        for name in self._to_create:
            assert server is not None
            try:
                if name in self._apart:
                    self._dsns[name], self._owner_dsns[name] = server.create_apart(name)
                else:
                    self._dsns[name] = server.create_database(name)
            except psycopg.Error as error:
                if self._external is None:
                    raise
                reason = " ".join(str(error).split())
                raise UserMistake(
                    f"database {name} cannot be made at {POSTGRES_VARIABLE} ({reason})",
                    "give the DSN of a role that may create roles and databases, "
                    f"or set PAYMESH_{name.upper()}_DATABASE_DSN to one that exists",
                ) from error

    def stop(self) -> None:
        """Stop what is embedded, cleanly."""
        for store in self.embedded.values():
            store.stop()
