"""`paymesh settlement`: what the bank has paid out, and what merchants were paid of it."""

import asyncio
import sys
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from paymesh.cli.calls import connected, run
from paymesh.cli.options import LIMIT, MERCHANT, PAYMENT_TARGET, Json, Limit, Merchant, PaymentTarget
from paymesh.cli.program import EXIT_NO, UserError
from paymesh.cli.story import console, enum_name, print_json, show_amount, show_time
from paymesh.payment.v1 import settlement_pb2 as pb
from paymesh.payment.v1.settlement_pb2_grpc import SettlementServiceStub

PAGE_SIZE_MAX = 1_000
POLL_SECONDS = 0.2
RUN_SECONDS = 120.0
"""A run gathers all that was captured since the last one; the first one of all has the most to do."""

_STYLES = {"COMPLETED": "green", "PAID": "green", "REFUSED": "bold red"}

AnyMerchant = Annotated[str, typer.Option("--merchant", "-m", help="Only this merchant; all by default.")]
From = Annotated[
    str, typer.Option("--from", metavar="DAY", help="Only of this day and later, such as 2026-11-25.")
]
To = Annotated[str, typer.Option("--to", metavar="DAY", help="Only of this day and earlier.")]

commands = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")


@commands.callback()
def settlement() -> None:
    """Settle days, and show what the bank has paid out and merchants were paid."""


@commands.command(
    "run",
    epilog="Examples: `paymesh settlement run --date 2026-11-25`, `paymesh settlement run --date yesterday -m demo`",
)
def settle(
    day: Annotated[
        str,
        typer.Option(
            "--date", metavar="DAY", help="The day, such as 2026-11-25, or today or yesterday (UTC)."
        ),
    ],
    merchant: AnyMerchant = "",
    patience: Annotated[
        float,
        typer.Option(
            "--patience", min=0.0, metavar="SECONDS", help="How long to wait for the end; 0 not to wait."
        ),
    ] = 60.0,
    target: PaymentTarget = PAYMENT_TARGET,
    as_json: Json = False,
) -> None:
    """Settle all that was captured and refunded up to the end of a day and is in no settlement yet.

    It happens by itself every night. Repeating it settles nothing twice. The exit code is 1 when something still
    waits in the end."""
    wanted = _day(day, "--date")
    made, found = run(_settle(target, merchant, wanted, patience, as_json), as_json)
    if as_json:
        print_json({"made": made, "settlements": [_plain(one) for one in found]})
    else:
        count = "1 settlement" if made == 1 else f"{made:,} settlements"
        console().print(f"{count} made for {wanted}" if made else f"nothing new to settle for {wanted}")
        if found:
            console().print(_table(found))
    waiting = [one for one in found if one.state != pb.SETTLEMENT_STATE_COMPLETED]
    if waiting and patience:
        count = f"{len(waiting):,} settlement" + ("s" if len(waiting) > 1 else "")
        hint = "they go on by themselves; see `paymesh settlement list --open`"
        print(f"error: {count} not completed within {patience:.0f} s: {hint}", file=sys.stderr)
        raise typer.Exit(EXIT_NO)


@commands.command("list", epilog="Examples: `paymesh settlement list`, `paymesh settlement list --open`")
def list_(
    merchant: AnyMerchant = "",
    from_day: From = "",
    to_day: To = "",
    open_only: Annotated[bool, typer.Option("--open", help="Only those that are not completed.")] = False,
    limit: Limit = LIMIT,
    target: PaymentTarget = PAYMENT_TARGET,
    as_json: Json = False,
) -> None:
    """List settlements, newest day first."""
    days = _days(from_day, to_day)

    async def work() -> list[pb.Settlement]:
        async with connected(target) as channel:
            return await _list(SettlementServiceStub(channel), limit, merchant, open_only=open_only, **days)

    found = run(work(), as_json)
    if as_json:
        print_json(pb.ListSettlementsResponse(settlements=found))
    else:
        console().print(_table(found) if found else "there are no such settlements")


