"""The data folder: passwords, logs, and the lock that gives it one owner."""

import multiprocessing
import os
import stat
from pathlib import Path

import pytest

from deploy.local.databases import role_dsn
from deploy.local.errors import UserMistake, last_log_lines
from deploy.local.folder import LOG_BYTES_MAX, DataFolder, FolderLock
from deploy.local.running import RunningMesh, forget_running_mesh, read_running_mesh


def test_a_password_stays_the_same_and_only_the_owner_reads_it(tmp_path: Path) -> None:
    password = DataFolder(tmp_path).password("payment")
    assert len(password) == 48
    assert DataFolder(tmp_path).password("payment") == password
    assert DataFolder(tmp_path).password("fraud") != password
    secrets = tmp_path / "secrets"
    assert stat.S_IMODE(secrets.stat().st_mode) == 0o700
    assert {stat.S_IMODE(file.stat().st_mode) for file in secrets.iterdir()} == {0o600}
    assert sorted(file.name for file in secrets.iterdir()) == ["fraud", "payment"]


def test_a_folder_that_cannot_be_made_is_told_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserMistake, match=r"cannot be written .*: name another with --data") as raised:
        DataFolder(tmp_path / "file" / "data")
    assert "\n" not in str(raised.value)


def test_a_log_past_its_limit_is_put_aside(tmp_path: Path) -> None:
    folder = DataFolder(tmp_path)
    log = folder.log_file("payment")
    log.touch()
    os.truncate(log, LOG_BYTES_MAX + 1)
    assert not folder.log_file("payment").exists()
    assert log.with_suffix(".log.old").exists()


def _hold(path: Path, held: "multiprocessing.synchronize.Event") -> None:
    FolderLock(path).acquire()
    held.set()
    multiprocessing.Event().wait()


def test_a_lock_has_one_holder_and_is_free_after_its_death(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    held = spawn.Event()
    other = spawn.Process(target=_hold, args=(tmp_path / "lock", held))
    other.start()
    assert held.wait(30)
    lock = FolderLock(tmp_path / "lock")
    assert not lock.acquire()
    assert lock.holder() == other.pid
    other.kill()
    other.join()
    assert lock.holder() is None
    assert lock.acquire()
    assert lock.held
    assert lock.acquire(), "taking a lock that we hold is fine"
    lock.release()
    assert lock.holder() is None


def test_only_the_owner_reads_where_a_mesh_runs(tmp_path: Path) -> None:
    mesh = RunningMesh({"payment": "127.0.0.1:7101"}, {"payment": "postgresql://payment@/payment"}, None)
    mesh.write(tmp_path)
    assert read_running_mesh(tmp_path) == mesh
    assert [stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()] == [0o600]
    forget_running_mesh(tmp_path)
    forget_running_mesh(tmp_path)
    with pytest.raises(UserMistake, match=r"no mesh runs on .*: start one with `paymesh up`"):
        read_running_mesh(tmp_path)


def test_the_end_of_a_log_is_quoted(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert last_log_lines(log) == "  (no log was written)"
    log.write_bytes(b"x" * 100_000 + b"\n" + b"".join(b"line %d\n" % n for n in range(30)) + b"\xff\n")
    assert last_log_lines(log, 3) == "  line 28\n  line 29\n  \N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize(
    ("admin_dsn", "expected"),
    [
        ("postgresql://a:b@127.0.0.1:7132/postgres", "postgresql://payment:p%40w@127.0.0.1:7132/payment"),
        (
            "postgresql://a:b@db/x?sslmode=require",
            "postgresql://payment:p%40w@db:5432/payment?sslmode=require",
        ),
        ("host=/run/pg user=a dbname=x", "postgresql://payment:p%40w@/payment?host=%2Frun%2Fpg"),
        ("postgresql://a@[::1]:5433/x", "postgresql://payment:p%40w@[::1]:5433/payment"),
    ],
)
def test_a_role_gets_the_administrators_server_under_its_own_name(admin_dsn: str, expected: str) -> None:
    assert role_dsn(admin_dsn, "payment", "p@w") == expected
