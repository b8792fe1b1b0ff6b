"""The HTTP API in front of the whole mesh: orders, a process that dies in mid-request, traces from the first byte to
the bank, and what logs and spans must never hold. schemathesis reads the document and tries what it permits.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from deploy.local.mesh import EDGE, secret_name
from sandbox.bank.cards import CARDS
from tests.edge import (
    CARD,
    NUMBER,
    ORDERS,
    PAYMENTS,
    Merchant,
    authorization,
    merchant_at,
    new_api_key,
    problem,
)
from tests.orders import Shop, new_key, until

pytestmark = pytest.mark.asyncio(loop_scope="session")

SCHEMATHESIS_SECONDS_MAX = 60.0
"""It takes half a minute on a busy machine."""
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,response_headers_conformance,"
    "response_schema_conformance,negative_data_rejection,missing_required_header,unsupported_method,ignored_auth"
)


async def api_key_of(shop: Shop, merchant: str) -> str:
    """A key for the edge of the mesh."""
    secret = shop.mesh.folder.password(secret_name(EDGE, "KEY_SECRET"))
    return await new_api_key(shop.mesh.dsn("edge"), merchant, secret=secret)


@pytest_asyncio.fixture(loop_scope="session")
async def merchant(shop: Shop) -> AsyncIterator[Merchant]:
    """A merchant with cups to sell."""
    api_key = await api_key_of(shop, await shop.merchant())
    async with merchant_at(shop.mesh.targets["edge"], api_key) as client:
        yield client


def order(**changes: Any) -> dict[str, Any]:
    """The body of a good order."""
    card = {"token": f"tok_visa_n{time.monotonic_ns()}"}
    address = {"name": "A. Buyer", "city": "York", "country": "GB"}
    lines = [{"sku": "cup", "quantity": 2}]
    return {
        "lines": lines,
        "amount": 2_500,
        "currency": "USD",
        "card": card,
        "shipping_address": address,
        **changes,
    }


async def test_an_order_is_placed_shown_and_replayed(merchant: Merchant) -> None:
    key, body = new_key(), order(reference="R-1")
    made = await merchant.post(ORDERS, body, key)
    placed = made.json()
    assert (made.status_code, placed["status"], placed["reference"]) == (201, "completed", "R-1")
    assert made.headers["location"] == f"{ORDERS}/{placed['id']}"
    again = await merchant.post(ORDERS, body, key)
    assert (again.headers["idempotent-replayed"], again.json()) == ("true", placed)
    story = (await merchant.get(f"{ORDERS}/{placed['id']}")).json()
    assert [(a["step"], a["direction"], a["outcome"]) for a in story["history"]] == [
        ("reserve", "do", "done"),
        ("authorize", "do", "done"),
        ("ship", "do", "done"),
    ]
    paid = (await merchant.get(f"{PAYMENTS}/{placed['payment_id']}")).json()
    assert (paid["status"], paid["order_id"], paid["amount"]) == ("authorized", placed["id"], 2_500)
    assert problem(await merchant.post(ORDERS, order(reference="R-1"))) == (422, "order_reference_exists")
    assert problem(await merchant.post(ORDERS, order(), key)) == (422, "idempotency_key_reused")
    assert problem(await merchant.get(f"{ORDERS}/ord_nobody")) == (404, "not_found")


async def test_the_payment_of_an_order_stays_its_payment(merchant: Merchant) -> None:
    """What an order holds is let go of by undoing the order, and no other payment may look like an order's."""
    placed = (await merchant.post(ORDERS, order())).json()
    path = f"{PAYMENTS}/{placed['payment_id']}"
    assert problem(await merchant.post(f"{path}/void")) == (422, "payment_of_an_order")
    assert problem(await merchant.post(PAYMENTS, authorization(order_id=placed["id"]))) == (
        400,
        "invalid_request",
    )
    assert (await merchant.post(f"{path}/capture")).json()["status"] == "captured"


async def test_an_order_that_is_undone_is_a_result(merchant: Merchant) -> None:
    undone = (await merchant.post(ORDERS, order(shipping_address={"name": "A", "country": "AQ"}))).json()
    assert (undone["status"], undone["reason"]["code"]) == ("compensated", "COUNTRY_NOT_SERVED")


async def test_orders_are_listed_page_by_page_to_their_merchant_only(shop: Shop, merchant: Merchant) -> None:
    placed = [(await merchant.post(ORDERS, order())).json() for _ in range(3)]
    first = (await merchant.get(ORDERS, limit=2)).json()
    second = (await merchant.get(ORDERS, limit=2, page=first["next_page"])).json()
    assert first["data"] + second["data"] == list(reversed(placed))
    api_key = await api_key_of(shop, await shop.merchant())
    async with merchant_at(shop.mesh.targets["edge"], api_key) as stranger:
        assert (await stranger.get(ORDERS)).json()["data"] == []
        assert problem(await stranger.get(f"{ORDERS}/{placed[0]['id']}")) == (404, "not_found")