@commands.command("show", epilog="Example: `paymesh settlement show stl_01jd…`")
def show(
    settlement_id: Annotated[str, typer.Argument(metavar="SETTLEMENT", help="Identifier, stl_…")],
    merchant: Merchant = MERCHANT,
    target: PaymentTarget = PAYMENT_TARGET,
    as_json: Json = False,
) -> None:
    """Show one settlement: what the bank has paid, and what the merchant was paid."""

    async def work() -> pb.GetSettlementResponse:
        async with connected(target) as channel:
            request = pb.GetSettlementRequest(merchant_id=merchant, settlement_id=settlement_id)
            return await SettlementServiceStub(channel).GetSettlement(request)

    response = run(work(), as_json)
    if as_json:
        print_json(response)
    else:
        console().print(_tree(response.settlement))


@commands.command("items", epilog="Example: `paymesh settlement items --merchant demo --from 2026-11-25`")
def items(
    merchant: AnyMerchant = "",
    from_day: From = "",
    to_day: To = "",
    unsettled: Annotated[
        bool, typer.Option("--unsettled", help="Captures and refunds only that are in no settlement yet.")
    ] = False,
    limit: Limit = LIMIT,
    target: PaymentTarget = PAYMENT_TARGET,
    as_json: Json = False,
) -> None:
    """List captures, refunds and payouts, each with the bank's reference: what a bank statement is compared with."""
    days = _days(from_day, to_day)
    if unsettled and days:
        raise UserError("--unsettled goes without --from and --to: what is in no settlement has no day")
    found = run(_items(target, limit, merchant, unsettled, days), as_json)
    if as_json:
        print_json(pb.ListSettlementItemsResponse(items=found))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("kind", "amount", "booked", "due", "bank's reference"):
        table.add_column(column, no_wrap=True, justify="right" if column == "amount" else "left")
    for one in found:
        table.add_row(
            enum_name(pb.SettlementItemKind, one.kind, "SETTLEMENT_ITEM_KIND_").lower(),
            show_amount(one.amount),
            one.booked_on or "-",
            one.value_on or "-",
            Text(one.bank_reference or "-"),
        )
    console().print(table)


async def _settle(
    target: str, merchant: str, day: str, patience_seconds: float, as_json: bool
) -> tuple[int, list[pb.Settlement]]:
    """How many were made, and all of the day as they stand in the end."""
    async with connected(target) as channel:
        stub = SettlementServiceStub(channel)
        request = pb.RunSettlementRequest(merchant_id=merchant, date=day)
        made = (await stub.RunSettlement(request, timeout=RUN_SECONDS)).made
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + patience_seconds
        with _progress(as_json) as progress:
            bar = progress.add_task("settlements", total=max(made, 1))
            while True:
                open_ = await _list(stub, PAGE_SIZE_MAX, merchant, open_only=True, from_date=day, to_date=day)
                progress.update(bar, completed=max(0, made - len(open_)))
                if not open_ or loop.time() > give_up_at:
                    break
                await asyncio.sleep(POLL_SECONDS)
        return made, await _list(stub, PAGE_SIZE_MAX, merchant, from_date=day, to_date=day)


async def _list(stub: SettlementServiceStub, limit: int, merchant: str, **more: Any) -> list[pb.Settlement]:
    """Up to `limit` settlements, page by page."""
    found: list[pb.Settlement] = []
    token = ""
    while len(found) < limit:
        size = min(limit - len(found), PAGE_SIZE_MAX)
        page = await stub.ListSettlements(
            pb.ListSettlementsRequest(merchant_id=merchant, page_size=size, page_token=token, **more)
        )
        found += page.settlements
        token = page.next_page_token
        if not token:
            break
    return found


async def _items(
    target: str, limit: int, merchant: str, unsettled: bool, days: dict[str, str]
) -> list[pb.SettlementItem]:
    """Up to `limit` items, page by page."""
    found: list[pb.SettlementItem] = []
    cursor = ""
    async with connected(target) as channel:
        stub = SettlementServiceStub(channel)
        while len(found) < limit:
            page = await stub.ListSettlementItems(
                pb.ListSettlementItemsRequest(
                    merchant_id=merchant,
                    unsettled_only=unsettled,
                    after_cursor=cursor,
                    limit=min(limit - len(found), PAGE_SIZE_MAX),
                    **days,
                )
            )
            found += page.items
            cursor = page.next_cursor
            if not page.more:
                break
    return found


