"""The data folder of a local run: what lies where, its passwords, and the lock that gives it one owner.

postgres/    the database cluster          secrets/   one password or key a file, readable by the owner only
valkey/      the append-only file          logs/      one log a process
checkpoints/ what payment has sealed
*.lock       held by the process that runs the thing of that name
"""

import fcntl
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from deploy.local.errors import UserMistake

LOG_BYTES_MAX = 32 * 1024 * 1024


class DataFolder:
    """Paths below one folder; making it creates the folders.

    Raises UserMistake when the folder cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().absolute()
        self.logs = self.path / "logs"
        self._secrets = self.path / "secrets"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.logs.mkdir(mode=0o700, exist_ok=True)
            self._secrets.mkdir(mode=0o700, exist_ok=True)
            self._secrets.chmod(0o700)
            probe = self.path / ".writable"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise UserMistake(
                f"the data folder {self.path} cannot be written ({error.strerror})",
                "name another with --data FOLDER, or make this one writable",
            ) from error

    def password(self, name: str) -> str:
        """The password of that name, made at first use, kept with mode 0600."""
        return self.secret_file(name, lambda: secrets.token_hex(24).encode()).read_text().strip()

    def secret_file(self, name: str, make: Callable[[], bytes]) -> Path:
        """The file of that name, made at first use, kept with mode 0600."""
        path = self._secrets / name
        if path.exists():
            return path
        # Written aside and linked into place, so that a kill can never leave an empty secret behind.
        draft = self._secrets / f".{name}.{os.getpid()}"
        try:
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(make())
                file.flush()
                os.fsync(file.fileno())
            os.link(draft, path)
        except FileExistsError:
            pass
        finally:
            draft.unlink(missing_ok=True)
        return path

    def log_file(self, name: str) -> Path:
        """The log of one process; an old one past the size limit is put aside (one is kept)."""
        path = self.logs / f"{name}.log"
        if path.exists() and path.stat().st_size > LOG_BYTES_MAX:
            path.rename(path.with_suffix(".log.old"))
        return path


class FolderLock:
    """An exclusive lock on a file, given back by the kernel however its holder ends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    @property
    def held(self) -> bool:
        """Whether we hold it."""
        return self._descriptor is not None

    def acquire(self) -> bool:
        """Take the lock and write our process id into it; False when another process holds it."""
        if self._descriptor is not None:
            return True
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        """Give the lock back; a lock that is not held is left alone."""
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None

    def holder(self) -> int | None:
        """The process id of whoever holds the lock now, None when it is free. Never waits."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            text = os.pread(descriptor, 32, 0).decode().strip()
            return int(text) if text.isdigit() else None
        finally:
            os.close(descriptor)
        return None
