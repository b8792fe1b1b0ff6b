"""`paymesh order replay`: reads the file, places its invoices, reports on every line."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from paymesh.amounts import AmountError
from paymesh.cli.calls import connected, run
from paymesh.cli.options import (
    FRAUD_TARGET,
    INVENTORY_TARGET,
    MERCHANT,
    TARGET,
    FraudTarget,
    InventoryTarget,
    Json,
    Merchant,
    Target,
)
from paymesh.cli.program import EXIT_NO, UserError
from paymesh.cli.replay_report import print_report
from paymesh.cli.story import console, print_json
from paymesh.fraud.v1 import fraud_pb2_grpc
from paymesh.inventory.v1 import inventory_pb2_grpc
from paymesh.orchestrator.v1 import orchestrator_pb2_grpc
from paymesh.replay.invoices import Export, read_invoices
from paymesh.replay.plan import Plan, make_plan
from paymesh.replay.returns import match_returns
from paymesh.replay.rows import ExportError, RowReading, read_rows
from paymesh.replay.run import (
    PATIENCE_SECONDS,
    SET_SIZE,
    SETS_AT_ONCE,
    Answer,
    Mesh,
    Pace,
    Replayed,
    allow_card,
    check_inventory,
    check_orders,
    replay,
)
from paymesh.replay.summary import place_invoices, sent_returns, summarize, summary_json
from paymesh.replay.taking_back import take_back


def replay_file(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE.csv", help="Invoice export: InvoiceNo, StockCode, Quantity, UnitPrice …"
        ),
    ],
    currency: Annotated[str, typer.Option("--currency", help="ISO 4217 code of all prices.")] = "GBP",
    card: Annotated[str, typer.Option("--card", help="Token of the card that pays it all.")] = "tok_visa",
    allow: Annotated[
        bool,
        typer.Option(
            "--allow-card/--no-allow-card",
            help="Put the card on the merchant's allow list first: a file on one card looks like fraud.",
        ),
    ] = True,
    country: Annotated[
        list[str] | None,
        typer.Option(
            "--country",
            metavar="NAME=CODE",
            help="ISO 3166 code of a country's name in the file. Repeatable.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Read and report only; send nothing.")] = False,
    set_size: Annotated[
        int, typer.Option("--set-size", min=1, max=1_000, help="Orders per call.")
    ] = SET_SIZE,
    sets_at_once: Annotated[
        int, typer.Option("--sets-at-once", min=1, max=64, help="Calls under way at a time.")
    ] = SETS_AT_ONCE,
    patience: Annotated[
        float,
        typer.Option("--patience", min=0.0, metavar="SECONDS", help="How long to ask again for one set."),
    ] = PATIENCE_SECONDS,
    merchant: Merchant = MERCHANT,
    target: Target = TARGET,
    inventory_target: InventoryTarget = INVENTORY_TARGET,
    fraud_target: FraudTarget = FRAUD_TARGET,
    as_json: Json = False,
) -> None:
    """Place every invoice of a shop's CSV export as an order, and take back what its cancellations say.

    **What is an order.** An invoice whose number is not a cancellation (C…) or an adjustment (A…) and that
    has at least one row with a product, a quantity above zero and a price above zero. Its other rows are
    rejected one by one, by line number and reason; the order is placed without them. An invoice with no row
    that can be sold is not an order. The same product in several rows is added up. A country that is not
    known rejects the invoice; `--country` teaches a name. Quantity times price must be a whole number of
    minor units.

    **What is a return.** A row of a cancellation that names a customer, and whose pieces an earlier order of
    that customer in this file has sold at the same price and not got back yet; of several such orders the
    latest. What one cancellation takes back from one order is one return. That order is dispatched, then
    refunded and restocked. Every other row of a cancellation is rejected by line number.

    **Twice is once.** Each order's key and reference are its invoice number, and keys of returns are made of
    the two invoice numbers, so a second run changes nothing and only asks for the answers again. Products are
    created with the stock that the invoices need.

    **Exit codes.** 0 every invoice and return has its answer (read the summary for what it was); 1 some have none yet:
    run the file again; 2 the file or an option is wrong; 3 no service answers.
    """
    aliases = read_aliases(country or ())
    reading, export = read_export(file, currency, aliases)
    if dry_run:
        summary = summarize(reading, export, currency, [])
        if as_json:
            print_json(summary_json(summary, export, [], dry_run=True))
        else:
            print_report(console(), summary, export, [], dry_run=True)
        return
    plan = make_plan(export.invoices, merchant, card)
    pace = Pace(set_size=set_size, sets_at_once=sets_at_once, patience_seconds=patience)
    allowed_by = fraud_target if allow else None
    sent, back = run(
        _send(export, plan, pace, merchant, card, target, inventory_target, allowed_by, as_json), as_json
    )
    placed = place_invoices(export.invoices, sent)
    returned = sent_returns(export.returns, back)
    summary = summarize(reading, export, currency, placed, returned)
    if as_json:
        print_json(summary_json(summary, export, placed, dry_run=False, returned=returned))
    else:
        print_report(console(), summary, export, placed, dry_run=False, returned=returned)
    if not summary.adds_up():
        raise AssertionError("the summary does not add up to the file")
    if summary.count("unresolved") or summary.count_returns("unresolved"):
        raise typer.Exit(EXIT_NO)


def read_aliases(pairs: Sequence[str]) -> dict[str, str]:
    """ "NAME=CODE" options to names in lower case and codes. UserError for anything else."""
    aliases = {}
    for pair in pairs:
        name, _, code = pair.rpartition("=")
        if not name.strip() or not re.fullmatch("[A-Z]{2}", code):
            raise UserError(f"--country {pair}: expected NAME=CODE, for example 'Channel Islands=JE'")
        aliases[" ".join(name.split()).casefold()] = code
    return aliases


def read_export(file: Path, currency: str, aliases: dict[str, str]) -> tuple[RowReading, Export]:
    """Read a file. UserError when it is not there or not an export."""
    try:
        reading = read_rows(file.read_bytes())
        export = read_invoices(reading, currency, aliases)
        match_returns(reading, export, currency)
        return reading, export
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from None
    except ExportError as error:
        raise UserError(f"{file}: {error}") from None
    except AmountError as error:
        raise UserError(f"--currency {currency}: {error}") from None


async def _send(
    export: Export,
    plan: Plan,
    pace: Pace,
    merchant: str,
    card: str,
    target: str,
    inventory_target: str,
    fraud_target: str | None,
    as_json: bool,
) -> tuple[Replayed, list[Answer[Any]]]:
    """Send the plan with a progress bar, then the returns. Nothing is sent when a service does not answer."""
    if not plan.orders:
        return Replayed(), []
    if fraud_target is not None:
        async with connected(fraud_target) as channel:
            await allow_card(fraud_pb2_grpc.FraudServiceStub(channel), merchant, card)
    async with connected(inventory_target) as stock_channel:
        inventory = inventory_pb2_grpc.InventoryServiceStub(stock_channel)
        await check_inventory(inventory, merchant)
        async with connected(target) as order_channel:
            orders = orchestrator_pb2_grpc.OrchestratorServiceStub(order_channel)
            await check_orders(orders, merchant)
            mesh = Mesh(orders=orders, inventory=inventory)
            with _progress(as_json) as progress:
                bar = progress.add_task("orders", total=len(plan.orders))
                sent = await replay(plan, mesh, pace, lambda count: progress.advance(bar, count))
            placed = place_invoices(export.invoices, sent)
            return sent, await take_back(export.returns, placed, merchant, mesh, pace)


def _progress(as_json: bool) -> Progress:
    """A bar on stderr, so that stdout holds the report alone; none where nobody watches."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=as_json or not sys.stderr.isatty(),
    )
