"""The HTTP API as a merchant's program sees it."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from services.edge import merchants
from services.edge.domain.keys import Access
from services.kit.db import Database
from tests.orders import new_key, new_merchant

KEY_SECRET = "a secret of the tests, long enough to be one"
VAULT_KEY = "another secret of the tests, long enough as well"
NUMBER = "4242424242424242"
CARD = {"number": NUMBER, "exp_month": 12, "exp_year": 2035, "cvc": "923"}
PAYMENTS = "/api/v1/payments"
ORDERS = "/api/v1/orders"


@asynccontextmanager
async def database_of(dsn: str) -> AsyncIterator[Database]:
    """The edge's database, as the command line opens it."""
    database = Database(dsn, pool_size_max=4)
    await database.open()
    try:
        yield database
    finally:
        await database.close()


async def new_api_key(
    dsn: str, merchant: str = "", *, secret: str = KEY_SECRET, access: Access = Access.FULL
) -> str:
    """A key for a merchant, by default for one that nobody else uses."""
    async with database_of(dsn) as database:
        made = await merchants.create(database, secret, merchant or new_merchant(), access)
    return made.api_key


def authorization(**changes: Any) -> dict[str, Any]:
    """The body of a payment with a card of its own, so that no velocity rule has anything to count."""
    card = {"token": f"tok_visa_n{uuid.uuid4().hex[:12]}"}
    return {"amount": 2_500, "currency": "USD", "card": card, **changes}


class Merchant:
    """Sends requests with a key."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self.client = client

    async def post(
        self, path: str, body: Any = None, key: str | None = None, **options: Any
    ) -> httpx.Response:
        """A request that changes something."""
        headers = {"Idempotency-Key": key or new_key(), **options.pop("headers", {})}
        return await self.client.post(path, json={} if body is None else body, headers=headers, **options)

    async def get(self, path: str, **params: Any) -> httpx.Response:
        """A request that changes nothing."""
        return await self.client.get(path, params=params)

    async def authorized(self, **changes: Any) -> str:
        """A new payment that holds its amount; returns its path."""
        answer = await self.post(PAYMENTS, authorization(**changes))
        assert (answer.status_code, answer.json()["status"]) == (201, "authorized"), answer.text
        return f"{PAYMENTS}/{answer.json()['id']}"

    async def captured(self, **changes: Any) -> str:
        """A new payment, captured; returns its path."""
        path = await self.authorized(**changes)
        answer = await self.post(f"{path}/capture")
        assert answer.json()["status"] == "captured", answer.text
        return path


@asynccontextmanager
async def merchant_at(target: str, api_key: str) -> AsyncIterator[Merchant]:
    """A merchant's client of the edge at `target`."""
    headers = {"Authorization": f"Bearer {api_key}"}
    async with httpx.AsyncClient(base_url=f"http://{target}", headers=headers, timeout=30.0) as client:
        yield Merchant(client)


def problem(answer: httpx.Response) -> tuple[int, str]:
    """(status, code) of an answer that must be a problem."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    body = answer.json()
    assert body["status"] == answer.status_code
    assert body["type"] == f"urn:paymesh:problem:{body['code']}"
    if answer.status_code in {408, 409, 429, 503, 504}:
        assert int(answer.headers["retry-after"]) >= 1
    return answer.status_code, body["code"]
