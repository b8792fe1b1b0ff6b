"""The `paymesh` command.

Each command group is a module of its own that is imported only when its command is called, so that
`paymesh --help` answers at once. Other packages add commands by the entry-point group `paymesh.commands`.
"""

from collections.abc import Sequence

from paymesh.cli.program import run_program


def main(arguments: Sequence[str] | None = None) -> None:
    """Console script: run the command line and exit with its code."""
    raise SystemExit(run_program(arguments))
