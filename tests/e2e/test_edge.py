"""The HTTP API in front of the whole mesh: orders, a process that dies in mid-request, traces from the first byte to
the bank, and what logs and spans must never hold. schemathesis reads the document and tries what it permits.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
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

SCHEMATHESIS_SECONDS_MAX = 200.0
"""It takes half a minute on a machine that has nothing else to do."""
OPERATIONS = 23
PARTS = ("^/api/v1/payments", "^/api/v1/(orders|webhook)")
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
    assert [(saga["kind"], saga["status"]) for saga in story["sagas"]] == [("place", "completed")]
    assert (story["payment"]["status"], story["payment"]["held_amount"]) == ("authorized", 2_500)
    paid = (await merchant.get(f"{PAYMENTS}/{placed['payment_id']}")).json()
    assert (paid["status"], paid["order_id"], paid["amount"]) == ("authorized", placed["id"], 2_500)
    assert problem(await merchant.post(ORDERS, order(reference="R-1"))) == (422, "order_reference_exists")
    assert problem(await merchant.post(ORDERS, order(), key)) == (422, "idempotency_key_reused")
    assert problem(await merchant.get(f"{ORDERS}/ord_nobody")) == (404, "not_found")


async def test_the_payment_of_an_order_stays_its_payment(merchant: Merchant) -> None:
    """An order's money moves with the order, and no other payment may look like an order's."""
    placed = (await merchant.post(ORDERS, order())).json()
    path = f"{PAYMENTS}/{placed['payment_id']}"
    for action, body in (("void", {}), ("capture", {}), ("refund", {}), ("increment", {"amount": 1})):
        refused = await merchant.post(f"{path}/{action}", body)
        assert problem(refused) == (422, "payment_of_an_order"), action
        assert refused.json()["facts"] == {"order_id": placed["id"], "payment_id": placed["payment_id"]}
    assert problem(await merchant.post(PAYMENTS, authorization(order_id=placed["id"]))) == (
        400,
        "invalid_request",
    )
    assert (await merchant.get(path)).json()["status"] == "authorized"


async def test_an_order_goes_out_of_the_door_and_comes_back(merchant: Merchant) -> None:
    placed = (await merchant.post(ORDERS, order())).json()
    path, key = f"{ORDERS}/{placed['id']}", new_key()
    left = await merchant.post(f"{path}/dispatch", {}, key)
    assert (left.status_code, left.json()["status"]) == (200, "dispatched")
    assert (left.json()["saga"]["kind"], left.json()["saga"]["status"]) == ("dispatch", "completed")
    again = await merchant.post(f"{path}/dispatch", key=f'"{key}"')
    assert (again.headers["idempotent-replayed"], again.json()) == ("true", left.json())

    part = {"lines": [{"sku": "cup", "quantity": 1}], "amount": 1_000, "note": "a crack"}
    key = new_key()
    back = (await merchant.post(f"{path}/return", part, key)).json()
    assert (back["status"], back["returned_amount"]) == ("partially_returned", 1_000)
    assert back["returned_lines"] == part["lines"]
    assert (await merchant.post(f"{path}/return", part, key)).json() == back
    assert problem(await merchant.post(f"{path}/return", {}, key)) == (422, "idempotency_key_reused")
    for lonely in ({"amount": 1}, {"lines": part["lines"]}):
        assert problem(await merchant.post(f"{path}/return", lonely)) == (400, "invalid_request")
    rest = (await merchant.post(f"{path}/return")).json()
    assert (rest["status"], rest["returned_amount"]) == ("returned", 2_500)

    story = (await merchant.get(path)).json()
    assert [saga["kind"] for saga in story["sagas"]] == ["place", "dispatch", "return", "return"]
    assert (story["payment"]["captured_amount"], story["payment"]["refunded_amount"]) == (2_500, 2_500)
    assert (await merchant.get(ORDERS)).json()["data"][0]["status"] == "returned"


async def test_an_order_that_has_not_left_is_cancelled(merchant: Merchant) -> None:
    placed = (await merchant.post(ORDERS, order())).json()
    path = f"{ORDERS}/{placed['id']}"
    cancelled = await merchant.post(f"{path}/cancel", {"note": "changed my mind"})
    assert (cancelled.status_code, cancelled.json()["status"]) == (200, "cancelled")
    assert (await merchant.get(f"{PAYMENTS}/{placed['payment_id']}")).json()["status"] == "voided"


async def test_a_dispatch_whose_money_cannot_be_taken_is_a_result(merchant: Merchant) -> None:
    placed = (await merchant.post(ORDERS, order(card={"token": "tok_no_capture"}))).json()
    kept = await merchant.post(f"{ORDERS}/{placed['id']}/dispatch")
    assert (kept.status_code, kept.json()["status"]) == (200, "completed")
    saga = kept.json()["saga"]
    assert (saga["status"], saga["reason"]["step"]) == ("compensated", "capture")


async def test_every_refusal_of_orders(shop: Shop, merchant: Merchant) -> None:
    async def placed(**changes: Any) -> str:
        return f"{ORDERS}/{(await merchant.post(ORDERS, order(**changes))).json()['id']}"

    async def done(path: str, *actions: str) -> str:
        for action in actions:
            assert (await merchant.post(f"{path}/{action}")).status_code == 200
        return path

    waiting, left, cancelled = await placed(), await placed(), await placed()
    await done(left, "dispatch")
    await done(cancelled, "cancel")
    returned = await done(await placed(), "dispatch", "return")
    undone = await placed(shipping_address={"name": "A", "country": "AQ"})
    parked = await done(await placed(), "dispatch")
    query = "UPDATE sagas SET state = 'PARKED' WHERE order_id = %(order)s AND kind = 'dispatch' RETURNING 1"
    assert await shop.rows("orchestrator", query, order=parked.rpartition("/")[2]) == [(1,)]
    await placed(reference="R-2")
    key = new_key()
    await merchant.post(f"{waiting}/return", {}, key)
    two_back = {"lines": [{"sku": "cup", "quantity": 3}], "amount": 1}
    too_dear = {"lines": [{"sku": "cup", "quantity": 1}], "amount": 2_501}
    found: dict[str, set[str]] = {}
    for path, action, body, used in (
        (left, "dispatch", {}, None),
        (cancelled, "dispatch", {}, None),
        (undone, "dispatch", {}, None),
        (parked, "dispatch", {}, None),
        (left, "cancel", {}, None),
        (cancelled, "cancel", {}, None),
        (undone, "cancel", {}, None),
        (parked, "cancel", {}, None),
        (waiting, "return", {}, None),
        (cancelled, "return", {}, None),
        (returned, "return", {}, None),
        (left, "return", two_back, None),
        (left, "return", too_dear, None),
        (undone, "return", {}, None),
        (parked, "return", {}, None),
        (waiting, "return", {"note": "another"}, key),
    ):
        status, code = problem(await merchant.post(f"{path}/{action}", body, used))
        assert status == 422
        found.setdefault(action, set()).add(code)
    for action in ("dispatch", "cancel"):
        key = new_key()
        await merchant.post(f"{await placed()}/{action}", {}, key)
        _, code = problem(await merchant.post(f"{waiting}/{action}", {}, key))
        found[action].add(code)
    key = new_key()
    await merchant.post(ORDERS, order(), key)
    found["orders"] = {
        problem(await merchant.post(ORDERS, order(), key))[1],
        problem(await merchant.post(ORDERS, order(reference="R-2")))[1],
    }
    document = (await merchant.client.get("/openapi.json")).json()
    documented = {
        path.rpartition("/")[2]: set(
            re.findall(r"`(\w+)`", operations["post"]["responses"]["422"]["description"])
        )
        for path, operations in document["paths"].items()
        if path.startswith(ORDERS) and "post" in operations
    }
    assert found == documented


async def test_a_stranger_changes_nothing_of_an_order(shop: Shop, merchant: Merchant) -> None:
    placed = (await merchant.post(ORDERS, order(reference="R-3"))).json()
    path = f"{ORDERS}/{placed['id']}"
    api_key = await api_key_of(shop, await shop.merchant())
    part = {"lines": [{"sku": "cup", "quantity": 1}], "amount": 1}
    async with merchant_at(shop.mesh.targets["edge"], api_key) as stranger:
        for action, body in (("dispatch", {}), ("cancel", {}), ("return", {}), ("return", part)):
            assert problem(await stranger.post(f"{path}/{action}", body)) == (404, "not_found"), action
        assert (await stranger.get(ORDERS, reference="R-3")).json()["data"] == []
        assert (await stranger.post(ORDERS, order(reference="R-3"))).status_code == 201
    assert (await merchant.get(path)).json()["status"] == "completed"
    assert [one["id"] for one in (await merchant.get(ORDERS, reference="R-3")).json()["data"]] == [
        placed["id"]
    ]


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


@pytest.mark.timeout(300)
async def test_schemathesis_finds_nothing(shop: Shop, tmp_path: Path) -> None:
    """What the document permits, and what it does not, generated: no 5xx, and no answer that it does not describe."""
    api_key = await api_key_of(shop, await shop.merchant())
    st = Path(sys.executable).with_name("st")

    async def tried(number: int, paths: str) -> str:
        """In a process of its own: threads of one stumble over each other while they generate."""
        command: list[str | Path] = [
            st, "run", f"http://{shop.mesh.targets['edge']}/openapi.json",
            "--header", f"Authorization: Bearer {api_key}", "--include-path-regex", paths,
            "--checks", CHECKS, "--phases", "examples,coverage,fuzzing", "--max-examples", "5",
            "--seed", "1", "--workers", "1", "--no-color", "--generation-database", "none",
        ]  # fmt: skip
        folder = tmp_path / str(number)
        folder.mkdir()
        process = await asyncio.create_subprocess_exec(
            *command, cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        output, _ = await process.communicate()
        assert process.returncode == 0, output.decode()
        return output.decode()

    started = time.monotonic()
    said = await asyncio.gather(*(tried(number, paths) for number, paths in enumerate(PARTS)))
    seconds = time.monotonic() - started
    counts = [re.search(r"Tested: (\d+)", text) for text in said]
    assert sum(int(found[1]) for found in counts if found) == OPERATIONS
    assert seconds < SCHEMATHESIS_SECONDS_MAX, f"{seconds:.0f} s"
