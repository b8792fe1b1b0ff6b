"""Sends one webhook: looks the name up, checks every address that comes of it, connects to one of those and to nothing
else, and waits no longer and reads no more than it has to.

The connection is made to the address that was checked, while Host, SNI and the certificate remain those of the name: so
a name that leads elsewhere a moment later leads nowhere. Nothing is followed, no proxy is asked, no cookie kept, and no
connection outlives its request.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

from services.edge.domain.addresses import Address, Network, Place, may_be_sent_to, place_of
from services.edge.domain.webhooks import Failure, Outcome

ANSWER_BYTES_MAX = 16_384
"""So much of an answer is read; nobody here needs it, and a receiver may have an endless one."""
DETAIL_LENGTH_MAX = 500
"""So much of it is kept for the merchant to look at."""
LOOKUPS_MAX = 128
"""Threads that wait for name servers."""
LOOKUPS_PER_NAME_MAX = 4
"""A name server that does not answer holds up its own names only."""
USER_AGENT = "paymesh-webhooks/1"


class _Refused(Exception):
    """The webhook is not sent."""

    def __init__(self, failure: Failure, detail: str) -> None:
        super().__init__(detail)
        self.failure = failure


class Names:
    """Looks names up, beside the event loop."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(LOOKUPS_MAX, thread_name_prefix="names")
        self._under_way: Counter[str] = Counter()

    async def addresses_of(self, place: Place) -> list[Address]:
        """All addresses behind a name. Raises _Refused."""
        if self._under_way[place.host] >= LOOKUPS_PER_NAME_MAX:
            raise _Refused(Failure.NAME_NOT_FOUND, f"looking up {place.host} takes too long")
        self._under_way[place.host] += 1
        lookup = asyncio.get_running_loop().run_in_executor(self._threads, _look_up, place)
        # A thread cannot be stopped: until it has ended it counts, also when nobody waits for it any more.
        lookup.add_done_callback(lambda done: self._ended(place.host, done))
        return await asyncio.shield(lookup)

    def close(self) -> None:
        """Take nothing new."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _ended(self, host: str, done: asyncio.Future[list[Address]]) -> None:
        self._under_way[host] -= 1
        if not self._under_way[host]:
            del self._under_way[host]
        if not done.cancelled():
            done.exception()  # seen, so that nobody warns of it


def _look_up(place: Place) -> list[Address]:
    try:
        found = socket.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise _Refused(Failure.NAME_NOT_FOUND, f"{place.host} has no address") from error
    # Without the zone of a link-local address, which is refused anyway.
    return list(
        dict.fromkeys(ipaddress.ip_address(str(sockaddr[0]).partition("%")[0]) for *_, sockaddr in found)
    )


class Sender:
    """Makes the requests. `seconds` is what one may take, from the look-up of the name to the end of the answer."""

    def __init__(self, seconds: float, allowed: Sequence[Network]) -> None:
        self.seconds = seconds
        self._allowed = allowed
        self._names = Names()
        self._transport = httpx.AsyncHTTPTransport(
            verify=ssl.create_default_context(),
            trust_env=False,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=0),
        )

    async def send(self, url: str, body: bytes, headers: dict[str, str]) -> Outcome:
        """Send a webhook. Whatever goes wrong is an outcome."""
        started = time.monotonic()
        status, detail, retry_after_ms = None, "", 0
        failure: Failure | None = None
        try:
            async with asyncio.timeout(self.seconds):
                status, detail, retry_after_ms = await self._exchange(url, body, headers)
            if 300 <= status < 400:
                failure = Failure.REDIRECT
            elif not 200 <= status < 300:
                failure = Failure.STATUS
        except _Refused as refused:
            failure, detail = refused.failure, str(refused)
        except (TimeoutError, httpx.TimeoutException):
            failure, detail = Failure.TIMEOUT, f"no answer within {self.seconds:g} s"
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            failure, detail = Failure.CONNECTION, str(error) or type(error).__name__
        duration_ms = round((time.monotonic() - started) * 1000)
        return Outcome(failure, status, _shown(detail), duration_ms, retry_after_ms)

    async def close(self) -> None:
        """Close what is open."""
        self._names.close()
        await self._transport.aclose()

    async def _exchange(self, url: str, body: bytes, headers: dict[str, str]) -> tuple[int, str, int]:
        """(status, beginning of the answer, how long to leave them alone) of the first address that takes the
        connection. Raises _Refused, and whatever a connection can fail with."""
        place = place_of(url)
        addresses = await self._names.addresses_of(place)
        for address in addresses:
            if not may_be_sent_to(address, place.encrypted, self._allowed):
                raise _Refused(Failure.ADDRESS_NOT_ALLOWED, f"{place.host} leads to {address}")
        for address in addresses[:-1]:
            try:
                return await self._ask(place, address, url, body, headers)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                continue  # nothing was sent: another address may take it
        return await self._ask(place, addresses[-1], url, body, headers)

    async def _ask(
        self, place: Place, address: Address, url: str, body: bytes, headers: dict[str, str]
    ) -> tuple[int, str, int]:
        request = httpx.Request(
            "POST",
            url,
            content=body,
            headers={
                "Content-Type": "application/json",
                "User-Agent": USER_AGENT,
                "Accept-Encoding": "identity",
                "Connection": "close",
                **headers,
            },
            extensions={
                "sni_hostname": place.host,
                "timeout": dict.fromkeys(("connect", "read", "write", "pool"), self.seconds),
            },
        )
        request.url = request.url.copy_with(host=str(address))  # Host is that of the name, and was set before
        response = await self._transport.handle_async_request(request)
        try:
            answer = b""
            async for part in response.aiter_raw():
                answer += part
                if len(answer) >= ANSWER_BYTES_MAX:
                    break
        finally:
            await response.aclose()
        detail = answer[: 4 * DETAIL_LENGTH_MAX].decode(errors="replace")
        return response.status_code, detail, _wait_ms(response.headers.get("retry-after", ""))


def _shown(text: str) -> str:
    """What of a text may stand in a database and before a person: no control characters, and not too much."""
    return "".join(c if c.isprintable() else " " for c in text)[:DETAIL_LENGTH_MAX].strip()


def _wait_ms(header: str) -> int:
    """Retry-After, as seconds or as a date; 0 for none."""
    if header.isascii() and header.isdigit():
        return int(header[:9]) * 1000
    try:
        wait = parsedate_to_datetime(header) - datetime.now(UTC)
    except (TypeError, ValueError):
        return 0
    return max(0, int(wait.total_seconds() * 1000))
