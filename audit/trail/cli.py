"""The commands `paymesh audit verify`, `prove` and `check-proof`."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from audit.report import AuditError
from deploy.local.trail import checkpoints_of, key_file_of

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from rich.console import Console

    from audit.trail.report import TrailReport
    from audit.trail.verify import Progress

EXIT_VIOLATED = 1
EXIT_NOT_DONE = 2
SHOWN = 30
"""Offences that are told one by one; `--json` has more."""

DATA = Path(".paymesh")
Data = Annotated[
    Path, typer.Option("--data", envvar="PAYMESH_DATA", help="Folder of a local mesh.", file_okay=False)
]
Checkpoints = Annotated[
    Path | None,
    typer.Option("--checkpoints", metavar="FOLDER", help="Where the checkpoints are, if not in --data."),
]
Keys = Annotated[
    list[Path] | None,
    typer.Option(
        "--key",
        envvar="PAYMESH_CHECKPOINT_KEYS",
        metavar="FILE",
        help="Public key, as PEM, that may have signed; more than one after a change of keys. Default: that of --data.",
    ),
]
Archive = Annotated[
    Path | None,
    typer.Option(
        "--archive",
        metavar="FOLDER",
        help="An archive, or a folder of archives: needs no database.",
        file_okay=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for machines instead of text.")]


def verify(
    data: Data = DATA,
    checkpoints: Checkpoints = None,
    key: Keys = None,
    archive: Archive = None,
    as_json: AsJson = False,
) -> None:
    """Verify that history is as it was written: every event, payment and checkpoint.

    Rebuilds every payment from its events, follows every chain, and holds both against the signed checkpoints.
    Names every row that was changed, deleted, reordered or cut off. Reads only, beside any load.
    The database is that of the mesh on the data folder, or PAYMESH_PAYMENT_DATABASE_DSN. With --archive it is
    archives that are verified, by their files alone: no database is needed.

    Exit codes: 0 everything is as it was written, 1 something is not, 2 something cannot be read.

    Examples:

    - `paymesh audit verify`

    - `paymesh audit verify --checkpoints trail --key trail.pub`

    - `paymesh audit verify --archive archives/2026-09 --key trail.pub`
    """
    from rich.console import Console

    with told():
        keys = read_keys(key or [key_file_of(data)])
        with shown_progress(as_json) as progress:
            report = (
                _verify_archives(archive, keys, progress)
                if archive is not None
                else _verify_database(data, checkpoints or checkpoints_of(data), keys, progress)
            )
    if as_json:
        print(json.dumps(report.as_json(), indent=2, ensure_ascii=False))
    else:
        _show(report, Console(highlight=False, soft_wrap=True))
    if not report.ok:
        raise typer.Exit(EXIT_VIOLATED)


def _verify_database(
    data: Path, checkpoints: Path, keys: Mapping[str, Ed25519PublicKey], progress: Progress
) -> TrailReport:
    from audit.dsns import found_dsns
    from audit.trail.verify import verify as run_verify

    with found_dsns(data, wanted=("payment",)) as dsns:
        return asyncio.run(run_verify(dsns["payment"], checkpoints, keys, progress))


def _verify_archives(archive: Path, keys: Mapping[str, Ed25519PublicKey], progress: Progress) -> TrailReport:
    from audit.archive.verify import verify_archives  # pyarrow: only who has an archive waits for it

    return asyncio.run(verify_archives(archive, keys, progress))


def prove(
    payment: Annotated[str, typer.Argument(help="The payment's id.")],
    merchant: Annotated[str, typer.Option("--merchant", help="Whose it is.")],
    data: Data = DATA,
    checkpoints: Checkpoints = None,
    archive: Archive = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write here; otherwise to standard output.")
    ] = None,
) -> None:
    """Write a proof of one payment's events, for somebody who has only the public key.

    Examples:

    - `paymesh audit prove pay_0197… --merchant mer_1 --out proof.json`

    - `paymesh audit prove pay_0197… --merchant mer_1 --archive archives`
    """
    from audit.dsns import found_dsns
    from audit.trail.proof import prove as make_proof
    from audit.trail.proof import prove_from_archive

    with told():
        if archive is not None:
            proof = prove_from_archive(archive, merchant, payment)
        else:
            with found_dsns(data, wanted=("payment",)) as dsns:
                folder = checkpoints or checkpoints_of(data)
                proof = asyncio.run(make_proof(dsns["payment"], folder, merchant, payment))
        text = json.dumps(proof, indent=2, ensure_ascii=False) + "\n"
        if out is None:
            sys.stdout.write(text)
        else:
            out.write_text(text)


def check_proof(
    file: Annotated[Path, typer.Argument(help="What `paymesh audit prove` wrote.")],
    data: Data = DATA,
    key: Keys = None,
) -> None:
    """Check a proof: with the public key and without any database.

    Exit codes: 0 it proves what it says, 1 it does not, 2 it cannot be read.

    Examples:

    - `paymesh audit check-proof proof.json --key trail.pub`
    """
    from audit.trail.proof import check

    with told():
        try:
            proof = json.loads(file.read_text())
        except (OSError, ValueError) as error:
            raise AuditError(f"{file} cannot be read: {error}") from error
        keys = read_keys(key or [key_file_of(data)])
    faults = check(proof, keys)
    for fault in faults:
        print(f"not proved: {fault}")
    if faults:
        raise typer.Exit(EXIT_VIOLATED)
    print(f"proved: {proof['payment_id']} of {proof['merchant_id']}, {len(proof['events'])} events")
    for event in proof["events"]:
        print(f"  {event['version']} {event['type']} {event['data']} (checkpoint {event['checkpoint']})")


@contextmanager
def told() -> Iterator[None]:
    """What cannot be read, as one line and an exit code."""
    try:
        yield
    except AuditError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(EXIT_NOT_DONE) from error


def read_keys(files: list[Path]) -> Mapping[str, Ed25519PublicKey]:
    """By name. Raises AuditError."""
    from services.payment.trail.checkpoint import key_id_of, read_public_key

    keys = {}
    for file in files:
        try:
            key = read_public_key(file.read_bytes())
        except (OSError, ValueError) as error:
            raise AuditError(f"the key {file} cannot be read: {error}; name one with --key FILE") from error
        keys[key_id_of(key)] = key
    return keys


@contextmanager
def shown_progress(quiet: bool) -> Iterator[Progress]:
    """A bar on standard error, where somebody is looking at it."""
    if quiet or not sys.stderr.isatty():
        yield lambda what, done, of: None
        return
    from rich.console import Console
    from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        tasks: dict[str, object] = {}

        def told(what: str, done: int, of: int) -> None:
            task = tasks.get(what)
            if task is None:
                task = tasks[what] = shown.add_task(what, total=of)
            shown.update(task, completed=done, total=of)  # type: ignore[arg-type]

        yield told


def _show(report: TrailReport, out: Console) -> None:
    from rich.text import Text

    for offence in report.first[:SHOWN]:
        out.print(Text(str(offence), style="red"))
    if report.offences > SHOWN:
        out.print(Text(f"and {report.offences - min(SHOWN, len(report.first)):,} more", style="red"))
    out.print(
        f"{report.payments:,} payments, {report.events:,} events, {report.checkpoints:,} checkpoints with"
        f" {report.sealed:,} events; {report.unsealed:,} are not sealed yet"
    )
    if report.unhashed:
        out.print(f"{report.unhashed:,} events are from before there was a chain")
    if report.ok:
        out.print(
            Text(f"history is as it was written: verified in {report.seconds:.1f} s", style="bold green")
        )
    else:
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in report.kinds.items())
        out.print(Text(f"HISTORY WAS CHANGED: {kinds}; {report.seconds:.1f} s", style="bold red"))
