"""`paymesh bank`: what the sandbox bank tells its customers at the end of a day, and errors in it."""

import contextlib
import sys
from pathlib import Path
from typing import Annotated, BinaryIO

import typer
from rich.console import Console
from rich.text import Text

from paymesh.bank.v1 import statement_pb2 as pb
from paymesh.bank.v1 import statement_pb2_grpc
from paymesh.cli.calls import connected, run
from paymesh.cli.options import BANK_TARGET, LIMIT, MERCHANT, BankTarget, Json, Limit, Merchant
from paymesh.cli.program import UserError
from paymesh.cli.story import console, print_json

PAGE_SIZE_MAX = 1_000
FILE_SECONDS = 3_600.0
"""A day of a million bookings takes a minute."""

FORMATS = {
    "camt053": pb.STATEMENT_FORMAT_CAMT053,
    "mt940": pb.STATEMENT_FORMAT_MT940,
    "bai2": pb.STATEMENT_FORMAT_BAI2,
    "csv": pb.STATEMENT_FORMAT_CSV,
}
DETAILS = {"batches": pb.STATEMENT_DETAIL_BATCHES, "items": pb.STATEMENT_DETAIL_ITEMS}

commands = typer.Typer(no_args_is_help=True, rich_markup_mode="markdown")

Date = Annotated[str, typer.Option("--date", help="The day, 2026-11-26, in UTC; not later than today.")]
AllMerchants = Annotated[bool, typer.Option("--all-merchants", help="Of all merchants instead of one.")]


@commands.callback()
def bank() -> None:
    """Fetch the sandbox bank's statements, and make errors in them."""


@commands.command(
    "statement",
    epilog="Example: `paymesh bank statement --date 2026-11-26 --format camt053 --to statement.xml`",
)
def statement(
    date: Date,
    to: Annotated[Path, typer.Option("--to", help="The file to write; - is standard output.")],
    format_name: Annotated[
        str, typer.Option("--format", help=f"One of {', '.join(FORMATS)}.", metavar="FORMAT")
    ] = "camt053",
    detail: Annotated[
        str,
        typer.Option(
            "--detail",
            metavar="DETAIL",
            help="batches: a settlement is one entry, net of fees. items: every capture and refund is one.",
        ),
    ] = "batches",
    merchant: Merchant = MERCHANT,
    all_merchants: AllMerchants = False,
    target: BankTarget = BANK_TARGET,
) -> None:
    """Write the statements of a day into a file: one for each of the merchant's accounts.

    The file appears under its name when it is whole.
    """
    request = pb.GetStatementRequest(
        date=date,
        merchant_id="" if all_merchants else merchant,
        format=_chosen("--format", format_name, FORMATS),  # type: ignore[arg-type]
        detail=_chosen("--detail", detail, DETAILS),  # type: ignore[arg-type]
    )
    if str(to) == "-":
        run(_copy(target, request, sys.stdout.buffer), False)
        return
    # A statement that is half there would be refused by whoever reads it, and not be missed by whoever looks.
    draft = to.with_name(f".{to.name}.part")
    try:
        with draft.open("wb") as file:
            written = run(_copy(target, request, file), False)
        draft.replace(to)
    except OSError as error:
        raise UserError(f"--to {to}: {error.strerror or error}") from None
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)
    console().print(Text(f"{to}: {written:,} bytes of {format_name}"))


