"""`paymesh webhook`: what merchants are told, for operators."""

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from deploy.local.cli import DATA, Data
from deploy.local.errors import LocalRunError, UserMistake
from deploy.local.folder import DataFolder
from deploy.local.mesh import EDGE, EDGE_WEBHOOK_NETWORKS, secret_name
from deploy.local.running import read_running_mesh
from services.edge import store
from services.edge.domain.addresses import networks
from services.edge.domain.keys import NAME_PATTERN
from services.edge.domain.webhooks import DeliveryState, Endpoint
from services.edge.vault import Vault
from services.edge.webhooks import OVERLAP_SECONDS, Made, Webhooks, no_delivery
from services.kit.db import Database
from services.kit.errors import Invalid, PaymeshError
from services.kit.ids import new_id
from services.kit.migrate import migrate

T = TypeVar("T")

DSN_VARIABLE = "PAYMESH_EDGE_DATABASE_DSN"
VAULT_VARIABLE = "PAYMESH_EDGE_VAULT_KEY"
OLD_VARIABLE = "PAYMESH_EDGE_VAULT_KEYS_OLD"
NETWORKS_VARIABLE = "PAYMESH_EDGE_WEBHOOK_NETWORKS_ALLOWED"
OVERLAP_HOURS = OVERLAP_SECONDS / 3_600
POOL_SIZE = 4
SHOWN_MAX = 1_000
TABLE_WIDTH = 400

commands = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")

Name = Annotated[str, typer.Argument(metavar="MERCHANT", help="1 to 64 of A-Z a-z 0-9 _ -")]
EndpointId = Annotated[str, typer.Argument(metavar="ENDPOINT", help="Identifier, whe_…")]
DeliveryId = Annotated[str, typer.Argument(metavar="DELIVERY", help="Identifier, whd_…")]
Key = Annotated[
    str, typer.Option("--key", help="Idempotency key: the same for every repeat of this command.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print the secret and nothing else.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines instead of text.")]


@commands.callback()
def webhook() -> None:
    """Where merchants are told of what happens, and what became of it.

    Speaks to the edge's database: that of the mesh that runs on the data folder, or the one that
    PAYMESH_EDGE_DATABASE_DSN names, with PAYMESH_EDGE_VAULT_KEY.
    """


@commands.command(
    "add", epilog="Example: `paymesh webhook add shop https://shop.example/hooks --event 'payment.*'`"
)
def add(
    name: Name,
    url: Annotated[str, typer.Argument(help="An https:// URL at a public address.")],
    event: Annotated[
        list[str] | None,
        typer.Option(help="payment.captured, payment.* …; may be repeated. Everything by default."),
    ] = None,
    description: Annotated[str, typer.Option(help="For yourself.")] = "",
    key: Key = "",
    data: Data = DATA,
    quiet: Quiet = False,
) -> None:
    """Tell a merchant's URL of what happens. The secret that messages are signed with is shown this once."""
    if not NAME_PATTERN.fullmatch(name):
        raise _fail(Invalid.field("merchant", "must be 1 to 64 of A-Z a-z 0-9 _ -"))
    made = _run(data, lambda w: w.create(name, key or new_id("cli"), url, event or [], description))
    _show_secret(made, quiet)


@commands.command("list", epilog="Example: `paymesh webhook list shop`")
def list_endpoints(
    name: Annotated[str, typer.Argument(metavar="[MERCHANT]", help="All by default.")] = "",
    data: Data = DATA,
    as_json: Json = False,
) -> None:
    """List endpoints: where they lead, and whether they are well."""
    found = _run(data, lambda w: store.list_endpoints(w.database, name, limit=SHOWN_MAX))
    rows = [
        {
            "merchant": one.merchant_id,
            "endpoint": one.endpoint_id,
            "state": _health(one),
            "events": " ".join(one.events) or "all",
            "url": one.url,
        }
        for one in found
    ]
    _print(rows, as_json)


