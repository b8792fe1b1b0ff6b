"""Callers over HTTP, each with a connection of its own that it keeps: a shop's back end.

HTTP/1.1 by hand: a client library takes more processor time for a request than the edge does, and both share the cores.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator, Sequence

import orjson

from bench.movements import read_made
from bench.orders import Buyers
from bench.phases import Task, What
from bench.tally import Tally
from paymesh.payment.v1 import payment_pb2

PATIENCE_SECONDS = 60.0
REPEAT_SECONDS = 0.2
REPEATED = {409: "IN_FLIGHT", 429: "LIMITED", 503: "BUSY"}
"""Statuses after which the same request is sent again under the same key."""

_GOOD = {What.HTTP_PAYMENTS: (201, b'"status":"authorized"'), What.HTTP_READS: (200, b'"id":"pay_')}

Answer = tuple[int, bytes]


class Shops:
    """All callers of one kind of request."""

    def __init__(self, task: Task) -> None:
        self._task = task
        host, _, port = task.target.rpartition(":")
        self._address = (host, int(port))
        self._connections: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._requests = {
            merchants: self._draw(merchants, first)
            for merchants, first in (
                (task.warm_up_merchants, task.first_number),
                (task.merchants, task.first_number + 1_000_000),
            )
        }

    async def open(self) -> None:
        """Connect."""
        for _ in range(self._task.callers):
            self._connections.append(await asyncio.open_connection(*self._address))

    async def close(self) -> None:
        """Close the connections."""
        for _, writer in self._connections:
            writer.close()

    async def run(self, tally: Tally, merchants: tuple[str, ...], until: float) -> None:
        """See `bench.load.Work`."""
        requests = self._requests[merchants]
        await asyncio.gather(*(self._call(*pair, tally, requests, until) for pair in self._connections))

    async def _call(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        tally: Tally,
        requests: Iterator[bytes],
        until: float,
    ) -> None:
        status_due, told_due = _GOOD[self._task.what]
        while time.perf_counter() < until:
            request = next(requests, None)
            if request is None:
                return
            began = time.perf_counter()
            while True:
                tally.calls += 1
                writer.write(request)
                status, body = await _read(reader)
                if status == status_due and told_due in body:
                    tally.succeed(time.perf_counter() - began, 1)
                elif status in REPEATED and time.perf_counter() - began < PATIENCE_SECONDS:
                    tally.repeated[REPEATED[status]] += 1
                    await asyncio.sleep(REPEAT_SECONDS)
                    continue
                else:
                    _note(tally.failed, status, body)
                break

    def _draw(self, merchants: Sequence[str], first_number: int) -> Iterator[bytes]:
        """Requests, encoded when they are needed: a handful of microseconds each."""
        if self._task.what is What.HTTP_READS:
            made = list(read_made(self._task.made_file, merchants))
            while made:
                for one in made:
                    yield self._get(one.merchant_id, f"/api/v1/payments/{one.payment_id}")
            return
        buyers = Buyers(merchants, self._task.currencies, first_number)
        while True:
            wish = payment_pb2.AuthorizePaymentRequest()
            key = buyers.fill_authorization(wish)
            yield self._post(wish, key)

    def _get(self, merchant_id: str, path: str) -> bytes:
        return f"GET {path} HTTP/1.1\r\n{self._headers(merchant_id)}\r\n".encode()

    def _post(self, wish: payment_pb2.AuthorizePaymentRequest, key: str) -> bytes:
        body = orjson.dumps(
            {
                "amount": wish.amount.amount_minor,
                "currency": wish.amount.currency,
                "order_id": f"web-{key}",
                "card": {"token": wish.card.token},
                "customer": {
                    "id": wish.customer.customer_id,
                    "email": wish.customer.email,
                    "ip_address": wish.customer.ip_address,
                    "billing_country": wish.customer.billing_country,
                },
            }
        )
        head = (
            f"POST /api/v1/payments HTTP/1.1\r\n{self._headers(wish.merchant_id)}Idempotency-Key: {key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    def _headers(self, merchant_id: str) -> str:
        return f"Host: edge\r\nAuthorization: Bearer {self._task.api_keys[merchant_id]}\r\n"


async def _read(reader: asyncio.StreamReader) -> Answer:
    head = await reader.readuntil(b"\r\n\r\n")
    length = 0
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
    return int(head[9:12]), await reader.readexactly(length)


def _note(failed: Counter[str], status: int, body: bytes) -> None:
    try:
        code = str(orjson.loads(body)["code"])
    except (ValueError, KeyError, TypeError):
        code = body[:40].decode(errors="replace")
    failed[f"{status} {code}"] += 1
