"""The edge before payment, fraud and the bank, as real processes: every error that its document states is provoked,
keys do what they should, and nothing of a card number is left anywhere.

Orders need the whole mesh; tests/e2e/test_edge.py has them.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import signal
import socket
import statistics
import time
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest
import pytest_asyncio

from deploy.local.stores import EmbeddedPostgres, EmbeddedValkey
from services.edge import merchants
from services.edge.domain.keys import Access
from services.edge.vault import Sealed, Vault
from tests.conftest import Services
from tests.edge import (
    CARD,
    KEY_SECRET,
    NUMBER,
    ORDERS,
    PAYMENTS,
    VAULT_KEY,
    Merchant,
    authorization,
    database_of,
    merchant_at,
    new_api_key,
    problem,
)
from tests.orders import new_key, new_merchant
from tests.payment_mesh import PaymentMesh
from tests.processes import ServiceProcess, free_port

NOBODY = "127.0.0.1:1"

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass
class Edge:
    """An edge, with what is behind it."""

    services: Services
    mesh: PaymentMesh
    valkey_url: str
    process: ServiceProcess
    stack: AsyncExitStack
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def dsn(self) -> str:
        return self.services.dsn("edge")

    async def merchant(self, name: str = "", *, access: Access = Access.FULL, at: str = "") -> Merchant:
        """A merchant with a key."""
        api_key = await new_api_key(self.dsn, name, access=access)
        return await self.stack.enter_async_context(merchant_at(at or self.process.target, api_key))

    def another(self, **settings: str) -> ServiceProcess:
        """One more edge on the same database."""
        return self.services.start("edge", **{**self.settings, **settings})

    def on_edge(self, query: str, *params: object) -> list[tuple[Any, ...]]:
        """Rows of the edge's database."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            cursor = connection.execute(query.encode(), params)
            return cursor.fetchall() if cursor.description else []


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def edge(
    postgres: EmbeddedPostgres, valkey: EmbeddedValkey, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Edge]:
    """See `Edge`. One for all tests here: each has merchants of its own. Keys are looked up every time, and orders lead
    nowhere."""
    services = Services(postgres, tmp_path_factory.mktemp("edge"))
    assert valkey.url is not None
    quick = {"resolve_first_ms": "50", "resolve_poll_ms": "20"}
    # Authorizations are not let go of when they end, so that one can be found to have ended.
    mesh = PaymentMesh.start(services, valkey.url, {}, expire_poll_ms="3600000", **quick)
    settings = {
        "payment_target": mesh.payment.target,
        "bank_target": mesh.bank.target,
        "orchestrator_target": NOBODY,
        "valkey_url": valkey.url,
        "valkey_timeout_ms": "2000",
        "key_secret": KEY_SECRET,
        "vault_key": VAULT_KEY,
        "grant_seconds": "0",
    }
    process = services.start("edge", **settings)
    async with AsyncExitStack() as stack:
        yield Edge(services, mesh, valkey.url, process, stack, settings)
    mesh.close()
    services.stop()


async def test_a_payment_from_its_hold_to_a_refund(edge: Edge) -> None:
    shop = await edge.merchant()
    made = await shop.post(PAYMENTS, authorization(amount=10_000, order_id="order-1"))
    payment = made.json()
    assert made.status_code == 201
    assert made.headers["location"] == f"{PAYMENTS}/{payment['id']}"
    assert "idempotent-replayed" not in made.headers
    assert (payment["status"], payment["amount"], payment["currency"]) == ("authorized", 10_000, "USD")
    assert payment["auth_code"]

    path = f"{PAYMENTS}/{payment['id']}"
    more = (await shop.post(f"{path}/increment", {"amount": 500})).json()
    assert (more["status"], more["authorized_amount"], more["amount"]) == ("authorized", 10_500, 10_000)
    part = (await shop.post(f"{path}/capture", {"amount": 4_000})).json()
    assert (part["status"], part["captured_amount"], part["held_amount"]) == (
        "partially_captured",
        4_000,
        6_500,
    )
    rest = (await shop.post(f"{path}/capture", {"amount": 6_000, "final": True})).json()
    assert (rest["status"], rest["captured_amount"], rest["held_amount"]) == ("captured", 10_000, 0)
    back = (await shop.post(f"{path}/refund", {"amount": 5_000, "note": "torn"})).json()
    assert (back["status"], back["captured_amount"], back["refunded_amount"]) == (
        "partially_refunded",
        10_000,
        5_000,
    )
    shown = (await shop.get(path)).json()
    assert (shown["captured_amount"], shown["refunded_amount"]) == (10_000, 5_000)
    assert [event["type"] for event in shown["events"]][:2] == ["PaymentInitiated", "PaymentAuthorized"]
    assert shown["events"][-1]["type"] == "PaymentRefunded"
    assert shown["version"] == len(shown["events"])

    other = await shop.authorized()
    assert (await shop.post(f"{other}/void", {"note": "changed my mind"})).json()["status"] == "voided"


