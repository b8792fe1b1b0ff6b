"""Commands and their outcomes: the vocabulary of work in sets.

Every mutating RPC is one handler over a list of commands that returns an outcome per command, in the same order. A
command that must be refused is refused alone: its outcome is a `Failed` *value*, its neighbours go on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Generic, NamedTuple, TypeAlias, TypeVar

from google.protobuf.message import Message
from opentelemetry.trace import Span

from services.kit.deadline import Deadline
from services.kit.errors import PaymeshError

R = TypeVar("R")
"""A request in the words of the domain."""
M = TypeVar("M", bound=Message)
"""A response on the wire."""


class Command(NamedTuple, Generic[R]):
    """One request to change something.

    This and its neighbours are named tuples because they are made for every item of every set: a frozen dataclass takes
    three times as long to make.
    """

    merchant_id: str
    """Whose data it touches; leads every key."""
    caller: str
    """Who sent it."""
    key: str
    """Its idempotency key, unique within (merchant, caller, method)."""
    fingerprint: bytes
    """Hash of the request: tells a repeat from another request under the same key."""
    resource_id: str
    """Identifier for the thing it will create, if it creates one; born here so that it is known before the work."""
    request: R
    """What is asked for."""
    span: Span | None
    """The span of this command; None when it is not traced."""


class Answer(NamedTuple, Generic[M]):
    """A command was carried out, now or (`replayed`) by an earlier call with its key."""

    message: M
    replayed: bool = False


class Failed(NamedTuple):
    """A command was not carried out."""

    error: PaymeshError
    replayed: bool = False


Outcome: TypeAlias = Answer[M] | Failed


class Pending(NamedTuple, Generic[M]):
    """A command was accepted and will be carried to its end; `outcome` is set when that is reached."""

    outcome: asyncio.Future[Answer[M] | Failed]
    facts: Mapping[str, str] = MappingProxyType({})
    """For a caller that cannot wait for it: what to ask for, by name."""
    replayed: bool = False
    """Whether it is the outcome of an earlier call with the key."""


Handle: TypeAlias = Callable[
    [Sequence[Command[R]], Deadline], Awaitable[Sequence[Answer[M] | Failed | Pending[M]]]
]
