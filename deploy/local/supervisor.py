"""The running mesh: the stores and every process, started in order, kept alive, stopped in reverse order.

One process owns a data folder: the lock file `mesh.lock` holds its process id. Every child dies with it,
however it ends, so that the next start finds the ports and the data free.
"""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

from deploy.local import child, mesh, ports, trail
from deploy.local.errors import UserMistake
from deploy.local.folder import DataFolder, FolderLock
from deploy.local.keeper import HttpServiceProgram, Keeper, ServiceProgram, StoreProgram
from deploy.local.restarts import RestartPolicy
from deploy.local.running import RunningMesh, forget_running_mesh
from deploy.local.stores import Stores

LOCK_NAME = "mesh.lock"
# A killed run's children are on their way out when the next one starts.
PORT_WAIT_SECONDS = 3.0


class Mesh:
    """A mesh on this machine. Use from one event loop, in the main thread (see `tether`).

    `replicas` says how many processes of a service, by name. `on_change` is called with the keeper of a
    process each time its state changes. `spawn` starts the services' processes, `durable` is that of
    `EmbeddedPostgres`.
    """

    def __init__(
        self,
        data_dir: Path | str,
        *,
        base_port: int = mesh.BASE_PORT,
        replicas: Mapping[str, int] | None = None,
        services: tuple[mesh.Service, ...] = mesh.SERVICES,
        environment: Mapping[str, str] | None = None,
        policy: RestartPolicy | None = None,
        on_change: Callable[[Keeper], None] = lambda keeper: None,
        spawn: child.Spawn = child.spawn,
        durable: bool = True,
    ) -> None:
        self.plan = mesh.plan(services, base_port=base_port, replicas=replicas)
        self.folder = DataFolder(Path(data_dir))
        self.keepers: dict[str, Keeper] = {}
        self._environment = dict(os.environ if environment is None else environment)
        self._policy = policy or RestartPolicy()
        self._on_change = on_change
        self._spawn = spawn
        self._lock = FolderLock(self.folder.path / LOCK_NAME)
        self._tasks: list[asyncio.Task[None]] = []
        self.stores = Stores(
            self.folder.path,
            [service.name for service in services],
            apart=[service.name for service in services if service.seals],
            with_valkey=any(service.uses_valkey for service in services),
            postgres_port=self.plan.postgres_port,
            valkey_port=self.plan.valkey_port,
            durable=durable,
            environment=self._environment,
        )

    @property
    def targets(self) -> dict[str, str]:
        """gRPC target by service."""
        return self.plan.targets

    def dsn(self, service: str) -> str:
        """DSN of a service's own role and database."""
        return self.stores.dsn(service)

    def pid(self, name: str) -> int | None:
        """Process id of one process (`payment`, `payment-2`, `postgres` …), None while it does not run."""
        return self.keepers[name].program.pid

    def restarts(self, name: str) -> int:
        """How often a process was restarted since `start`."""
        return self.keepers[name].restarts

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to one process."""
        self.keepers[name].signal(number)

    async def start(self) -> None:
        """Start everything and return when every process serves.

        Raises UserMistake (folder in use, port taken) or LocalRunError (a process cannot start); what was
        started until then is stopped again.
        """
        if not self._lock.acquire():
            raise UserMistake(
                f"a mesh runs on {self.folder.path} already (process {self._lock.holder()})",
                "stop it with `paymesh down`, or name another folder with --data FOLDER",
            )
        try:
            await self._check_ports()
            for name, store in self.stores.embedded.items():
                self._keep(name, StoreProgram(store))
            await self._all_ready()
            await asyncio.to_thread(self.stores.create_databases)
            stores = list(self.keepers.values())
            for instance in self.plan.instances:
                self._keep(instance.name, self._program(instance), after=stores)
            await self._all_ready()
            dsns = {service.name: self.dsn(service.name) for service in self.plan.services}
            RunningMesh(self.targets, dsns, self.stores.valkey_url).write(self.folder.path)
        except BaseException:
            await self.stop()
            raise

    async def wait_ready(self, name: str, timeout_seconds: float = 60.0) -> None:
        """Return when a process serves (again).

        Raises TimeoutError, or LocalRunError when the mesh gave up.
        """
        await self._unless_failed(asyncio.wait_for(self.keepers[name].ready.wait(), timeout_seconds))

    async def run_until_failure(self) -> None:
        """Keep everything alive; returns never, raises LocalRunError when some process cannot be kept."""
        await self._unless_failed(asyncio.Event().wait())

    async def stop(self) -> None:
        """Stop every process in reverse order of start, the stores last; safe to repeat."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        for service in reversed(self.plan.services):
            names = [instance.name for instance in self.plan.of(service) if instance.name in self.keepers]
            await asyncio.gather(*(self.keepers[name].stop() for name in names))
        for name in self.stores.embedded:
            if name in self.keepers:
                await self.keepers[name].stop()
        if self._lock.held:
            forget_running_mesh(self.folder.path)
            self._lock.release()

    def kill_everything(self) -> None:
        """End every process at once, for a user who will not wait; the data survive it."""
        for keeper in self.keepers.values():
            with contextlib.suppress(ProcessLookupError):
                keeper.signal(signal.SIGKILL)

    def _keep(
        self, name: str, program: ServiceProgram | StoreProgram, after: list[Keeper] | None = None
    ) -> None:
        keeper = Keeper(name, program, policy=self._policy, on_change=self._on_change, after=after or ())
        self.keepers[name] = keeper
        self._tasks.append(asyncio.create_task(keeper.run(), name=name))

    def _program(self, instance: mesh.Instance) -> ServiceProgram:
        environment = mesh.environment_of(
            instance,
            self.plan,
            dsn=self.dsn(instance.service.name),
            valkey_url=self.stores.valkey_url,
            inherited=self._environment,
            settings=self._settings(instance.service),
        )
        log = self.folder.log_file(instance.name)
        command = mesh.command_of(instance.service)
        program = HttpServiceProgram if instance.service.speaks_http else ServiceProgram
        return program(command, instance.address, log, environment, mesh.ROOT, self._spawn)

    def _settings(self, service: mesh.Service) -> Mapping[str, str]:
        owner_dsn = self.stores.owner_dsn(service.name)
        owned = {"MIGRATION_DSN": owner_dsn} if owner_dsn else {}
        secrets = {name: self.folder.password(mesh.secret_name(service, name)) for name in service.secrets}
        return {
            **owned,
            **dict(service.settings),
            **secrets,
            **(trail.settings(self.folder) if service.seals else {}),
        }

    async def _all_ready(self) -> None:
        for keeper in self.keepers.values():
            await self._unless_failed(keeper.ready.wait())

    async def _unless_failed(self, wanted: Coroutine[Any, Any, object]) -> None:
        """Wait for `wanted`, but raise as soon as a keeper gave up."""
        waiter = asyncio.create_task(wanted)
        try:
            await asyncio.wait((waiter, *self._tasks), return_when=asyncio.FIRST_COMPLETED)
            for task in self._tasks:
                if task.done():
                    task.result()
            await waiter
        finally:
            waiter.cancel()

    async def _check_ports(self) -> None:
        wanted = {port: instance.name for instance in self.plan.instances for port in instance.ports}
        give_up_at = time.monotonic() + PORT_WAIT_SECONDS
        while taken := [port for port in wanted if not ports.port_is_free(port)]:
            if time.monotonic() > give_up_at:
                raise UserMistake(
                    f"port {taken[0]}, meant for {wanted[taken[0]]}, is in use by another program",
                    "stop that program, or move the whole mesh with --base-port PORT",
                )
            await asyncio.sleep(0.1)
