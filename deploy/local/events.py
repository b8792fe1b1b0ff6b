"""`paymesh events`: how far events have come, and what of them waits for a person."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from deploy.local.cli import DATA, Data
from deploy.local.errors import LocalRunError, UserMistake
from deploy.local.mesh import SERVICES
from deploy.local.running import read_running_mesh
from services.kit.db import Database
from services.kit.errors import PaymeshError
from services.kit.events import inbox, log

T = TypeVar("T")

POOL_SIZE = 4
PARKED_MAX = 1_000

commands = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines instead of text.")]


@commands.callback()
def events() -> None:
    """See how far the services' events have come, and have those tried again that could not be applied.

    Reads the services' databases: those of the mesh that runs on the data folder, or those that
    PAYMESH_<SERVICE>_DATABASE_DSN name.
    """


@commands.command("lag", epilog="Example: `paymesh events lag`")
def lag(data: Data = DATA, as_json: Json = False) -> None:
    """Show every listener: what it has applied of a source, how much is missing, what was set aside."""
    rows = _run(data, _lag)
    _show(rows, as_json, "nobody listens to anything yet")


@commands.command("parked", epilog="Example: `paymesh events parked`")
def parked(data: Data = DATA, as_json: Json = False) -> None:
    """List events that could not be applied, however often they were tried: each with its reason."""
    rows = _run(data, _parked)
    _show(rows, as_json, "no event waits for a person")


@commands.command(
    "retry", epilog="Example: `paymesh events retry payment 4711`, or `paymesh events retry --all`"
)
def retry(
    source: Annotated[str, typer.Argument(metavar="[SOURCE]", help="Who announced it.")] = "",
    position: Annotated[
        int, typer.Argument(metavar="[POSITION]", min=0, help="Its position; all of the source by default.")
    ] = 0,
    all_sources: Annotated[bool, typer.Option("--all", help="Everything that is parked.")] = False,
    data: Data = DATA,
) -> None:
    """Have parked events tried again, now and as often as new ones; what waits behind them comes after."""
    if all_sources == bool(source):
        _fail("say which: SOURCE, SOURCE and POSITION, or --all", 2)
    released = _run(data, lambda databases: _retry(databases, source, position))
    typer.echo(f"{released} event{'' if released == 1 else 's'} will be tried again")


async def _lag(databases: Mapping[str, Database]) -> list[dict[str, Any]]:
    ends = {name: (await log.span(database)).newest for name, database in databases.items()}
    return [
        {
            "listener": place.listener,
            "source": place.source,
            "applied": position,
            "behind": max(0, ends.get(place.source, position) - position),
            "set aside": aside,
            "parked": parked,
        }
        for database in databases.values()
        for place, position, aside, parked in await inbox.list_positions(database)
    ]


async def _parked(databases: Mapping[str, Database]) -> list[dict[str, Any]]:
    return [
        {
            "listener": one.place.listener,
            "source": one.place.source,
            "position": one.event.position,
            "merchant": one.event.merchant_id,
            "about": one.event.aggregate_id,
            "event": one.event.type.rpartition(".")[2],
            "tries": one.tries,
            "waiting behind": one.behind,
            "since": one.parked_at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S"),
            "why": f"{one.reason}: {one.message}",
        }
        for database in databases.values()
        for one in await inbox.list_parked(database, PARKED_MAX)
    ]


async def _retry(databases: Mapping[str, Database], source: str, position: int) -> int:
    return sum([await inbox.retry_parked(one, source, position) for one in databases.values()])


def _show(rows: list[dict[str, Any]], as_json: bool, nothing: str) -> None:
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    if not rows:
        print(nothing)
        return
    table = Table(box=None, pad_edge=False)
    for heading in rows[0]:
        table.add_column(heading, no_wrap=True)
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console(highlight=False, soft_wrap=True).print(table)


def _run(data: Path, work: Callable[[Mapping[str, Database]], Awaitable[T]]) -> T:
    async def connected() -> T:
        databases: dict[str, Database] = {}
        try:
            for name, dsn in _dsns(data).items():
                databases[name] = Database(dsn, pool_size_max=POOL_SIZE)
                await databases[name].open()
            return await work(databases)
        finally:
            for database in databases.values():
                await database.close()

    try:
        return asyncio.run(connected())
    except LocalRunError as error:
        _fail(str(error), error.exit_code)
    except PaymeshError as error:
        _fail(str(error), 1)


def _fail(message: str, code: int) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    raise typer.Exit(code)


def _dsns(data: Path) -> dict[str, str]:
    """The databases that the environment names; else those of the running mesh."""
    names = [service.name for service in SERVICES]
    named = {name: dsn for name in names if (dsn := os.environ.get(f"PAYMESH_{name.upper()}_DATABASE_DSN"))}
    if named:
        return named
    dsns = read_running_mesh(data.expanduser().absolute()).dsns
    if not dsns:
        raise UserMistake(f"no mesh runs on {data}", "start one with `paymesh up`")
    return {name: dsns[name] for name in names if name in dsns}
