"""Puts the command line together and turns every outcome into an exit code.

0 it was done · 1 the answer is no, or none came · 2 the user's mistake · 3 no service answers at the target.
"""

import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from paymesh.cli.commands import BUILT_IN, CommandError, add_command, add_placeholder, find_extensions

EXIT_NO = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3
EXIT_INTERRUPTED = 130


class UserError(Exception):
    """The user asked for something that cannot be done; the message is one line and says what would."""


def build_program(wanted: str | None) -> typer.Typer:
    """The command line. Only the command that is `wanted` is imported; the others stand for the help text."""
    program = typer.Typer(
        name="paymesh",
        help="Place orders with paymesh and see what became of them.",
        epilog="Exit codes: 0 done, 1 the answer is no, 2 wrong input, 3 no service answers.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="markdown",
    )
    program.callback()(_root)
    extensions = find_extensions()
    for name, built_in in BUILT_IN.items():
        if name == wanted:
            add_command(program, name, built_in)
        else:
            add_placeholder(program, name, built_in)
    for name, extension in extensions.items():
        if name == wanted:
            add_command(program, name, extension)
        else:
            add_placeholder(program, name, extension)
    return program


def _show_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import PackageNotFoundError, version  # 20 ms that help can do without

        try:
            typer.echo(f"paymesh {version('paymesh-client')}")
        except PackageNotFoundError:
            typer.echo("paymesh (not installed as a package)")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def run_program(arguments: Sequence[str] | None = None) -> int:
    """Run one command line, `sys.argv` by default, and return its exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    # The root takes no option with a value, so the first word that is not an option is the command.
    wanted = next((word for word in given if not word.startswith("-")), None)
    try:
        program = build_program(wanted)
        result = program(args=given, prog_name="paymesh", standalone_mode=False)
    except (CommandError, UserError) as error:
        return _fail(str(error), EXIT_USAGE)
    except typer.Abort:
        return _fail("interrupted", EXIT_INTERRUPTED)
    except KeyboardInterrupt:
        return _fail("interrupted", EXIT_INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output has seen enough. Python would complain once more when it closes stdout.
        sys.stdout = None
        return EXIT_NO
    except Exception as error:
        if not hasattr(error, "format_message"):  # not one of Typer's own
            raise
        return _fail_usage(error, wanted)
    return result if isinstance(result, int) else 0


def _fail_usage(error: Exception, wanted: str | None) -> int:
    """Typer refused the command line: one line instead of its box."""
    message = " ".join(str(error.format_message()).split())  # type: ignore[attr-defined]
    if not message:  # "no arguments given": Typer has printed the help already
        return EXIT_USAGE
    hint = f"paymesh {wanted} --help" if wanted in BUILT_IN else "paymesh --help"
    return _fail(f"{message.rstrip('.')} (see `{hint}`)", EXIT_USAGE)


def _fail(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code
