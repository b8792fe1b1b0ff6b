"""Runs the calls of a command and turns their failures into one line and an exit code."""

import asyncio
import json
import random
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import grpc.aio
import typer

from paymesh.channel import open_channel, with_key
from paymesh.cli.program import EXIT_NO, EXIT_UNREACHABLE, EXIT_USAGE, UserError
from paymesh.errors import Kind, PaymeshCallError, typed_errors

CALLER = "paymesh-cli"
"""Part of the scope of every key, so it must stay the same from release to release."""

T = TypeVar("T")


class Unreachable(Exception):
    """No service answers at a target."""

    def __init__(self, target: str) -> None:
        super().__init__(target)
        self.target = target


@asynccontextmanager
async def connected(target: str) -> AsyncIterator[grpc.aio.Channel]:
    """A channel for the calls of one command. Their errors become typed; Unreachable names the target."""
    try:
        async with open_channel(target, caller=CALLER) as channel:
            with typed_errors():
                yield channel
    except PaymeshCallError as error:
        if error.unreachable:
            raise Unreachable(target) from error
        raise


def run(work: Coroutine[Any, Any, T], as_json: bool) -> T:
    """Run a command's work to its end. A call that fails ends the command with a line and an exit code."""
    try:
        return asyncio.run(work)
    except Unreachable as error:
        message = (
            f"no service answers at {error.target}: start the mesh with `paymesh up`,"
            " or name another address (see --help)"
        )
        _report({"reason": "UNREACHABLE", "message": message}, message, as_json)
        raise typer.Exit(EXIT_UNREACHABLE) from error
    except PaymeshCallError as error:
        facts = {
            "kind": error.kind.name,
            "reason": error.reason,
            "message": error.message,
            "violations": [{"field": v.field, "description": v.description} for v in error.violations],
            "facts": dict(error.facts),
        }
        _report(facts, str(error), as_json)
        raise typer.Exit(EXIT_USAGE if error.kind is Kind.INVALID else EXIT_NO) from error


def _report(facts: dict[str, Any], message: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"error": facts}))
    print(f"error: {' '.join(message.split())}", file=sys.stderr)


def check_key(key: str | None) -> str:
    """The key that the user named, or one that nobody has used. UserError when no server would take it."""
    if key is None:
        return f"cli/{uuid.uuid4()}"
    try:
        with_key(key)
    except ValueError as error:
        raise UserError(f"--key: {error}") from None
    return key


async def until_settled(call: Callable[[], Awaitable[T]], patience_seconds: float) -> T:
    """Make a call with a key again and again until its answer is final, as long as patience lasts.

    `call` must send the same request with the same key each time. Raises the last error when patience
    ends, and at once when nobody is there to answer.
    """
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + patience_seconds
    wait_seconds = 0.05
    while True:
        try:
            with typed_errors():
                return await call()
        except PaymeshCallError as error:
            if error.unreachable or not error.kind.worth_repeating:
                raise
            asked = error.retry_after.total_seconds() if error.retry_after else 0.0
            wait = max(asked, wait_seconds * random.uniform(0.5, 1.0))  # noqa: S311 (jitter)
            if loop.time() + wait > give_up_at:
                raise
        await asyncio.sleep(wait)
        wait_seconds = min(2 * wait_seconds, 2.0)