def _day(text: str, option: str) -> str:
    """The day that was named, "2026-11-25". Raises UserError."""
    today = datetime.now(UTC).date()
    named = {"today": today, "yesterday": today - timedelta(days=1)}
    try:
        return (named.get(text) or date.fromisoformat(text)).isoformat()
    except ValueError:
        raise UserError(f"{option} {text}: expected a day such as 2026-11-25, today or yesterday") from None


def _days(from_day: str, to_day: str) -> dict[str, str]:
    days = {}
    if from_day:
        days["from_date"] = _day(from_day, "--from")
    if to_day:
        days["to_date"] = _day(to_day, "--to")
    return days


def _progress(as_json: bool) -> Progress:
    """A bar on stderr, so that stdout holds the report alone; none where nobody watches."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        console=Console(stderr=True),
        disable=as_json or not sys.stderr.isatty(),
    )


def _table(found: Sequence[pb.Settlement]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("settlement", "date", "merchant", "state"):
        table.add_column(column, no_wrap=True)
    table.add_column("paid out", justify="right", no_wrap=True)
    for one in found:
        state = _state(one)
        table.add_row(
            Text(one.settlement_id),
            one.date if one.number == 1 else f"{one.date} #{one.number}",
            Text(one.merchant_id),
            Text(state, style=_STYLES.get(state, "yellow")),
            show_amount(one.payout) if one.payout_state == pb.PAYOUT_STATE_PAID else _payout(one),
        )
    return table


def _state(one: pb.Settlement) -> str:
    state = enum_name(pb.SettlementState, one.state, "SETTLEMENT_STATE_")
    return f"{state}: {one.waits_for}" if one.waits_for else state


def _payout(one: pb.Settlement) -> str:
    return enum_name(pb.PayoutState, one.payout_state, "PAYOUT_STATE_")


def _tree(one: pb.Settlement) -> Tree:
    state = _state(one)
    heading = Text(f"settlement {one.settlement_id} ").append(state, style=_STYLES.get(state, "yellow"))
    tree = Tree(heading.append(f"  {one.date}" + (f" #{one.number}" if one.number > 1 else "")))
    tree.add(f"merchant {one.merchant_id}")
    items = f"{one.items:,}: {show_amount(one.captured)} captured, {show_amount(one.refunded)} refunded"
    tree.add(Text(f"items    {items}"))
    if one.items_waiting:
        tree.add(f"waiting  {one.items_waiting:,} of them, for payments that have something else under way")
    if one.processor_reference:
        bank = tree.add(Text(f"bank     {show_amount(one.net)} in {one.processor_reference}"))
        bank.add(f"{show_amount(one.processor_fees)} fees taken off")
        bank.add(f"booked on {one.booked_on}, due on {one.value_on}")
    tree.add(Text(f"due      {show_amount(one.due)} to the merchant, {show_amount(one.fees)} fees taken off"))
    if one.brought_forward.amount_minor:
        tree.add(f"brought  {show_amount(one.brought_forward)} forward from earlier settlements")
    line = Text(f"payout   {show_amount(one.payout)} ").append(
        _payout(one), style=_STYLES.get(_payout(one), "")
    )
    payout = tree.add(line.append(f" in {one.payout_reference}" if one.payout_reference else ""))
    if one.payout_booked_on:
        payout.add(f"booked on {one.payout_booked_on}, due on {one.payout_value_on}")
    elif one.payout_refusal:
        payout.add(Text(f"{one.payout_refusal}: it is part of the next payout"))
    tree.add(f"made     {show_time(one.created_at)}")
    if one.HasField("completed_at"):
        tree.add(f"ended    {show_time(one.completed_at)}")
    return tree


def _plain(one: pb.Settlement) -> dict[str, Any]:
    from google.protobuf.json_format import MessageToDict

    return MessageToDict(one, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