async def test_payments_are_listed_page_by_page_and_by_order(edge: Edge) -> None:
    shop = await edge.merchant()
    paths = [await shop.authorized(order_id=f"order-{number}") for number in range(5)]
    ids = [path.rpartition("/")[2] for path in reversed(paths)]
    first = (await shop.get(PAYMENTS, limit=3)).json()
    second = (await shop.get(PAYMENTS, limit=3, page=first["next_page"])).json()
    assert [one["id"] for one in first["data"] + second["data"]] == ids
    assert second["next_page"] is None
    of_order = (await shop.get(PAYMENTS, order_id="order-3")).json()["data"]
    assert [one["order_id"] for one in of_order] == ["order-3"]


async def test_a_declined_card_is_a_result(edge: Edge) -> None:
    shop = await edge.merchant()
    answer = await shop.post(PAYMENTS, authorization(card={"token": "tok_insufficient_funds"}))
    assert answer.status_code == 201
    assert (answer.json()["status"], answer.json()["decline_reason"]) == ("declined", "INSUFFICIENT_FUNDS")


async def test_a_repeat_gets_the_first_answer_and_does_nothing(edge: Edge) -> None:
    shop = await edge.merchant()
    key, body = new_key(), authorization()
    first = await shop.post(PAYMENTS, body, key)
    again = await shop.post(PAYMENTS, body, f'"{key}"')
    assert again.headers["idempotent-replayed"] == "true"
    assert (again.status_code, again.json()) == (201, first.json())

    path = f"{PAYMENTS}/{first.json()['id']}"
    taken = await shop.post(f"{path}/capture", {"amount": 100}, key)
    repeated = await shop.post(f"{path}/capture", {"amount": 100}, key)
    assert "idempotent-replayed" not in taken.headers
    assert (repeated.headers["idempotent-replayed"], repeated.json()) == ("true", taken.json())

    refused = [await shop.post(f"{path}/refund", {"amount": 101}, key) for _ in range(2)]
    assert [problem(answer) for answer in refused] == [(422, "refund_exceeds_captured")] * 2
    assert [answer.headers.get("idempotent-replayed") for answer in refused] == [None, "true"]
    assert (await shop.get(path)).json()["captured_amount"] == 100


async def test_fifty_at_once_with_one_key_have_one_effect(edge: Edge) -> None:
    name = new_merchant()
    shop = await edge.merchant(name)
    key, body = new_key(), {**authorization(), "card": CARD}
    answers = await asyncio.gather(*(shop.post(PAYMENTS, body, key) for _ in range(50)))
    statuses = {answer.status_code for answer in answers}
    assert statuses <= {201, 409}, statuses
    assert len({answer.json()["id"] for answer in answers if answer.status_code == 201}) == 1
    assert {problem(answer) for answer in answers if answer.status_code == 409} <= {(409, "in_progress")}
    rows = edge.mesh.on_bank("SELECT kind, result FROM operations WHERE merchant_id = %s", name)
    assert rows == [("AUTHORIZE", "APPROVED")]
    assert edge.on_edge("SELECT count(*) FROM cards WHERE merchant_id = %s", name) == [(1,)]


async def test_a_merchant_never_sees_anothers(edge: Edge) -> None:
    mine, theirs = await edge.merchant(), await edge.merchant()
    path = await mine.captured(order_id="order-1", card=CARD)
    token = (await mine.get(path)).json()["card"]["token"]
    assert problem(await theirs.get(path)) == (404, "not_found")
    for action, body in (
        ("capture", {}),
        ("capture", {"amount": 1}),
        ("void", {}),
        ("refund", {}),
        ("refund", {"amount": 1}),
        ("increment", {"amount": 1}),
    ):
        assert problem(await theirs.post(f"{path}/{action}", body)) == (404, "not_found"), action
    assert (await theirs.get(PAYMENTS)).json() == {"data": [], "next_page": None}
    assert (await theirs.get(PAYMENTS, order_id="order-1")).json()["data"] == []
    stolen = await theirs.post(PAYMENTS, authorization(card={"token": token}))
    assert problem(stolen) == (400, "invalid_request")
    shown = (await mine.get(path)).json()
    assert (shown["refunded_amount"], shown["version"]) == (0, 4)


