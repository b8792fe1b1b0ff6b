"""A gRPC client that knows nothing of paymesh, `buf curl`, finds its way by reflection and places an order."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.orders import Shop, new_key

pytestmark = pytest.mark.asyncio(loop_scope="session")

BUF = Path(sys.executable).with_name("buf")
SERVICE = "paymesh.orchestrator.v1.OrchestratorService"


async def _buf_curl(shop: Shop, service: str, *arguments: str, path: str = "") -> tuple[int, str, str]:
    """Exit code, output and error output of `buf curl` over plaintext HTTP/2."""
    process = await asyncio.create_subprocess_exec(
        str(BUF),
        "curl",
        "--protocol",
        "grpc",
        "--http2-prior-knowledge",
        *arguments,
        f"http://{shop.mesh.targets[service]}{path}",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode(), errors.decode()


async def _call(shop: Shop, service: str, method: str, request: dict[str, Any], key: str = "") -> Any:
    header = ("--header", f"idempotency-key: {key}") if key else ()
    code, output, errors = await _buf_curl(
        shop, service, "--reflect", *header, "--data", json.dumps(request), path=f"/{method}"
    )
    assert code == 0, errors
    return json.loads(output)


async def test_reflection_lists_every_method(shop: Shop) -> None:
    code, output, errors = await _buf_curl(shop, "orchestrator", "--list-methods")
    assert code == 0, errors
    methods = ("PlaceOrder", "BatchPlaceOrders", "GetOrder", "WatchOrder", "ListSagas", "GetSaga")
    assert {f"{SERVICE}/{method}" for method in methods} <= set(output.split())


async def test_a_product_is_created_and_an_order_placed_once(shop: Shop) -> None:
    merchant = await shop.merchant(saucer=1)
    await _call(
        shop,
        "inventory",
        "paymesh.inventory.v1.InventoryService/CreateProduct",
        {"merchantId": merchant, "sku": "cup", "name": "Cup", "initialQuantity": 5},
        key=new_key(),
    )
    request = {
        "merchantId": merchant,
        "lines": [{"sku": "cup", "quantity": 2}],
        "amount": {"amountMinor": 4_200, "currency": "EUR"},
        "card": {"token": "tok_visa"},
        "shippingAddress": {"name": "A. Buyer", "country": "DE"},
    }
    key = new_key()
    placed = [
        (await _call(shop, "orchestrator", f"{SERVICE}/PlaceOrder", request, key))["order"] for _ in range(2)
    ]
    assert placed[0] == placed[1]
    assert placed[0]["state"] == "SAGA_STATE_COMPLETED"
    found = await _call(
        shop,
        "orchestrator",
        f"{SERVICE}/GetOrder",
        {"merchantId": merchant, "orderId": placed[0]["orderId"]},
    )
    assert [step["step"] for step in found["saga"]["history"]] == ["reserve", "authorize", "ship"]


async def test_a_stranger_reads_what_is_wrong_with_its_request(shop: Shop) -> None:
    code, _, errors = await _buf_curl(
        shop, "orchestrator", "--reflect", "--data", "{}", path=f"/{SERVICE}/PlaceOrder"
    )
    assert code != 0
    error = json.loads(errors)
    assert error["code"] == "invalid_argument"
    assert "idempotency_key" in error["message"]
