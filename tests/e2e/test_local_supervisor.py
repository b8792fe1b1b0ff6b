"""The supervisor, with real processes: a tiny gRPC health server stands in for each service.

What is proved: a killed process comes back, one that cannot be kept is given up with its log, a stop or a kill
of the supervisor itself leaves no process behind, and the data outlive all of it.
"""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import psycopg
import pytest

from deploy.local import mesh as layout
from deploy.local import supervisor
from deploy.local.errors import LocalRunError, UserMistake
from deploy.local.keeper import Keeper, State
from deploy.local.ports import free_base_port, port_is_free
from deploy.local.restarts import RestartPolicy
from deploy.local.running import FILE_NAME, read_running_mesh

STAND_IN = '''
"""A service that can do nothing but say that it serves."""
import asyncio, os, signal, sys
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer

async def main(name):
    server, health = grpc.aio.server(), HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    await health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    server.add_insecure_port(os.environ[f"PAYMESH_{name}_LISTEN"])
    await server.start()
    await asyncio.sleep(float(os.environ.get(f"PAYMESH_{name}_WARM_UP", "0")))
    await health.set("", health_pb2.HealthCheckResponse.SERVING)
    print("serving", flush=True)
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await server.stop(0)
    print("drained", flush=True)

'''
MODULES = {
    "paymesh_alpha": STAND_IN + 'asyncio.run(main("ALPHA"))',
    "paymesh_beta": STAND_IN + 'asyncio.run(main("BETA"))',
    "paymesh_broken": 'raise SystemExit("the broken service has no heart")',
    "paymesh_misled": "import sys; print('LISTEN is wrong'); sys.exit(2)",
    "paymesh_stubborn": STAND_IN.replace("stop.set)", "print, 'no')") + 'asyncio.run(main("STUBBORN"))',
    "paymesh_parent": "import subprocess; child = subprocess.Popen(['sleep', '300'])\n"
    "print('child', child.pid, flush=True)\n" + STAND_IN + 'asyncio.run(main("PARENT"))',
}
ALPHA = layout.Service(name="alpha", module="paymesh_alpha", port_offset=1)
BETA = layout.Service(name="beta", module="paymesh_beta", port_offset=0, calls=("alpha",), uses_valkey=True)
BROKEN = layout.Service(name="broken", module="paymesh_broken", port_offset=2)
MISLED = layout.Service(name="misled", module="paymesh_misled", port_offset=2)
STUBBORN = layout.Service(name="stubborn", module="paymesh_stubborn", port_offset=2)
PARENT = layout.Service(name="parent", module="paymesh_parent", port_offset=3)

HOLD_MESH = """
import asyncio, sys
from tests.e2e.test_local_supervisor import ALPHA, BETA
from deploy.local.supervisor import Mesh

async def main():
    mesh = Mesh(sys.argv[1], base_port=int(sys.argv[2]), services=(ALPHA, BETA))
    await mesh.start()
    print(*(mesh.pid(name) for name in mesh.keepers), flush=True)
    await mesh.run_until_failure()

asyncio.run(main())
"""


class Meshes:
    """Makes meshes of stand-ins on free ports and stops them after the test."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.environment = environment
        self.changes: list[tuple[str, State]] = []
        self._made: list[supervisor.Mesh] = []

    def make(
        self,
        *services: layout.Service,
        base_port: int | None = None,
        policy: RestartPolicy | None = None,
        **replicas: int,
    ) -> supervisor.Mesh:
        if base_port is None:
            base_port = free_base_port(layout.plan(services, replicas=replicas))
        mesh = supervisor.Mesh(
            self.folder / "data",
            base_port=base_port,
            services=services,
            replicas=replicas,
            environment=self.environment,
            policy=policy,
            on_change=self._note,
        )
        self._made.append(mesh)
        return mesh

    async def stop(self) -> None:
        for mesh in self._made:
            await mesh.stop()

    def _note(self, keeper: Keeper) -> None:
        self.changes.append((keeper.name, keeper.state))


@pytest.fixture
def stand_ins(tmp_path: Path) -> dict[str, str]:
    """An environment in which the stand-ins can be run as modules, and no store of the user's own is named."""
    for name, text in MODULES.items():
        (tmp_path / f"{name}.py").write_text(text)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PAYMESH_")}
    return environment | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{environment.get('PYTHONPATH', '')}"}