@commands.command(
    "inject", epilog="Example: `paymesh bank inject --date 2026-11-26 --seed 7 --missing 2 --wrong-amount 1`"
)
def inject(
    date: Date,
    seed: Annotated[int, typer.Option("--seed", help="Draws which bookings. A seed is used once a day.")],
    missing: Annotated[int, typer.Option(min=0, help="Bookings that are not shown.")] = 0,
    double: Annotated[int, typer.Option(min=0, help="Bookings that are shown twice.")] = 0,
    wrong_amount: Annotated[int, typer.Option(min=0, help="Bookings with another amount.")] = 0,
    late: Annotated[int, typer.Option(min=0, help="Bookings that a later statement shows.")] = 0,
    unknown: Annotated[int, typer.Option(min=0, help="Lines that were never booked.")] = 0,
    other_currency: Annotated[
        int, typer.Option(min=0, help="Bookings on the account in another currency.")
    ] = 0,
    late_days: Annotated[int, typer.Option(min=1, max=30, help="How many days later.")] = 1,
    merchant: Merchant = MERCHANT,
    all_merchants: AllMerchants = False,
    target: BankTarget = BANK_TARGET,
    as_json: Json = False,
) -> None:
    """Make errors in the statements of a day. What the bank has done does not change; every statement still adds up."""
    counts = {
        pb.STATEMENT_ERROR_KIND_MISSING: missing,
        pb.STATEMENT_ERROR_KIND_DOUBLE: double,
        pb.STATEMENT_ERROR_KIND_WRONG_AMOUNT: wrong_amount,
        pb.STATEMENT_ERROR_KIND_LATE: late,
        pb.STATEMENT_ERROR_KIND_UNKNOWN: unknown,
        pb.STATEMENT_ERROR_KIND_OTHER_CURRENCY: other_currency,
    }
    request = pb.InjectStatementErrorsRequest(
        date=date,
        merchant_id="" if all_merchants else merchant,
        seed=seed,
        counts=[pb.StatementErrorCount(kind=kind, count=count) for kind, count in counts.items() if count],
        late_days=late_days,
    )

    async def work() -> pb.InjectStatementErrorsResponse:
        async with connected(target) as channel:
            return await statement_pb2_grpc.StatementServiceStub(channel).InjectStatementErrors(request)

    response = run(work(), as_json)
    if as_json:
        print_json(response)
        return
    _show(list(response.errors))


@commands.command("errors", epilog="Example: `paymesh bank errors --date 2026-11-26`")
def list_errors(
    date: Annotated[str, typer.Option("--date", help="Only of this day.")] = "",
    limit: Limit = LIMIT,
    merchant: Merchant = MERCHANT,
    all_merchants: AllMerchants = False,
    target: BankTarget = BANK_TARGET,
    as_json: Json = False,
) -> None:
    """List the errors that were made in statements."""
    found = run(_list(target, date, "" if all_merchants else merchant, limit), as_json)
    if as_json:
        print_json(pb.ListStatementErrorsResponse(errors=found))
        return
    _show(found)


async def _copy(target: str, request: pb.GetStatementRequest, file: BinaryIO) -> int:
    """Write the pieces as they come. Returns how many bytes."""
    written = 0
    async with connected(target) as channel:
        stub = statement_pb2_grpc.StatementServiceStub(channel)
        # Standard output may be where the file goes.
        with Console(stderr=True).status("fetching") as status:
            async for piece in stub.GetStatement(request, timeout=FILE_SECONDS):
                written += file.write(piece.chunk)
                status.update(f"fetching: {written / 1e6:,.1f} MB")
    file.flush()
    return written


async def _list(target: str, date: str, merchant: str, limit: int) -> list[pb.StatementError]:
    """Up to `limit` errors, page by page."""
    found: list[pb.StatementError] = []
    token = ""
    async with connected(target) as channel:
        stub = statement_pb2_grpc.StatementServiceStub(channel)
        while len(found) < limit:
            page = await stub.ListStatementErrors(
                pb.ListStatementErrorsRequest(
                    date=date,
                    merchant_id=merchant,
                    page_size=min(limit - len(found), PAGE_SIZE_MAX),
                    page_token=token,
                )
            )
            found += page.errors
            token = page.next_page_token
            if not token:
                break
    return found


def _chosen(option: str, name: str, choices: dict[str, int]) -> int:
    if name not in choices:
        raise UserError(f"{option} {name}: expected one of {', '.join(choices)}")
    return choices[name]


def _show(errors: list[pb.StatementError]) -> None:
    if not errors:
        console().print(Text("no errors"))
        return
    for error in errors:
        kind = pb.StatementErrorKind.Name(error.kind).removeprefix("STATEMENT_ERROR_KIND_").lower()
        booked = f"{error.booked_minor:,} {error.currency}" if error.booked_minor else "nothing"
        shown = f"{error.shown_minor:,} {error.shown_currency}" if error.shown_minor else "nothing"
        line = f"{error.date}  {kind.replace('_', ' '):<14}  {error.bank_reference}  booked {booked}, shown {shown}"
        console().print(Text(line if error.shown_on == error.date else f"{line} on {error.shown_on}"))