@pytest.mark.parametrize("after_seconds", [0.0, 0.02, 0.1])
async def test_a_request_cut_off_by_a_kill_has_one_effect(shop: Shop, after_seconds: float) -> None:
    """kill -9 of the edge while it waits for the answer, then a repeat."""
    name = await shop.merchant()
    api_key = await api_key_of(shop, name)
    key, body = new_key(), authorization(card={**CARD, "number": "4000000000002008"})
    async with merchant_at(shop.mesh.targets["edge"], api_key) as merchant:
        request = asyncio.create_task(merchant.post(PAYMENTS, body, key))
        await asyncio.sleep(after_seconds)
        shop.mesh.kill("edge")
        with contextlib.suppress(httpx.TransportError):
            await request  # if it was told to come back before the kill, so be it
        await shop.mesh.wait_ready("edge")

        async def answered() -> bool:
            answer = await merchant.post(PAYMENTS, body, key)
            assert answer.status_code in {201, 409}, answer.text
            return answer.status_code == 201 and answer.json()["status"] == "authorized"

        await until(answered, 20.0, "the repeat is answered")
        assert len((await merchant.get(PAYMENTS)).json()["data"]) == 1
    query = "SELECT kind, result FROM operations WHERE merchant_id = %(merchant)s"
    assert await shop.rows("bank", query, merchant=name) == [("AUTHORIZE", "APPROVED")]


async def test_a_trace_that_a_merchant_brings_leads_to_the_bank(shop: Shop, merchant: Merchant) -> None:
    trace_id = f"{time.monotonic_ns():032x}"
    headers = {"traceparent": f"00-{trace_id}-00000000000000a1-01"}
    made = await merchant.post(PAYMENTS, authorization(card=CARD), headers=headers)
    assert made.status_code == 201

    def spans() -> list[dict[str, Any]]:
        lines = shop.spans_file.read_text(encoding="utf-8").splitlines()
        return [
            span
            for span in map(json.loads, lines)
            if int(span["context"]["trace_id"], 16) == int(trace_id, 16)
        ]

    async def arrived() -> bool:
        services = {span["resource"]["attributes"]["service.name"] for span in spans()}
        return {"edge", "payment", "bank"} <= services

    await until(arrived, 10.0, "spans of edge, payment and bank")
    (door,) = [span for span in spans() if span["name"] == f"POST {PAYMENTS}"]
    assert door["attributes"]["http.response.status_code"] == 201


async def test_no_card_number_is_left_in_logs_or_spans(shop: Shop, merchant: Merchant) -> None:
    """Every test card, in good requests, bad ones, and ones that break; everything traced and every log read."""
    headers = {"traceparent": f"00-{time.monotonic_ns():032x}-00000000000000a1-01"}
    numbers = [card.number for card in CARDS if card.number]
    assert NUMBER in numbers
    for number in numbers:
        card = {**CARD, "number": number}
        for body in (
            authorization(card=card),
            authorization(card={**card, "exp_year": 2020}),
            authorization(card={**card, "number": number + "0"}),
            authorization(card={**card, "unknown": number}),
            order(card=card),
        ):
            path = ORDERS if "lines" in body else PAYMENTS
            answer = await merchant.post(path, body, headers=headers)
            assert answer.status_code in {201, 400, 409}, answer.text  # 409: the slow card's
            assert number not in answer.text
        await merchant.client.post(PAYMENTS, content=f'{{"card": {{"number": "{number}"', headers=headers)
        await merchant.client.get(f"{PAYMENTS}/{number}", params={"page": number}, headers=headers)
    await asyncio.sleep(0.5)
    assert f'"GET {PAYMENTS}/{{payment_id}}"' in shop.spans_file.read_text(encoding="utf-8")
    files = [*shop.mesh.folder.logs.glob("*"), shop.spans_file]
    assert {file.name for file in files} >= {"edge.log", "payment.log", "bank.log", "spans.jsonl"}
    for file in files:
        text = file.read_text(encoding="utf-8", errors="replace")
        assert [number for number in numbers if number in text] == [], file
        assert f'"{CARD["cvc"]}"' not in text, file
    databases = await shop.rows("edge", "SELECT cards::text FROM cards")
    assert not any(number in row for (row,) in databases for number in numbers)


@pytest.mark.timeout(120)
async def test_schemathesis_finds_nothing(shop: Shop, tmp_path: Path) -> None:
    """What the document permits, and what it does not, generated: no 5xx, and no answer that it does not describe."""
    api_key = await api_key_of(shop, await shop.merchant())
    st = Path(sys.executable).with_name("st")
    command: list[str | Path] = [
        st, "run", f"http://{shop.mesh.targets['edge']}/openapi.json",
        "--header", f"Authorization: Bearer {api_key}",
        "--checks", CHECKS, "--phases", "examples,coverage,fuzzing", "--max-examples", "5",
        "--seed", "1", "--workers", "2", "--no-color", "--generation-database", "none",
    ]  # fmt: skip
    started = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        *command, cwd=tmp_path, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    seconds = time.monotonic() - started
    said = output.decode()
    assert process.returncode == 0, said
    assert "10 selected / 10 total" in said
    assert "Tested: 10" in said
    assert seconds < SCHEMATHESIS_SECONDS_MAX, f"{seconds:.0f} s"
