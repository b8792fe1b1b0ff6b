"""`paymesh merchant`: keys for the HTTP API."""

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from deploy.local.cli import DATA, Data
from deploy.local.errors import LocalRunError, UserMistake
from deploy.local.folder import DataFolder
from deploy.local.mesh import EDGE, secret_name
from deploy.local.running import read_running_mesh
from services.edge import merchants, store
from services.edge.domain.keys import Access
from services.kit.clock import now_ms
from services.kit.db import Database
from services.kit.errors import PaymeshError
from services.kit.migrate import migrate

T = TypeVar("T")

DSN_VARIABLE = "PAYMESH_EDGE_DATABASE_DSN"
SECRET_VARIABLE = "PAYMESH_EDGE_KEY_SECRET"  # noqa: S105 - its name
OVERLAP_HOURS = 24
POOL_SIZE = 4

commands = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")

Name = Annotated[str, typer.Argument(metavar="MERCHANT", help="1 to 64 of A-Z a-z 0-9 _ -")]
ReadOnly = Annotated[bool, typer.Option("--read-only", help="The key looks and changes nothing.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print the key and nothing else.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines instead of text.")]


@commands.callback()
def merchant() -> None:
    """Make, replace, end and list merchants' API keys.

    Speaks to the edge's database: that of the mesh that runs on the data folder, or the one that
    PAYMESH_EDGE_DATABASE_DSN names, with PAYMESH_EDGE_KEY_SECRET.
    """


@commands.command("create", epilog="Example: `paymesh merchant create shop`")
def create_key(name: Name, data: Data = DATA, read_only: ReadOnly = False, quiet: Quiet = False) -> None:
    """Make an API key for a merchant, a first one or one more. It is shown once."""
    made = _run(data, lambda database, secret: merchants.create(database, secret, name, _access(read_only)))
    _show(made, quiet)


@commands.command("rotate", epilog="Example: `paymesh merchant rotate shop --overlap-hours 1`")
def rotate_keys(
    name: Name,
    data: Data = DATA,
    overlap_hours: Annotated[
        float, typer.Option(min=0, max=8_760, help="So long the earlier keys stay valid.")
    ] = OVERLAP_HOURS,
    read_only: ReadOnly = False,
    quiet: Quiet = False,
) -> None:
    """Make a new key and let the earlier ones run out."""
    seconds = round(overlap_hours * 3_600)
    made = _run(
        data, lambda database, secret: merchants.rotate(database, secret, name, seconds, _access(read_only))
    )
    _show(made, quiet)


@commands.command("revoke", epilog="Example: `paymesh merchant revoke shop key_019a…`")
def revoke_keys(
    name: Name,
    key_id: Annotated[str, typer.Argument(metavar="[KEY]", help="Identifier, key_…; all by default.")] = "",
    data: Data = DATA,
) -> None:
    """End a key, or all keys of a merchant, within seconds."""
    ended = _run(data, lambda database, _: merchants.revoke(database, name, key_id))
    typer.echo(f"revoked {ended} key{'s' if ended > 1 else ''} of {name}")


@commands.command("list", epilog="Example: `paymesh merchant list shop`")
def list_keys(
    name: Annotated[str, typer.Argument(metavar="[MERCHANT]", help="All by default.")] = "",
    data: Data = DATA,
    as_json: Json = False,
) -> None:
    """List keys: whose they are and how long they are valid, never the keys themselves."""
    found = _run(data, lambda database, _: store.list_keys(database, name))
    rows = [
        {
            "merchant": key.grant.merchant_id,
            "key": key.grant.key_id,
            "access": str(key.grant.access),
            "created": _time(key.created_at_ms),
            "valid": _validity(key.grant.valid_until_ms),
        }
        for key in found
    ]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("merchant", "key", "access", "created", "valid"):
        table.add_column(heading, no_wrap=True)
    for row in rows:
        table.add_row(*row.values())
    Console(highlight=False, soft_wrap=True).print(table)


def _run(data: Path, work: Callable[[Database, str], Awaitable[T]]) -> T:
    async def connected() -> T:
        dsn, secret = _where(data)
        await migrate(dsn, "services.edge")
        database = Database(dsn, pool_size_max=POOL_SIZE)
        await database.open()
        try:
            return await work(database, secret)
        finally:
            await database.close()

    try:
        return asyncio.run(connected())
    except LocalRunError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(error.exit_code) from error
    except PaymeshError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(1) from error


def _where(data: Path) -> tuple[str, str]:
    """The edge's database and what it hashes keys with."""
    dsn, secret = os.environ.get(DSN_VARIABLE, ""), os.environ.get(SECRET_VARIABLE, "")
    if dsn and secret:
        return dsn, secret
    folder = data.expanduser().absolute()
    running = read_running_mesh(folder)
    if EDGE.name not in running.dsns:
        raise UserMistake(
            f"the mesh on {data} has no edge", "start it again with this version of `paymesh up`"
        )
    secret = secret or DataFolder(folder).password(secret_name(EDGE, "KEY_SECRET"))
    return dsn or running.dsns[EDGE.name], secret


def _access(read_only: bool) -> Access:
    return Access.READ if read_only else Access.FULL


def _show(made: merchants.NewKey, quiet: bool) -> None:
    if quiet:
        print(made.api_key)
        return
    print(
        f"{made.grant.key_id} of {made.grant.merchant_id}, {made.grant.access} access; it is shown this once:"
    )
    print(made.api_key)


def _validity(until_ms: int | None) -> str:
    if until_ms is None:
        return "until revoked"
    return f"{'until' if until_ms > now_ms() else 'ended'} {_time(until_ms)}"


def _time(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
