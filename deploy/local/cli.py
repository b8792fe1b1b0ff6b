"""The commands `paymesh up`, `down` and `demo`."""

import asyncio
import contextlib
import os
import signal
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from deploy.local.board import Board
from deploy.local.errors import LocalRunError
from deploy.local.folder import FolderLock
from deploy.local.mesh import BASE_PORT, REPLICAS_MAX, port_last
from deploy.local.supervisor import LOCK_NAME, Mesh

PORT_MAX = 65535
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# Draining every service in turn, at worst.
DOWN_SECONDS_MAX = 120.0

Data = Annotated[
    Path, typer.Option("--data", envvar="PAYMESH_DATA", help="Folder that keeps everything.", file_okay=False)
]
DATA = Path(".paymesh")


def up(
    data: Data = DATA,
    base_port: Annotated[
        int,
        typer.Option(
            min=1024,
            max=PORT_MAX - (port_last(BASE_PORT) - BASE_PORT),
            help="Port of the orchestrator; all others follow it.",
        ),
    ] = BASE_PORT,
    orchestrators: Annotated[int, typer.Option(min=1, max=REPLICAS_MAX, help="Orchestrator processes.")] = 1,
    payments: Annotated[int, typer.Option(min=1, max=REPLICAS_MAX, help="Payment processes.")] = 1,
) -> None:
    """Run the whole mesh on this machine until Ctrl-C.

    Starts PostgreSQL, Valkey and every service, starts again what dies, and keeps the data in a folder.
    A store of your own replaces an embedded one: set PAYMESH_POSTGRES_DSN (an administrator's DSN),
    PAYMESH_PAYMENT_DATABASE_DSN (one service's database) or PAYMESH_VALKEY_URL.

    Examples:

    - `paymesh up`

    - `paymesh up --data /var/tmp/shop --base-port 8100`

    - `paymesh up --orchestrators 2 --payments 2`
    """
    # gRPC's own remarks about connections that end are not for the person at the terminal.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    board = Board(Console())
    try:
        mesh = Mesh(
            data,
            base_port=base_port,
            replicas={"orchestrator": orchestrators, "payment": payments},
            on_change=board.changed,
        )
        asyncio.run(_run(mesh, board))
    except LocalRunError as error:
        raise _failed(error) from error


def down(data: Data = DATA) -> None:
    """Stop the mesh that `paymesh up` runs on a folder, and wait until it has ended.

    Examples:

    - `paymesh down`

    - `paymesh down --data /var/tmp/shop`
    """
    lock = FolderLock(data.expanduser().absolute() / LOCK_NAME)
    if (pid := lock.holder()) is None:
        typer.echo(f"nothing runs on {data}")
        return
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        pass  # it ended just now
    except PermissionError as error:
        problem = f"process {pid} belongs to another user: run `paymesh down` as that user"
        raise _failed(LocalRunError(problem)) from error
    give_up_at = time.monotonic() + DOWN_SECONDS_MAX
    while lock.holder() == pid:
        if time.monotonic() > give_up_at:
            problem = f"process {pid} did not end within {DOWN_SECONDS_MAX:g} s"
            raise _failed(LocalRunError(f"{problem}: end it with `kill -9 {pid}`, the data survive that"))
        time.sleep(0.05)
    typer.echo(f"stopped the mesh on {data} (process {pid})")


def demo() -> None:
    """Start a mesh, place a few hundred orders, break things meanwhile, and show what became of each.

    The exit code is 0 only if every invariant holds at the end.

    Examples:

    - `paymesh demo`
    """
    raise typer.Exit(import_module("deploy.local.demo").main())


async def _run(mesh: Mesh, board: Board) -> None:
    """Start the mesh, show it, and stop it at a signal or when a process cannot be kept alive."""
    asked_to_stop = asyncio.Event()

    def on_signal() -> None:
        if asked_to_stop.is_set():
            mesh.kill_everything()  # asked twice: the user will not wait for the drain
        asked_to_stop.set()

    loop = asyncio.get_running_loop()
    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, on_signal)
    with board:
        board.show(mesh)
        work = asyncio.create_task(_start_and_keep(mesh, board))
        stopping = asyncio.create_task(asked_to_stop.wait())
        await asyncio.wait((work, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            board.say("stopping (Ctrl-C again ends everything at once)")
            work.cancel()
        stopping.cancel()
        try:
            with contextlib.suppress(asyncio.CancelledError):
                await work
        finally:
            await mesh.stop()
            # All is stopped: one more Ctrl-C, from a user who was impatient, must not spoil the exit code.
            for number in STOP_SIGNALS:
                loop.remove_signal_handler(number)
                signal.signal(number, signal.SIG_IGN)


async def _start_and_keep(mesh: Mesh, board: Board) -> None:
    await mesh.start()
    board.show(mesh)
    for folder in mesh.stores.opened_folders:
        board.say(f"other accounts may now pass through {folder}, because PostgreSQL does not run as root")
    board.say("everything serves; Ctrl-C stops it")
    await mesh.run_until_failure()


def _failed(error: LocalRunError) -> typer.Exit:
    """Print the error on one line (and the log it quotes) and turn it into an exit code."""
    print(f"error: {error}", file=sys.stderr)
    return typer.Exit(error.exit_code)