async def test_keys_are_rotated_and_revoked(edge: Edge) -> None:
    name = new_merchant()
    shop = await edge.merchant(name)
    async with database_of(edge.dsn) as database:
        renewed = await merchants.rotate(database, KEY_SECRET, name, overlap_seconds=3_600)
        assert (await shop.get(PAYMENTS)).status_code == 200
        async with merchant_at(edge.process.target, renewed.api_key) as changed_over:
            assert (await changed_over.get(PAYMENTS)).status_code == 200
            last = await merchants.rotate(database, KEY_SECRET, name, overlap_seconds=0)
            for ended in (shop, changed_over):
                assert problem(await ended.get(PAYMENTS)) == (401, "unauthenticated")
        assert await merchants.revoke(database, name, last.grant.key_id) == 1
    assert renewed.api_key.encode() not in b"".join(edge.on_edge("SELECT hash FROM api_keys")[0])


async def test_a_number_is_exchanged_sealed_and_forgotten(edge: Edge) -> None:
    name = new_merchant()
    shop = await edge.merchant(name)
    first = (await shop.post(PAYMENTS, authorization(card=CARD))).json()["card"]
    assert (first["brand"], first["last4"], first["bin"]) == ("visa", "4242", "424242")
    renewed = (await shop.post(PAYMENTS, authorization(card={**CARD, "exp_year": 2036}))).json()["card"]
    assert renewed == {**first, "exp_year": 2036}
    other = (await shop.post(PAYMENTS, authorization(card={**CARD, "number": "5555555555554444"}))).json()[
        "card"
    ]
    assert other["fingerprint"] != first["fingerprint"]
    shown = (await shop.get(f"{PAYMENTS}/{(await shop.get(PAYMENTS)).json()['data'][0]['id']}")).json()
    assert shown["events"][0]["data"]["card_token"] == shown["card"]["token"] == other["token"]
    by_token = await shop.post(PAYMENTS, authorization(card={"token": first["token"]}))
    assert (by_token.json()["status"], by_token.json()["card"]) == ("authorized", renewed)

    kept = edge.on_edge("SELECT cards::text, sealed_number FROM cards WHERE merchant_id = %s", name)
    assert len(kept) == 2
    assert not any(NUMBER in row or NUMBER.encode().hex() in row for row, _ in kept)
    columns = {name for (name,) in edge.on_edge("SELECT column_name FROM information_schema.columns")}
    assert not {column for column in columns if "cvc" in column or "cvv" in column}
    query = "SELECT card_id, sealed_number, sealed_key, vault_key_id FROM cards WHERE merchant_id = %s"
    opened = {
        Vault(VAULT_KEY).open(Sealed(bytes(number), bytes(key), key_id), name, card_id)
        for card_id, number, key, key_id in edge.on_edge(query, name)
    }
    assert opened == {NUMBER, "5555555555554444"}


async def test_another_card_under_the_same_key_is_another_request(edge: Edge) -> None:
    """All that is printed on it counts, but for the code on its back: that is kept nowhere, not even as a hash."""
    shop = await edge.merchant()
    key, body = new_key(), authorization(card=CARD)
    made = (await shop.post(PAYMENTS, body, key)).json()
    for changed in ({"exp_year": 2037}, {"exp_month": 11}, {"number": "5555555555554444"}):
        other = {**body, "card": {**CARD, **changed}}
        assert problem(await shop.post(PAYMENTS, other, key)) == (422, "idempotency_key_reused"), changed
    again = await shop.post(PAYMENTS, {**body, "card": {**CARD, "cvc": "111"}}, key)
    assert (again.headers["idempotent-replayed"], again.json()["id"]) == ("true", made["id"])
    # Of a card of the vault the expiry is the vault's, and may change between a request and its repeat.
    key, body = new_key(), authorization(card={"token": made["card"]["token"]})
    made = (await shop.post(PAYMENTS, body, key)).json()
    await shop.post(PAYMENTS, authorization(card={**CARD, "exp_year": 2036}))
    assert (await shop.post(PAYMENTS, body, key)).json()["id"] == made["id"]


