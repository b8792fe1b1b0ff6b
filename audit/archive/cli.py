"""The command `paymesh audit export`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import typer

from audit.report import AuditError
from audit.trail.cli import DATA, Checkpoints, Data, Keys, read_keys, shown_progress, told
from deploy.local.trail import checkpoints_of, key_file_of


def export(
    month: Annotated[str, typer.Option("--month", metavar="YYYY-MM", help="A month that is over, by UTC.")],
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="Where its folder goes.", file_okay=False)],
    data: Data = DATA,
    checkpoints: Checkpoints = None,
    key: Keys = None,
    sign_with: Annotated[
        Path | None,
        typer.Option(
            "--sign-with",
            metavar="FILE",
            help="Ed25519 key that signs the archive, as PEM. Default: that of --data.",
        ),
    ] = None,
) -> None:
    """Write a month of history as files that stand for themselves: Parquet, checkpoints and a signed list.

    The month is that in which payments began; all that has happened to them since is in it. Everything is verified on
    the way, and what is not as it was written is not exported. The database is only read; nothing is taken out of it.

    Exit codes: 0 it is written, 2 it is not, and nothing is left behind.

    Examples:

    - `paymesh audit export --month 2026-09 --to archives`

    - `paymesh audit verify --archive archives/2026-09 --key trail.pub`
    """
    from audit.archive.export import export as run_export
    from audit.archive.month import read_month
    from audit.dsns import found_dsns
    from services.payment.trail.checkpoint import read_private_key

    with told():
        wanted = read_month(month)
        keys = read_keys(key or [key_file_of(data)])
        file = sign_with or key_file_of(data)
        try:
            signing = read_private_key(file.read_bytes())
        except (OSError, ValueError) as error:
            raise AuditError(
                f"nothing can be signed with {file}: {error}; name a private key with --sign-with FILE"
            ) from error
        with found_dsns(data, wanted=("payment",)) as dsns, shown_progress(quiet=False) as progress:
            folder = checkpoints or checkpoints_of(data)
            manifest = asyncio.run(run_export(dsns["payment"], folder, signing, keys, wanted, to, progress))
    print(f"{to / month}: {manifest.payments:,} payments, {manifest.events:,} events")
    print(
        f"{manifest.entries:,} ledger entries; sealed by {len(manifest.checkpoints):,} checkpoints, signed with the key"
        f" {manifest.key_id}"
    )