@commands.command("attempts", epilog="Example: `paymesh webhook attempts shop --state given_up`")
def attempts(
    name: Name,
    delivery_id: Annotated[
        str, typer.Argument(metavar="[DELIVERY]", help="Identifier, whd_…: every attempt at this one.")
    ] = "",
    endpoint: Annotated[str, typer.Option(help="Only of this endpoint.")] = "",
    state: Annotated[
        DeliveryState | None, typer.Option(case_sensitive=False, help="Only in this state.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=SHOWN_MAX, help="At most so many.")] = 20,
    data: Data = DATA,
    as_json: Json = False,
) -> None:
    """What became of the messages of a merchant, newest first; of one of them, attempt by attempt."""

    async def deliveries(w: Webhooks) -> list[dict[str, Any]]:
        found = await store.list_deliveries(w.database, name, endpoint_id=endpoint, state=state, limit=limit)
        return [
            {
                "delivery": one.delivery_id,
                "event": one.type,
                "state": str(one.state),
                "attempts": one.attempts,
                "why": one.reason or "-",
                "next": _time(one.due_at_ms) if one.state is DeliveryState.PENDING else "-",
            }
            for one in found
        ]

    async def of_one(w: Webhooks) -> list[dict[str, Any]]:
        if await store.find_delivery(w.database, name, delivery_id) is None:
            raise no_delivery(delivery_id)
        return [
            {
                "attempt": one.number,
                "at": _time(one.started_at_ms),
                "outcome": _outcome(one),
                "status": one.status or "-",
                "took": "-" if one.duration_ms is None else f"{one.duration_ms} ms",
                "answer": one.detail or "-",
            }
            for one in await store.list_attempts(w.database, name, delivery_id)
        ]

    _print(_run(data, of_one if delivery_id else deliveries), as_json)


@commands.command("resend", epilog="Example: `paymesh webhook resend shop whd_019a…`")
def resend(
    name: Name,
    what: Annotated[
        str, typer.Argument(metavar="DELIVERY|ENDPOINT", help="whd_…, or whe_… for all that it was not told.")
    ],
    key: Key = "",
    data: Data = DATA,
) -> None:
    """Send a message again, delivered or not; or everything that was given up of an endpoint, a thousand at a time."""
    used = key or new_id("cli")
    if what.startswith("whe_"):
        count, _ = _run(data, lambda w: w.resend_given_up(name, used, what))
        typer.echo(f"{count} message{'' if count == 1 else 's'} to be sent again")
        return
    sent, _ = _run(data, lambda w: w.resend(name, used, what))
    typer.echo(
        f"{sent.delivery_id} ({sent.type}) is sent again; see `paymesh webhook attempts {name} {what}`"
    )


@commands.command("enable", epilog="Example: `paymesh webhook enable shop whe_019a…`")
def enable(name: Name, endpoint_id: EndpointId, key: Key = "", data: Data = DATA) -> None:
    """Tell an endpoint things again that was disabled because it has failed for days."""
    _run(data, lambda w: w.enable(name, key or new_id("cli"), endpoint_id))
    typer.echo(
        f"{endpoint_id} is enabled; `paymesh webhook resend {name} {endpoint_id}` sends what it has missed"
    )


@commands.command("rotate", epilog="Example: `paymesh webhook rotate shop whe_019a… --overlap-hours 1`")
def rotate(
    name: Name,
    endpoint_id: EndpointId,
    overlap_hours: Annotated[
        float, typer.Option(min=0, max=720, help="So long the secret before signs beside the new one.")
    ] = OVERLAP_HOURS,
    key: Key = "",
    data: Data = DATA,
    quiet: Quiet = False,
) -> None:
    """Sign with a new secret. It is shown this once."""
    seconds = round(overlap_hours * 3_600)
    _show_secret(_run(data, lambda w: w.rotate(name, key or new_id("cli"), endpoint_id, seconds)), quiet)


@commands.command("remove", epilog="Example: `paymesh webhook remove shop whe_019a…`")
def remove(name: Name, endpoint_id: EndpointId, data: Data = DATA) -> None:
    """Tell an endpoint nothing any more. What waits for it is given up."""
    _run(data, lambda w: w.delete(name, endpoint_id))
    typer.echo(f"removed {endpoint_id}")


def _run(data: Path, work: Callable[[Webhooks], Awaitable[T]]) -> T:
    async def connected() -> T:
        dsn, vault, allowed = _where(data)
        await migrate(dsn, "services.edge")
        database = Database(dsn, pool_size_max=POOL_SIZE)
        await database.open()
        try:
            return await work(Webhooks(database, vault, networks(allowed)))
        finally:
            await database.close()

    try:
        return asyncio.run(connected())
    except (LocalRunError, PaymeshError) as error:
        raise _fail(error) from error


def _fail(error: Exception) -> typer.Exit:
    print(f"error: {error}", file=sys.stderr)
    return typer.Exit(error.exit_code if isinstance(error, LocalRunError) else 1)


def _where(data: Path) -> tuple[str, Vault, str]:
    """The edge's database, its vault, and the networks that it may send to."""
    old = tuple(key for key in os.environ.get(OLD_VARIABLE, "").split(",") if key)
    dsn, key = os.environ.get(DSN_VARIABLE, ""), os.environ.get(VAULT_VARIABLE, "")
    if dsn and key:
        return dsn, Vault(key, old), os.environ.get(NETWORKS_VARIABLE, "")
    folder = data.expanduser().absolute()
    running = read_running_mesh(folder)
    if EDGE.name not in running.dsns:
        raise UserMistake(
            f"the mesh on {data} has no edge", "start it again with this version of `paymesh up`"
        )
    key = key or DataFolder(folder).password(secret_name(EDGE, "VAULT_KEY"))
    allowed = os.environ.get(NETWORKS_VARIABLE, EDGE_WEBHOOK_NETWORKS)
    return dsn or running.dsns[EDGE.name], Vault(key, old), allowed


def _show_secret(made: Made, quiet: bool) -> None:
    if made.secret is None:
        raise _fail(Invalid.field("key", "was used before, and the secret of then has ended; rotate it"))
    if quiet:
        print(made.secret)
        return
    print(f"{made.endpoint.endpoint_id} of {made.endpoint.merchant_id}; its secret is shown this once:")
    print(made.secret)


def _print(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    if not rows:
        print("nothing")
        return
    table = Table(box=None, pad_edge=False)
    for heading in rows[0]:
        table.add_column(heading, no_wrap=True)
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    # Identifiers are there to be copied: rather a line that wraps than one that is cut.
    width = max(Console().width, TABLE_WIDTH)
    Console(highlight=False, soft_wrap=True, width=width).print(table)


def _health(endpoint: Endpoint) -> str:
    if endpoint.failing_since_ms is not None:
        return f"{endpoint.state}, failing since {_time(endpoint.failing_since_ms)}"
    return f"{endpoint.state}: {endpoint.reason}" if endpoint.reason else str(endpoint.state)


def _outcome(attempt: store.Attempt) -> str:
    if attempt.ended_at_ms is None:
        return "under way"
    return str(attempt.failure or "DELIVERED")


def _time(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")