@pytest.fixture
async def meshes(tmp_path: Path, stand_ins: dict[str, str]) -> AsyncIterator[Meshes]:
    made = Meshes(tmp_path, stand_ins)
    yield made
    await made.stop()


def is_alive(pid: int | None) -> bool:
    """Whether a process runs; one that ended and was not yet collected does not."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


async def until_dead(*pids: int | None) -> None:
    async with asyncio.timeout(20):
        while any(is_alive(pid) for pid in pids):
            await asyncio.sleep(0.02)


def value(dsn: str, statement: str) -> object:
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(statement.encode())
        row = cursor.fetchone() if cursor.description else None
        return row[0] if row else None


async def test_a_started_mesh_serves_and_a_stopped_one_leaves_no_process(meshes: Meshes) -> None:
    mesh = meshes.make(ALPHA, BETA, beta=2)
    await mesh.start()
    assert list(mesh.keepers) == ["postgres", "valkey", "alpha", "beta", "beta-2"]
    assert {keeper.state for keeper in mesh.keepers.values()} == {State.READY}
    pids = [mesh.pid(name) for name in mesh.keepers]
    assert all(is_alive(pid) for pid in pids)
    assert value(mesh.dsn("alpha"), "SELECT current_user") == "alpha"
    assert read_running_mesh(mesh.folder.path).targets == mesh.targets
    await mesh.stop()
    assert not any(is_alive(pid) for pid in pids)
    assert not (mesh.folder.path / FILE_NAME).exists()
    stopped = [name for name, state in meshes.changes if state is State.STOPPED]
    assert sorted(stopped[:2]) == ["beta", "beta-2"]
    assert stopped[2:] == ["alpha", "postgres", "valkey"], "callers first, stores last"
    assert mesh.folder.log_file("alpha").read_text() == "serving\ndrained\n"
    await mesh.stop()


async def test_a_killed_process_is_started_again_at_its_address(meshes: Meshes) -> None:
    mesh = meshes.make(ALPHA, BETA)
    await mesh.start()
    first, other = mesh.pid("alpha"), mesh.pid("beta")
    mesh.kill("alpha", signal.SIGKILL)
    await mesh.wait_ready("alpha")
    assert is_alive(mesh.pid("alpha"))
    assert mesh.pid("alpha") != first
    assert (mesh.restarts("alpha"), mesh.restarts("beta")) == (1, 0)
    assert mesh.pid("beta") == other
    assert mesh.keepers["alpha"].last_end == "" or "SIGKILL" in mesh.keepers["alpha"].last_end


async def test_a_service_is_ready_only_when_it_says_serving(meshes: Meshes) -> None:
    meshes.environment["PAYMESH_ALPHA_WARM_UP"] = "1.5"
    mesh = meshes.make(ALPHA)
    began = time.monotonic()
    await mesh.start()
    assert time.monotonic() - began > 1.5
    assert mesh.restarts("alpha") == 0


@pytest.mark.parametrize("store", ["postgres", "valkey"])
async def test_a_killed_store_is_started_again_and_the_data_are_there(meshes: Meshes, store: str) -> None:
    mesh = meshes.make(ALPHA, BETA)
    await mesh.start()
    value(mesh.dsn("alpha"), "CREATE TABLE kept AS SELECT 42 AS answer")
    services = [mesh.pid("alpha"), mesh.pid("beta")]
    mesh.kill(store)
    await mesh.wait_ready(store)
    assert mesh.restarts(store) >= 1  # more where what the killed one left behind takes its time to go
    assert value(mesh.dsn("alpha"), "SELECT answer FROM kept") == 42
    assert [mesh.pid("alpha"), mesh.pid("beta")] == services, "services outlive their store"


async def test_a_process_that_dies_too_often_is_given_up(meshes: Meshes) -> None:
    mesh = meshes.make(ALPHA, policy=RestartPolicy(restarts_max=2, backoff_seconds=0.01))
    await mesh.start()
    for _ in range(2):
        mesh.kill("alpha")
        await mesh.wait_ready("alpha")
    mesh.kill("alpha")
    with pytest.raises(LocalRunError) as raised:
        await mesh.run_until_failure()
    story = str(raised.value)
    assert "alpha is not restarted any more: it was restarted 2 times within 60 s" in story
    assert "killed by SIGKILL" in story
    assert "alpha.log ends:\n" in story
    assert "  serving" in story
    assert mesh.keepers["alpha"].state is State.FAILED


async def test_a_service_that_cannot_start_is_shown_with_the_end_of_its_log(meshes: Meshes) -> None:
    mesh = meshes.make(ALPHA, BROKEN, policy=RestartPolicy(failed_starts_max=2, backoff_seconds=0.01))
    with pytest.raises(LocalRunError, match="broken is not restarted") as raised:
        await mesh.start()
    assert "failed to start 2 times in a row (last: exit code 1)" in str(raised.value)
    assert "the broken service has no heart" in str(raised.value)
    assert [mesh.pid(name) for name in mesh.keepers] == [None] * 3, "what had been started is stopped"


async def test_a_configuration_mistake_is_told_at_once(meshes: Meshes) -> None:
    mesh = meshes.make(MISLED)
    with pytest.raises(LocalRunError, match="its configuration is wrong") as raised:
        await mesh.start()
    assert "LISTEN is wrong" in str(raised.value)
    assert mesh.restarts("misled") == 0


async def test_a_process_that_ignores_sigterm_is_killed(
    meshes: Meshes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy.local.keeper.GRACE_SECONDS", 0.5)
    mesh = meshes.make(STUBBORN)
    await mesh.start()
    pid = mesh.pid("stubborn")
    await mesh.stop()
    assert not is_alive(pid)


async def test_children_of_a_service_end_with_it(meshes: Meshes) -> None:
    mesh = meshes.make(PARENT)
    await mesh.start()
    grandchild = int(mesh.folder.log_file("parent").read_text().split()[1])
    assert is_alive(grandchild)
    mesh.kill("parent")
    await mesh.wait_ready("parent")
    await until_dead(grandchild)


async def test_two_meshes_on_one_folder_are_refused(meshes: Meshes) -> None:
    first = meshes.make(ALPHA)
    await first.start()
    with pytest.raises(UserMistake, match=rf"runs on .* already \(process {os.getpid()}\): stop it with"):
        await meshes.make(ALPHA).start()
    assert is_alive(first.pid("alpha")), "the mistake does not disturb the mesh that runs"
    assert (first.folder.path / FILE_NAME).exists()


async def test_two_meshes_on_two_folders_live_side_by_side(meshes: Meshes, tmp_path: Path) -> None:
    first = meshes.make(ALPHA)
    await first.start()
    meshes.folder = tmp_path / "second"
    second = meshes.make(ALPHA)
    await second.start()
    assert first.targets != second.targets
    assert first.dsn("alpha") != second.dsn("alpha")


@pytest.mark.parametrize("offset", [1, 201, layout.POSTGRES_OFFSET])
async def test_a_taken_port_is_told_and_free_again_the_mesh_starts(
    meshes: Meshes, monkeypatch: pytest.MonkeyPatch, offset: int
) -> None:
    monkeypatch.setattr(supervisor, "PORT_WAIT_SECONDS", 0.2)
    base_port = free_base_port(layout.plan((ALPHA,)))
    with socket.create_server(("127.0.0.1", base_port + offset)):
        mesh = meshes.make(ALPHA, base_port=base_port)
        with pytest.raises(UserMistake, match=f"port {base_port + offset}, meant for") as raised:
            await mesh.start()
    assert "--base-port" in raised.value.remedy
    await mesh.start()


async def test_everything_dies_with_a_killed_supervisor_and_starts_again(
    meshes: Meshes, stand_ins: dict[str, str], tmp_path: Path
) -> None:
    base_port = free_base_port(layout.plan((ALPHA, BETA)))
    command = [sys.executable, "-c", HOLD_MESH, str(tmp_path / "data"), str(base_port)]
    environment = stand_ins | {"PYTHONPATH": os.pathsep.join([stand_ins["PYTHONPATH"], str(layout.ROOT)])}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as holder:
        assert holder.stdout is not None
        pids = [int(pid) for pid in holder.stdout.readline().split()]
        assert len(pids) == 4
        value(read_running_mesh(tmp_path / "data").dsns["alpha"], "CREATE TABLE kept AS SELECT 42 AS answer")
        holder.kill()
    mesh = meshes.make(ALPHA, BETA, base_port=base_port)
    await mesh.start()
    assert value(mesh.dsn("alpha"), "SELECT answer FROM kept") == 42
    await until_dead(*pids)
    assert not port_is_free(base_port)