async def test_every_error_of_a_request_as_such(edge: Edge) -> None:
    """Those that do not depend on what is asked for, at every operation that documents them."""
    shop, reader = await edge.merchant(), await edge.merchant(access=Access.READ)
    document = (await shop.client.get("/openapi.json")).json()
    path = await shop.authorized()
    provoked: dict[tuple[str, str], set[tuple[int, str]]] = {}
    for template, operations in document["paths"].items():
        url = template.replace("{payment_id}", path.rpartition("/")[2]).replace("{order_id}", "ord_x")
        url = url.replace("{endpoint_id}", f"whe_{'0' * 32}").replace("{delivery_id}", f"whd_{'0' * 32}")
        for method in operations:
            headers = {"Idempotency-Key": new_key()}
            found = {
                problem(await shop.client.request(method, url, headers={**headers, "Authorization": value}))
                for value in ("", "Bearer x", f"Bearer pmk.x.{'y' * 43}")
            }
            if method == "delete":
                found.add(problem(await shop.client.delete(url + "x" * 65)))
                found.add(problem(await reader.client.delete(url)))
                found.add(problem(await shop.client.request(method, url, content=b"x" * 300_000)))
            elif method == "get":
                too_long = {"page": "x" * 65} if url.count("/") == 3 else None
                found.add(
                    problem(await shop.client.get(url if too_long else url + "x" * 65, params=too_long))
                )
                assert problem(await shop.client.put(url)) == (405, "method_not_allowed")
            else:
                found.add(problem(await shop.client.post(url, headers=headers, content=b"{")))
                found.add(problem(await shop.client.post(url, json={})))
                found.add(problem(await shop.post(url, {}, key="k" * 258)))
                found.add(problem(await shop.post(url, {"unknown": 1})))
                found.add(problem(await reader.post(url, {})))
                found.add(problem(await shop.client.post(url, headers=headers, content=b"x" * 300_000)))
            provoked[method, template] = found
    reads = {(401, "unauthenticated"), (400, "invalid_request")}
    changes = reads | {
        (400, "idempotency_key_missing"),
        (400, "idempotency_key_invalid"),
        (403, "key_is_read_only"),
        (413, "body_too_large"),
    }
    removes = reads | {(403, "key_is_read_only"), (413, "body_too_large")}
    expected = {"get": reads, "post": changes, "delete": removes}
    assert provoked == {(method, template): expected[method] for method, template in provoked}
    assert len(provoked) == 23
    assert (await reader.get(PAYMENTS)).status_code == 200
    assert problem(await shop.client.get("/nothing")) == (404, "not_found")


async def test_every_refusal_of_payments(edge: Edge) -> None:
    shop = await edge.merchant()

    async def of(path: str, action: str, body: dict[str, Any] | None = None) -> str:
        status, code = problem(await shop.post(f"{path}/{action}", body))
        assert status == 422
        return code

    held = await shop.authorized(order_id="order-1")
    key = new_key()
    await shop.post(f"{held}/increment", {"amount": 1}, key)
    captured = await shop.captured()
    refunded = await shop.captured()
    await shop.post(f"{refunded}/refund")
    tampered = [await shop.authorized() for _ in range(3)]
    many, expired, void = (path.rpartition("/")[2] for path in tampered)
    edge.mesh.on_payment("UPDATE payments SET version = 1000 WHERE payment_id = %s", many)
    edge.mesh.on_payment(
        "UPDATE payments SET expires_at = now() - interval '1 s' WHERE payment_id = %s", expired
    )
    edge.mesh.on_payment(
        "UPDATE payments SET processor_reference = 'auth_nobody' WHERE payment_id = %s", void
    )
    found = {
        problem(await shop.post(PAYMENTS, authorization(order_id="order-1")))[1],
        problem(await shop.post(f"{held}/increment", {"amount": 2}, key))[1],
        await of(held, "capture", {"amount": 9_999_999}),
        await of(held, "increment", {"amount": 1_000_000_000_000}),
        await of(held, "refund"),
        await of(captured, "capture"),
        await of(captured, "void"),
        await of(captured, "increment", {"amount": 1}),
        await of(captured, "refund", {"amount": 9_999_999}),
        await of(await shop.authorized(card={"token": "tok_no_increment"}), "increment", {"amount": 1}),
        await of(await shop.authorized(card={"token": "tok_no_capture"}), "capture"),
        await of(await shop.captured(card={"token": "tok_no_refund"}), "refund"),
        await of(f"{PAYMENTS}/{many}", "capture"),
        await of(f"{PAYMENTS}/{void}", "void"),
        await of(f"{PAYMENTS}/{expired}", "capture"),
    }
    document = (await shop.client.get("/openapi.json")).json()
    documented = {
        code
        for path, operations in document["paths"].items()
        if path.startswith(PAYMENTS)
        for operation in operations.values()
        for code in re.findall(r"`(\w+)`", operation["responses"].get("422", {}).get("description", ""))
    }
    of_orders = {"payment_of_an_order"}  # tests/e2e/test_edge.py
    assert found == documented - of_orders


