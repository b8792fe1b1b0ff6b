"""What stands in front of every request, before a byte of its body is read: how many at once, who is asking, how
often, how much, how long. Plain ASGI, because this is paid for by every request.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any

import orjson
from opentelemetry import trace
from opentelemetry.trace import Span
from prometheus_client import Counter, Histogram

from services.edge import store
from services.edge.config import EdgeConfig
from services.edge.domain import problems
from services.edge.domain.keys import Access, Grant, bearer, hash_of, merchant_in
from services.edge.domain.problems import Declined, Problem, problem_of
from services.edge.limiter import Limiter
from services.kit import metrics, telemetry
from services.kit.clock import now_ms
from services.kit.db import Database
from services.kit.errors import PaymeshError

log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

GRANTS_MAX = 10_000
"""Keys that are remembered; the one that was not used for longest is forgotten."""
STRANGERS_MAX = 10_000
"""Keys that nobody has, and that are remembered as such; the one that was looked up first is forgotten."""
DISCARDED_BYTES_MAX = 4_194_304
"""Of a body that is too large, so much is read and thrown away: a client that is still sending would not see the
answer."""
GUARDED = "/api/"
READING = frozenset({"GET", "HEAD"})
PROBLEM_TYPE = "application/problem+json"
JSON = (b"content-type", b"application/json")
"""What every body is taken for: there is nothing else it could be, and `curl -d` says something else."""


LOOKUPS = Counter(
    "paymesh_edge_key_lookups_total", "API keys that were looked up in the database.", ("found",)
)


class Grants:
    """Keys, looked up in the database and believed for a moment; that there is no such key, too: a client with an old
    one in its settings asks for ever. Whoever tries another key each time is looked up each time: not to do that would
    lock out those who have one."""

    def __init__(self, database: Database, key_secret: str, seconds: float) -> None:
        self._database = database
        self._key_secret = key_secret
        self._seconds = seconds
        self._known: OrderedDict[bytes, tuple[float, Grant]] = OrderedDict()
        self._strangers: OrderedDict[bytes, float] = OrderedDict()

    async def of(self, api_key: str) -> Grant | None:
        """What a key is good for; None for nothing. Raises PaymeshError when the database does not answer."""
        merchant_id = merchant_in(api_key)
        if merchant_id is None:
            return None
        key_hash = hash_of(api_key, self._key_secret)
        found = self._known.get(key_hash)
        if found is not None and found[0] > time.monotonic():
            grant = found[1]
            self._known.move_to_end(key_hash)
        elif self._strangers.get(key_hash, 0.0) > time.monotonic():
            return None
        else:
            looked_up = await store.find_grant(self._database, merchant_id, key_hash)
            LOOKUPS.labels("no" if looked_up is None else "yes").inc()
            if looked_up is None:
                self._known.pop(key_hash, None)
                self._strangers.pop(key_hash, None)
                self._strangers[key_hash] = time.monotonic() + self._seconds
                while len(self._strangers) > STRANGERS_MAX:
                    self._strangers.popitem(last=False)
                return None
            grant = looked_up
            self._known[key_hash] = (time.monotonic() + self._seconds, grant)
            while len(self._known) > GRANTS_MAX:
                self._known.popitem(last=False)
        return grant if grant.valid_at(now_ms()) else None


class Gate:
    """Lets through what may pass; everything else gets its problem."""

    def __init__(self, app: Application, grants: Grants, limiter: Limiter, config: EdgeConfig) -> None:
        self._app = app
        self._grants = grants
        self._limiter = limiter
        self._config = config
        self._in_progress = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        answer = _Answer(send)
        started = time.perf_counter()
        self._in_progress += 1
        try:
            with _span(scope) as span:
                await self._answer(scope, receive, answer)
                if span is not None:
                    span.set_attribute("http.response.status_code", answer.status)
        finally:
            self._in_progress -= 1
            duration = _duration(_method(scope), _route(scope), answer.status)
            duration.observe(time.perf_counter() - started)

    async def _answer(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        try:
            if not scope["path"].startswith(GUARDED):
                await self._app(scope, receive, answer.send)
                return
            if self._in_progress > self._config.requests_max:
                raise Declined(problems.overloaded())
            scope.setdefault("state", {})["merchant_id"] = await self._admit(scope)
            body = await _read(receive, scope, self._config.body_bytes_max, self._config.body_seconds)
            if body:
                scope["headers"] = [h for h in scope["headers"] if h[0] != b"content-type"] + [JSON]
            await self._app(scope, _given(body, receive), answer.send)
        except Declined as declined:
            await answer.give(declined.problem)
        except PaymeshError as error:
            await answer.give(problem_of(error))
        except Exception:
            log.exception("%s %s failed", _method(scope), _route(scope))
            await answer.give(problems.internal())

    async def _admit(self, scope: Scope) -> str:
        """The merchant who is asking. Raises Declined."""
        api_key = bearer(_header(scope, b"authorization"))
        if api_key is None:
            raise Declined(problems.unauthenticated("send the header Authorization: Bearer <API key>"))
        grant = await self._grants.of(api_key)
        if grant is None:
            raise Declined(problems.unauthenticated("this API key is unknown, or not valid any more"))
        if (seconds := await self._limiter.admits(grant.key_id, now_ms())) > 0:
            raise Declined(problems.rate_limited(seconds))
        if grant.access is Access.READ and scope["method"] not in READING:
            raise Declined(problems.read_only())
        return grant.merchant_id


async def _read(receive: Receive, scope: Scope, bytes_max: int, seconds: float) -> bytes:
    """The whole body. Raises Declined when it is too large or too slow."""
    declared = _header(scope, b"content-length")
    if declared.isdigit() and int(declared) > bytes_max + DISCARDED_BYTES_MAX:
        raise Declined(problems.too_large(bytes_max))
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(seconds):
            while True:
                message = await receive()
                if message["type"] != "http.request":  # the client has gone; nothing was begun
                    raise Declined(problems.too_slow(seconds))
                part = message.get("body", b"")
                size += len(part)
                if size <= bytes_max:
                    parts.append(part)
                ended = not message.get("more_body", False)
                if size > bytes_max and (ended or size > bytes_max + DISCARDED_BYTES_MAX):
                    raise Declined(problems.too_large(bytes_max))
                if ended:
                    return b"".join(parts)
    except TimeoutError:
        raise Declined(problems.too_slow(seconds)) from None


class _Answer:
    """Sends an answer, and knows whether one was begun."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)

    async def give(self, problem: Problem) -> None:
        """Answer with a problem, unless the answer was begun: then there is nothing left to be said."""
        if self.status:
            return
        headers = {"Content-Type": PROBLEM_TYPE, **problem.all_headers}
        if problem.status in {408, 413}:
            headers["Connection"] = "close"  # the rest of the body is not wanted
        body = orjson.dumps(problem.body)
        headers["Content-Length"] = str(len(body))
        raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": problem.status, "headers": raw})
        await self.send({"type": "http.response.body", "body": body})


