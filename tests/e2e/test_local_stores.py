"""The embedded stores, on real servers: isolation of roles, durability, and recovery from a kill."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest
import valkey
from valkey.connection import parse_url

from deploy.local.child import orphans
from deploy.local.errors import LocalRunError, UserMistake
from deploy.local.stores import EmbeddedPostgres, EmbeddedValkey, Stores

HOLD_STORES = """
import sys, time
from deploy.local.stores import EmbeddedPostgres, EmbeddedValkey
postgres, valkey = EmbeddedPostgres(sys.argv[1]), EmbeddedValkey(sys.argv[1])
postgres.start(), valkey.start()
print(postgres.create_database("payment"), valkey.url, flush=True)
time.sleep(600)
"""


def eventually(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    give_up_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.02)


def rows(dsn: str, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def other_database(dsn: str, name: str) -> str:
    return f"{dsn.rpartition('/')[0]}/{name}"


def test_a_role_cannot_connect_to_the_database_of_another_service(postgres: EmbeddedPostgres) -> None:
    mine = postgres.create_database("isolated_payment")
    postgres.create_database("isolated_inventory")
    assert rows(mine, "SELECT current_user, current_database()") == [("isolated_payment", "isolated_payment")]
    with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
        psycopg.connect(other_database(mine, "isolated_inventory"))


def test_a_wrong_password_is_refused(postgres: EmbeddedPostgres) -> None:
    mine = postgres.create_database("guarded")
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(mine, password="another")


def test_a_service_role_has_no_rights_beyond_its_database(postgres: EmbeddedPostgres) -> None:
    mine = postgres.create_database("modest")
    rights = "SELECT rolsuper, rolcreatedb, rolcreaterole, rolreplication, rolbypassrls FROM pg_roles"
    assert rows(mine, f"{rights} WHERE rolname = 'modest'") == [(False,) * 5]
    assert rows(mine, "SELECT count(*) FROM pg_roles WHERE rolpassword <> '********'") == [(0,)]


def test_creating_a_database_again_keeps_its_data_and_its_dsn(postgres: EmbeddedPostgres) -> None:
    first = postgres.create_database("twice")
    rows(first, "CREATE TABLE kept AS SELECT 1 AS one")
    assert postgres.create_database("twice") == first
    assert rows(first, "SELECT one FROM kept") == [(1,)]


def test_a_template_is_copied_with_its_tables(postgres: EmbeddedPostgres) -> None:
    rows(postgres.create_database("pattern"), "CREATE TABLE copied AS SELECT 7 AS seven")
    copy = postgres.create_database("pattern_copy", template="pattern")
    owner = "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = current_database()"
    assert rows(copy, owner) == [("pattern_copy",)]
    postgres.drop_database("pattern_copy")
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(copy)


@pytest.mark.parametrize("name", ["", "Payment", "a b", 'x"; DROP ROLE postgres; --', "a" * 64, "1st"])
def test_a_name_that_is_no_identifier_is_refused(postgres: EmbeddedPostgres, name: str) -> None:
    with pytest.raises(ValueError, match="is not a database name"):
        postgres.create_database(name)


@pytest.fixture
def durable_postgres(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    """A server as a mesh has it; the one that tests share does without fsync."""
    with EmbeddedPostgres(tmp_path) as server:
        yield server


def test_safety_is_full_and_the_order_of_text_is_that_of_bytes(durable_postgres: EmbeddedPostgres) -> None:
    dsn = durable_postgres.create_database("settings")
    wanted = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on", "jit": "off"}
    wanted |= {"max_wal_size": "4GB", "checkpoint_timeout": "15min", "autovacuum": "on", "TimeZone": "UTC"}
    wanted |= {"max_connections": "200", "max_prepared_transactions": "0", "server_encoding": "UTF8"}
    for name, value in wanted.items():
        assert rows(dsn, f"SHOW {name}") == [(value,)], name
    assert rows(dsn, "SELECT datcollate, datctype FROM pg_database WHERE datname = 'settings'") == [
        ("C", "C")
    ]
    assert rows(dsn, "SELECT x FROM (VALUES ('é'), ('z'), ('A'), ('a')) AS v(x) ORDER BY x") == [
        ("A",),
        ("a",),
        ("z",),
        ("é",),
    ]


def test_data_and_passwords_survive_a_restart(tmp_path: Path) -> None:
    with EmbeddedPostgres(tmp_path) as first:
        dsn = first.create_database("payment")
        rows(dsn, "CREATE TABLE kept AS SELECT 42 AS answer")
        port = first.port
    assert orphans("postgres", tmp_path / "postgres") == []
    with EmbeddedPostgres(tmp_path, port=port) as second:
        assert second.create_database("payment") == dsn
        assert rows(dsn, "SELECT answer FROM kept") == [(42,)]


def test_a_killed_postmaster_is_started_again_with_every_commit(tmp_path: Path) -> None:
    with EmbeddedPostgres(tmp_path) as server:
        dsn = server.create_database("payment")
        rows(dsn, "CREATE TABLE kept AS SELECT 42 AS answer")
        with contextlib.closing(psycopg.connect(dsn)) as open_meanwhile:
            open_meanwhile.execute("INSERT INTO kept VALUES (43)")
            assert server.pid is not None
            os.kill(server.pid, signal.SIGKILL)
            eventually(lambda: server.pid is None)
            server.start()
        assert rows(dsn, "SELECT answer FROM kept") == [(42,)]


def test_the_process_id_of_a_dead_server_does_not_keep_it_down(tmp_path: Path) -> None:
    with EmbeddedPostgres(tmp_path) as server:
        server.create_database("payment")
    # The kernel gave the dead server's number to somebody else: to us.
    (tmp_path / "postgres" / "postmaster.pid").write_text(f"{os.getpid()}\n{tmp_path}/postgres\n0\n0\n\n\n")
    with EmbeddedPostgres(tmp_path) as server:
        assert rows(server.create_database("payment"), "SELECT 1") == [(1,)]


def test_an_interrupted_first_start_is_made_good(tmp_path: Path) -> None:
    (tmp_path / "postgres.new" / "base").mkdir(parents=True)
    (tmp_path / "postgres.new" / "PG_VERSION").write_text("18\n")
    with EmbeddedPostgres(tmp_path) as server:
        assert rows(server.admin_dsn, "SELECT 1") == [(1,)]
    assert not (tmp_path / "postgres.new").exists()


def test_stores_die_with_a_killed_owner_and_the_next_owner_finds_their_data(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD_STORES, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        dsn, url = owner.stdout.readline().split()
        rows(dsn, "CREATE TABLE kept AS SELECT 42 AS answer")
        valkey.Valkey(**parse_url(url)).set("kept", "42")
        time.sleep(1.2)  # Valkey writes its file through once a second
        with pytest.raises(UserMistake, match=f"in use by process {owner.pid}"):
            EmbeddedPostgres(tmp_path).start()
        owner.kill()
    with EmbeddedPostgres(tmp_path) as server, EmbeddedValkey(tmp_path) as cache:
        assert rows(server.create_database("payment"), "SELECT answer FROM kept") == [(42,)]
        assert valkey.Valkey(**parse_url(cache.url)).get("kept") == b"42"
    for name, folder in (("postgres", "postgres"), ("valkey-server", "valkey")):
        assert orphans(name, tmp_path / folder) == []


@pytest.mark.parametrize(("store", "called"), [(EmbeddedPostgres, "PostgreSQL"), (EmbeddedValkey, "Valkey")])
def test_a_port_that_is_taken_is_told_in_one_line(
    tmp_path: Path, store: type[EmbeddedPostgres] | type[EmbeddedValkey], called: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserMistake, match=f"port {port}, meant for {called}, is in use") as raised:
            store(tmp_path, port=port).start()
    assert "\n" not in str(raised.value)


def test_a_server_that_cannot_start_shows_the_end_of_its_log(tmp_path: Path) -> None:
    with EmbeddedPostgres(tmp_path):
        pass
    (tmp_path / "postgres" / "postgresql.auto.conf").write_text("no_such_setting = 1\n")
    with pytest.raises(LocalRunError, match=r"PostgreSQL did not start(.|\n)*no_such_setting"):
        EmbeddedPostgres(tmp_path).start()


def test_a_cluster_of_another_version_is_left_alone(tmp_path: Path) -> None:
    with EmbeddedPostgres(tmp_path):
        pass
    (tmp_path / "postgres" / "PG_VERSION").write_text("12\n")
    with pytest.raises(UserMistake, match="was made by PostgreSQL 12"):
        EmbeddedPostgres(tmp_path).start()


def test_valkey_wants_its_password(tmp_path: Path) -> None:
    with EmbeddedValkey(tmp_path) as server, pytest.raises(valkey.AuthenticationError):
        valkey.Valkey(port=server.port).ping()


def test_an_own_server_and_an_own_database_replace_the_embedded(
    postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    environment = {
        "PAYMESH_POSTGRES_DSN": postgres.admin_dsn,
        "PAYMESH_BANK_DATABASE_DSN": "postgresql://mine@db/bank",
        "PAYMESH_VALKEY_URL": "redis://mine",
    }
    stores = Stores(tmp_path, ["own_server_payment", "bank"], environment=environment)
    stores.start()
    assert stores.embedded == {}
    assert stores.valkey_url == "redis://mine"
    assert stores.dsn("bank") == "postgresql://mine@db/bank"
    assert rows(stores.dsn("own_server_payment"), "SELECT current_user") == [("own_server_payment",)]
    stores.stop()


def test_an_administrator_who_need_not_be_superuser_is_enough(
    postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    admin = "CREATE ROLE humble_admin LOGIN CREATEDB CREATEROLE PASSWORD 'x'"
    rows(postgres.admin_dsn, admin)
    dsn = f"postgresql://humble_admin:x@127.0.0.1:{postgres.port}/postgres"
    stores = Stores(
        tmp_path, ["humble_payment"], environment={"PAYMESH_POSTGRES_DSN": dsn}, with_valkey=False
    )
    stores.start()
    stores.start()
    assert rows(stores.dsn("humble_payment"), "SELECT current_user") == [("humble_payment",)]


def test_an_own_server_that_does_not_answer_is_told_in_one_line(tmp_path: Path) -> None:
    dsn = "postgresql://admin:hidden@127.0.0.1:1/postgres"
    stores = Stores(tmp_path, ["payment"], environment={"PAYMESH_POSTGRES_DSN": dsn}, with_valkey=False)
    with pytest.raises(UserMistake, match="PAYMESH_POSTGRES_DSN") as raised:
        stores.start()
    assert "\n" not in str(raised.value)
    assert "hidden" not in str(raised.value)