async def test_the_document_is_a_page_that_needs_nobody_else(edge: Edge) -> None:
    shop = await edge.merchant()
    document = (await shop.client.get("/openapi.json")).json()
    page = await shop.client.get("/docs", headers={"Host": 'edge.example"><script>'})
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    assert "<script" not in page.text
    assert not re.search(r'(?:src|href)="https?://(?!www\.standardwebhooks\.com)', page.text)
    operations = [(path, method) for path, methods in document["paths"].items() for method in methods]
    assert all(f"</span> {path}</p>" in page.text for path, _ in operations)
    assert page.text.count("<section") == len(operations) + 1 + len(document["components"]["schemas"])
    assert "edge.invalid" not in page.text
    linked = set(re.findall(r'href="#(\w[\w-]*)"', page.text))
    assert linked <= set(re.findall(r'id="([\w-]+)"', page.text)), "every link leads somewhere"


async def test_a_request_that_meets_itself_is_told_to_come_back(edge: Edge) -> None:
    shop = await edge.merchant()
    key, body = new_key(), authorization(card={"token": "tok_slow"})
    first = asyncio.create_task(shop.post(PAYMENTS, body, key))
    await asyncio.sleep(0.7)
    assert problem(await shop.post(PAYMENTS, body, key)) == (409, "in_progress")
    answer = await first  # which may itself be told to come back: the bank takes two seconds
    while answer.status_code == 409:
        await asyncio.sleep(int(answer.headers["retry-after"]))
        answer = await shop.post(PAYMENTS, body, key)
    assert answer.json()["status"] == "authorized"
    assert (await shop.post(PAYMENTS, body, key)).headers["idempotent-replayed"] == "true"


async def test_a_key_that_asks_too_often_is_slowed_down_alone(edge: Edge) -> None:
    limited = edge.another(rate_max="5", rate_window_seconds="60")
    greedy, other = await edge.merchant(at=limited.target), await edge.merchant(at=limited.target)
    answers = [await greedy.get(PAYMENTS) for _ in range(7)]
    assert [answer.status_code for answer in answers] == [200] * 5 + [429] * 2
    assert problem(answers[-1]) == (429, "rate_limited")
    assert (await other.get(PAYMENTS)).status_code == 200


async def test_without_valkey_nobody_is_slowed_down_and_it_is_counted(edge: Edge) -> None:
    port = free_port()
    blind = edge.another(
        valkey_url=f"redis://{NOBODY}",
        rate_max="1",
        metrics_listen=f"127.0.0.1:{port}",
        valkey_timeout_ms="500",
    )
    shop = await edge.merchant(at=blind.target)
    assert [(await shop.get(PAYMENTS)).status_code for _ in range(3)] == [200] * 3
    page = await asyncio.to_thread(_metrics, port)
    assert "paymesh_edge_unlimited_requests_total 3.0" in page
    assert 'http_route="/api/v1/payments"' in page


async def test_a_body_that_does_not_come_is_not_waited_for(edge: Edge) -> None:
    hurried = edge.another(body_seconds="0.3")
    api_key = await new_api_key(edge.dsn)
    answer = await asyncio.to_thread(_raw, hurried.target, _unfinished(api_key))
    assert answer.startswith(b"HTTP/1.1 408")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["code"] == "request_timeout"


