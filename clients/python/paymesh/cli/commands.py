"""The commands there are: built in, and added by other packages as entry points of `paymesh.commands`.

A command is known by name and by the place of its code, "module:attribute". The attribute is a function with
Typer annotations, or a `typer.Typer` with commands of its own. For the help text only the first line of its
docstring is needed; that is read from the source file without running it.
"""

import ast
import importlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import typer

EXTENSION_GROUP = "paymesh.commands"


class CommandError(Exception):
    """A command is registered but cannot be loaded."""


@dataclass(frozen=True)
class CommandSource:
    """Where the code of a command is."""

    place: str
    """For example "paymesh.cli.order:commands"."""
    package: str
    """Name of the installed package that it comes from."""
    help: str = ""
    """One line for the list of commands; read from the source when empty."""


BUILT_IN: Mapping[str, CommandSource] = {
    "bank": CommandSource(
        "paymesh.cli.bank:commands",
        "paymesh",
        "Fetch the sandbox bank's statements, and make errors in them.",
    ),
    "case": CommandSource(
        "paymesh.cli.case:commands", "paymesh", "Look at differences with the bank, and resolve them."
    ),
    "ledger": CommandSource(
        "paymesh.cli.ledger:commands", "paymesh", "Show a merchant's accounts and their entries."
    ),
    "order": CommandSource("paymesh.cli.order:commands", "paymesh", "Place, show, watch and replay orders."),
    "payment": CommandSource(
        "paymesh.cli.payment:commands", "paymesh", "Show, capture, refund, increment and void payments."
    ),
    "product": CommandSource("paymesh.cli.product:commands", "paymesh", "Add, show and list products."),
    "reconcile": CommandSource(
        "paymesh.cli.reconcile:reconcile_statements", "paymesh", "Compare bank statements with our books."
    ),
    "saga": CommandSource("paymesh.cli.saga:commands", "paymesh", "List sagas and tell the story of one."),
    "settlement": CommandSource(
        "paymesh.cli.settlement:commands",
        "paymesh",
        "Settle days, and show what the bank has paid out and merchants were paid.",
    ),
}


def find_extensions() -> dict[str, CommandSource]:
    """Commands of other packages by name, ascending. A built-in command cannot be replaced."""
    found = {}
    for point in sorted(entry_points(group=EXTENSION_GROUP), key=lambda point: point.name):
        if point.name not in BUILT_IN:
            package = point.dist.name if point.dist else "an unknown package"
            found[point.name] = CommandSource(point.value, package)
    return found


def add_command(program: typer.Typer, name: str, source: CommandSource) -> None:
    """Import a command and add it. CommandError when that fails."""
    module_name, _, attribute = source.place.partition(":")
    try:
        target: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            target = getattr(target, part)
    except (ImportError, AttributeError, SyntaxError) as error:
        raise CommandError(
            f"the command `{name}` of the package {source.package} cannot be loaded: {error}"
        ) from error
    if isinstance(target, typer.Typer):
        if source.help:
            program.add_typer(target, name=name, help=source.help)
        else:
            program.add_typer(target, name=name)  # its own help stands; None would take it away
    elif callable(target):
        program.command(name)(target)
    else:
        raise CommandError(f"the command `{name}` of the package {source.package} is not a function")


def add_placeholder(program: typer.Typer, name: str, source: CommandSource) -> None:
    """Add what the list of commands shows of a command that is not called now."""

    def placeholder() -> None:
        raise AssertionError(f"{name} was called without being loaded")

    program.command(name, help=source.help or read_help(source))(placeholder)


def read_help(source: CommandSource) -> str:
    """First line of the docstring of a command's function, or of its module; never runs its code."""
    module_name, _, attribute = source.place.partition(":")
    try:
        spec = importlib.util.find_spec(module_name)
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None:
        return f"(cannot be loaded: there is no module {module_name})"
    try:
        tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    except (OSError, SyntaxError, UnicodeDecodeError):
        return f"(cannot be loaded: {module_name} cannot be read)"
    functions = [
        node
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == attribute
    ]
    docstring = (ast.get_docstring(functions[0]) if functions else None) or ast.get_docstring(tree) or ""
    return docstring.partition("\n")[0]
