"""`paymesh ledger`: a merchant's accounts and their entries."""

from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from paymesh.cli.calls import connected, run
from paymesh.cli.options import LIMIT, MERCHANT, PAYMENT_TARGET, Json, Limit, Merchant, PaymentTarget
from paymesh.cli.story import console, print_json, show_amount, show_time
from paymesh.payment.v1 import ledger_pb2, ledger_pb2_grpc

PAGE_SIZE_MAX = 1_000

commands = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")


@commands.callback()
def ledger() -> None:
    """Show a merchant's accounts and their entries."""


@commands.command("balance", epilog="Example: `paymesh ledger balance --merchant demo`")
def balance(
    merchant: Merchant = MERCHANT, target: PaymentTarget = PAYMENT_TARGET, as_json: Json = False
) -> None:
    """Show every account of a merchant: the trial balance. Debits are positive, credits negative."""

    async def work() -> ledger_pb2.GetTrialBalanceResponse:
        async with connected(target) as channel:
            stub = ledger_pb2_grpc.LedgerServiceStub(channel)
            return await stub.GetTrialBalance(ledger_pb2.GetTrialBalanceRequest(merchant_id=merchant))

    response = run(work(), as_json)
    if as_json:
        print_json(response)
        return
    if not response.accounts:
        console().print(Text(f"merchant {merchant} has no entries"))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("account")
    for column in ("debits", "credits", "balance", "entries"):
        table.add_column(column, justify="right")
    for account in response.accounts:
        amounts = (show_amount(one) for one in (account.debits, account.credits, account.balance))
        table.add_row(Text(account.account), *amounts, f"{account.entries:,}")
    console().print(table)
    for total in response.sums:
        console().print(f"all accounts in {total.currency} add up to {show_amount(total)}")


@commands.command("entries", epilog="Example: `paymesh ledger entries --payment pay_01jd…`")
def entries(
    account: Annotated[str, typer.Option("--account", help="Only of this account, such as cash.")] = "",
    payment_id: Annotated[str, typer.Option("--payment", help="Only of this payment, pay_…")] = "",
    limit: Limit = LIMIT,
    merchant: Merchant = MERCHANT,
    target: PaymentTarget = PAYMENT_TARGET,
    as_json: Json = False,
) -> None:
    """List ledger entries."""
    found = run(_list(target, merchant, account, payment_id, limit), as_json)
    if as_json:
        print_json(ledger_pb2.ListEntriesResponse(entries=found))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("amount", justify="right", no_wrap=True)
    for column in ("account", "posted", "journal"):
        table.add_column(column, no_wrap=True)
    for entry in found:
        table.add_row(
            show_amount(entry.amount), entry.account, show_time(entry.posted_at), Text(entry.journal_id)
        )
    console().print(table)


async def _list(
    target: str, merchant: str, account: str, payment_id: str, limit: int
) -> list[ledger_pb2.Entry]:
    """Up to `limit` entries, page by page."""
    found: list[ledger_pb2.Entry] = []
    token = ""
    async with connected(target) as channel:
        stub = ledger_pb2_grpc.LedgerServiceStub(channel)
        while len(found) < limit:
            page = await stub.ListEntries(
                ledger_pb2.ListEntriesRequest(
                    merchant_id=merchant,
                    account=account,
                    payment_id=payment_id,
                    page_size=min(limit - len(found), PAGE_SIZE_MAX),
                    page_token=token,
                )
            )
            found += page.entries
            token = page.next_page_token
            if not token:
                break
    return found