async def test_services_that_are_gone_are_unavailable_and_changes_unknown(edge: Edge) -> None:
    lonely = edge.another(payment_target=NOBODY, bank_target=NOBODY, read_seconds="1", payment_seconds="1")
    shop = await edge.merchant(at=lonely.target)
    assert problem(await shop.get(PAYMENTS)) == (503, "unavailable")
    assert problem(await shop.get(f"{PAYMENTS}/pay_x")) == (503, "unavailable")
    assert problem(await shop.get(ORDERS)) == (503, "unavailable")
    assert problem(await shop.post(PAYMENTS, authorization())) == (504, "outcome_unknown")
    # The number was not exchanged, so nothing can have happened.
    assert problem(await shop.post(PAYMENTS, authorization(card=CARD))) == (503, "unavailable")
    full = edge.another(requests_max="1", body_seconds="2")
    busy = await edge.merchant(at=full.target)
    api_key = busy.client.headers["authorization"].removeprefix("Bearer ")
    waiting = asyncio.create_task(asyncio.to_thread(_raw, full.target, _unfinished(api_key)))
    await asyncio.sleep(0.5)
    assert problem(await busy.get(PAYMENTS)) == (503, "unavailable")
    assert (await waiting).startswith(b"HTTP/1.1 408")
    assert (await busy.get(PAYMENTS)).status_code == 200


async def test_of_a_defect_a_client_learns_nothing(edge: Edge) -> None:
    shop = await edge.merchant()
    edge.on_edge("ALTER TABLE cards RENAME TO gone")
    answer = await shop.post(PAYMENTS, authorization(card=CARD))
    assert problem(answer) == (500, "internal")
    assert "gone" not in answer.text
    assert "cards" not in answer.text
    assert "Traceback" not in answer.text
    edge.on_edge("ALTER TABLE gone RENAME TO cards")
    async with asyncio.timeout(5):  # the answer leaves before the defect is written down
        while "UndefinedTable" not in (log := edge.process.log()):
            await asyncio.sleep(0.02)
    assert NUMBER not in log


async def test_an_answer_does_not_wait_for_an_acknowledgement(edge: Edge) -> None:
    """Nagle's algorithm would hold the second half of it back for 40 ms, on every request."""

    def look() -> float:
        connection = http.client.HTTPConnection(edge.process.target)
        seconds = []
        for _ in range(15):
            started = time.perf_counter()
            connection.request("GET", "/healthz")
            connection.getresponse().read()
            seconds.append(time.perf_counter() - started)
        connection.close()
        return statistics.median(seconds)

    assert min([await asyncio.to_thread(look) for _ in range(3)]) < 0.03


async def test_workers_share_a_port_and_a_page_of_metrics(edge: Edge) -> None:
    port = free_port()
    shared = edge.another(workers="2", metrics_listen=f"127.0.0.1:{port}", drain_seconds="2")
    api_key = await new_api_key(edge.dsn)
    await _until(lambda: len(_workers(shared.pid)) == 2)

    async def ask(times: int) -> list[int]:
        answers = []
        for _ in range(times):  # on a connection each: the kernel deals them out
            async with merchant_at(shared.target, api_key) as shop:
                answers.append((await shop.get(PAYMENTS)).status_code)
        return answers

    await asyncio.sleep(1.0)
    assert await ask(20) == [200] * 20
    page = await asyncio.to_thread(_metrics, port)
    (counted,) = re.findall(r'_duration_seconds_count{.*http_route="/api/v1/payments".*} (\S+)', page)
    assert float(counted) == 20.0

    await asyncio.sleep(5.0)  # until they are no longer young
    victim, survivor = _workers(shared.pid)
    os.kill(victim, signal.SIGKILL)
    await _until(lambda: len(_workers(shared.pid) - {victim}) == 2)
    assert survivor in _workers(shared.pid)
    assert set(await ask(10)) == {200}
    workers = _workers(shared.pid)
    shared.kill()
    await _until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))


async def test_a_worker_that_cannot_start_ends_with_its_parent(edge: Edge) -> None:
    with pytest.raises(AssertionError, match="cannot run"):
        edge.another(workers="2", database_dsn="postgresql://nobody@127.0.0.1:1/none")


def _workers(pid: int) -> set[int]:
    return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(15.0):
        while not condition():
            await asyncio.sleep(0.05)


def _metrics(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as page:
        text: str = page.read().decode()
    return text


def _unfinished(api_key: str) -> bytes:
    """A request that promises more than it brings."""
    head = f"POST {PAYMENTS} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {api_key}\r\nContent-Length: 10\r\n\r\n{{"
    return head.encode()


def _raw(target: str, data: bytes) -> bytes:
    host, _, port = target.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(data)
        parts = []
        while part := connection.recv(4_096):
            parts.append(part)
    return b"".join(parts)
