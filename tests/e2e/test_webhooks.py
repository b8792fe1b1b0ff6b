"""The whole way of a webhook: an order over HTTP, events of the services behind it, and what arrives at the merchant's
server."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from standardwebhooks import Webhook

from tests.e2e.test_edge import api_key_of, order
from tests.edge import ORDERS, PAYMENTS, authorization, merchant_at
from tests.integration.test_edge_webhooks import ENDPOINTS, RECEIVER, Receiver, until
from tests.orders import Shop
from tests.processes import free_port

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    """The merchant's server."""
    port, file = free_port(), tmp_path / "requests.jsonl"
    process = subprocess.Popen([sys.executable, RECEIVER, file, str(port)])
    yield Receiver(port, file, process)
    process.kill()
    process.wait()


async def test_a_merchant_is_told_of_its_payments_and_orders_and_of_nothing_else(
    shop: Shop, receiver: Receiver
) -> None:
    """With kill -9 of the edge in the midst of it."""
    api_key, other_key = [await api_key_of(shop, await shop.merchant()) for _ in range(2)]
    target = shop.mesh.targets["edge"]
    async with merchant_at(target, api_key) as merchant, merchant_at(target, other_key) as other:
        made = (await merchant.post(ENDPOINTS, {"url": receiver.url("/ok")})).json()
        paid = (await merchant.post(PAYMENTS, authorization(amount=10_000))).json()
        await merchant.post(f"{PAYMENTS}/{paid['id']}/capture", {"amount": 4_000})
        await other.post(PAYMENTS, authorization())
        placed = (await merchant.post(ORDERS, order())).json()
        shop.mesh.kill("edge")
        await shop.mesh.wait_ready("edge")
        await merchant.post(f"{ORDERS}/{placed['id']}/dispatch")

        def told() -> dict[tuple[str, str], dict[str, Any]]:
            """By type and thing."""
            found = {}
            for request in receiver.requests():
                headers = {name.lower(): value for name, value in request["headers"].items()}
                body = Webhook(made["secret"]).verify(request["body"], headers)
                found[body["type"], body["data"]["id"]] = body
            return found

        of_order = placed["payment_id"]
        expected = {
            ("payment.authorized", paid["id"]),
            ("payment.captured", paid["id"]),
            ("payment.authorized", of_order),
            ("payment.captured", of_order),
            ("order.placed", placed["id"]),
            ("order.dispatched", placed["id"]),
        }
        await until("everything is told", lambda: told().keys() >= expected, 60.0)
        assert told().keys() == expected
        captured = told()["payment.captured", paid["id"]]
        assert (captured["change"]["amount"], captured["data"]["captured_amount"]) == (4_000, 4_000)
        shown = (await merchant.get(f"{PAYMENTS}/{paid['id']}")).json()
        assert captured["data"] == {name: shown[name] for name in captured["data"]}
        dispatched = told()["order.dispatched", placed["id"]]
        assert dispatched["data"] == (await merchant.get(ORDERS)).json()["data"][0]
        assert (dispatched["change"]["saga"]["kind"], dispatched["data"]["status"]) == (
            "dispatch",
            "dispatched",
        )