def _given(body: bytes, receive: Receive) -> Receive:
    """Hands a body that was read already to the application, and then whatever comes."""
    handed = False

    async def again() -> Message:
        nonlocal handed
        if handed:
            return await receive()
        handed = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


@contextlib.contextmanager
def _span(scope: Scope) -> Iterator[Span | None]:
    """The span of a request, current for whoever is called. Carries no part of the URL that a caller has chosen."""
    if not telemetry.tracing():
        yield None
        return
    headers = {
        name.decode("latin-1"): value.decode("latin-1")
        for name, value in scope["headers"]
        if name in {b"traceparent", b"tracestate"}
    }
    method = _method(scope)
    span = telemetry.start_request(f"HTTP {method}", headers, {"http.request.method": method})
    with trace.use_span(span, record_exception=False, set_status_on_exception=False):
        try:
            yield span
        finally:
            route = _route(scope)
            span.update_name(f"{method} {route}")
            span.set_attribute("http.route", route)
            telemetry.end(span)


@functools.cache
def _duration(method: str, route: str, status: int) -> Histogram:
    return metrics.HTTP_SERVER_DURATION.labels(method, route, str(status))


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})


def _method(scope: Scope) -> str:
    """One of a few: what somebody has made up would be a metric of its own."""
    return scope["method"] if scope["method"] in _METHODS else "_OTHER"


def _route(scope: Scope) -> str:
    """The path as the document has it; "-" when none was found."""
    return str(getattr(scope.get("route"), "path", "-"))


def _header(scope: Scope, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), "")
