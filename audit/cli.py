"""Check that all books agree, and that history is as it was written.

The command `paymesh audit`; below it `verify`, `prove` and `check-proof` are in `audit.trail.cli`, `export` is in
`audit.archive.cli`.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from audit.archive.cli import export
from audit.trail.cli import check_proof, prove, verify

EXIT_VIOLATED = 1
EXIT_NOT_DONE = 2

DATA = Path(".paymesh")


def audit(
    context: typer.Context,
    data: Annotated[
        Path,
        typer.Option("--data", envvar="PAYMESH_DATA", help="Folder of a local mesh.", file_okay=False),
    ] = DATA,
    wait: Annotated[
        float,
        typer.Option(
            "--wait", min=0.0, metavar="SECONDS", help="Wait at most so long for work under way to end."
        ),
    ] = 0.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines instead of text.")] = False,
) -> None:
    """Check that all books agree: every database of the mesh, and the bank's.

    Reads only, at any time, beside any load. What is under way is counted as in flight and not judged.
    The databases are those of the mesh that runs, or ran, on the data folder, or those that
    PAYMESH_ORCHESTRATOR_DATABASE_DSN, PAYMESH_PAYMENT_DATABASE_DSN and so on name.

    Exit codes: 0 every invariant holds, 1 one is violated, 2 a database cannot be read.

    Examples:

    - `paymesh audit`

    - `paymesh audit --data /var/tmp/shop --wait 30`

    - `paymesh audit --json`
    """
    if context.invoked_subcommand is not None:
        for name in ("data", "wait", "as_json"):
            source = context.get_parameter_source(name)
            if source is not None and source.name == "COMMANDLINE":
                raise typer.BadParameter(f"options of `{context.invoked_subcommand}` go behind it")
        return
    from rich.console import (
        Console,  # these, the database driver and all contracts are nothing that help needs
    )

    from audit.dsns import found_dsns
    from audit.report import AuditError
    from audit.run import run_audit
    from audit.show import show

    try:
        with found_dsns(data) as dsns:
            report = asyncio.run(run_audit(dsns, wait_seconds=wait))
    except AuditError as error:
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(EXIT_NOT_DONE) from error
    if as_json:
        print(json.dumps(report.as_json(), indent=2, ensure_ascii=False))
    else:
        show(report, Console(highlight=False, soft_wrap=True))
    if not report.ok:
        raise typer.Exit(EXIT_VIOLATED)


commands = typer.Typer(invoke_without_command=True, rich_markup_mode="markdown")
commands.callback()(audit)
commands.command("verify")(verify)
commands.command("export")(export)
commands.command("prove")(prove)
commands.command("check-proof")(check_proof)
