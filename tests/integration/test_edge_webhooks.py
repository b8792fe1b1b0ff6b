"""Webhooks from the intake to the merchant's server: a real edge, a real database, a real receiver that fails in every
way, and the library that receivers use to check what they get. What has arrived is read from the receiver's own file.

Where messages come from is not the subject here: they are handed to the intake. tests/e2e/test_webhooks.py has the
whole way.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest
import pytest_asyncio
from standardwebhooks import Webhook, WebhookVerificationError

from deploy.local.stores import EmbeddedPostgres
from services.edge import store
from services.edge.domain.addresses import networks
from services.edge.domain.keys import Access
from services.edge.domain.webhooks import Failure
from services.edge.sender import ANSWER_BYTES_MAX, Sender
from services.edge.store import Message
from services.edge.vault import Vault
from services.edge.webhooks import ENDPOINTS_MAX, KEEP_SECONDS, Told, Webhooks
from services.kit.clock import now_ms
from services.kit.ids import new_id
from tests.conftest import Services
from tests.edge import KEY_SECRET, VAULT_KEY, Merchant, database_of, merchant_at, new_api_key, problem
from tests.orders import new_key, new_merchant
from tests.processes import ServiceProcess, free_port

ENDPOINTS = "/api/v1/webhook-endpoints"
DELIVERIES = "/api/v1/webhook-deliveries"
NOBODY = "127.0.0.1:1"
LOOPBACK = "127.0.0.0/8"
RECEIVER = Path(__file__).parents[1] / "receiver.py"
SETTINGS = {
    "payment_target": NOBODY,
    "bank_target": NOBODY,
    "orchestrator_target": NOBODY,
    "valkey_url": f"redis://{NOBODY}",
    "rate_max": "0",
    "key_secret": KEY_SECRET,
    "vault_key": VAULT_KEY,
    "webhook_networks_allowed": LOOPBACK,
    "webhook_seconds": "2",
    "webhook_poll_ms": "50",
    "webhook_retry_first_ms": "100",
}

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass
class Receiver:
    """A merchant's server."""

    port: int
    file: Path
    process: subprocess.Popen[bytes]

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def requests(self, path: str = "") -> list[dict[str, Any]]:
        """What it was sent, oldest first."""
        if not self.file.exists():
            return []
        lines = map(json.loads, self.file.read_text(encoding="utf-8").splitlines())
        return [line for line in lines if line["path"].startswith(path)]


@dataclass
class Mail:
    """An edge that delivers, and a receiver."""

    services: Services
    process: ServiceProcess
    receiver: Receiver
    stack: AsyncExitStack
    names: dict[int, str] = field(default_factory=dict)

    @property
    def dsn(self) -> str:
        return self.services.dsn("edge")

    async def merchant(
        self, *, access: Access = Access.FULL, name: str = "", at: str = ""
    ) -> tuple[str, Merchant]:
        name = name or new_merchant()
        api_key = await new_api_key(self.dsn, name, access=access)
        return name, await self.stack.enter_async_context(merchant_at(at or self.process.target, api_key))

    async def take(self, *messages: Message, **settings: Any) -> int:
        """Hand messages to the intake."""
        async with database_of(self.dsn) as database:
            webhooks = Webhooks(database, Vault(VAULT_KEY), networks(LOOPBACK), **settings)
            told = [
                Told(m.merchant_id, m.message_id, m.type, m.occurred_at_ms, functools.partial(bytes, m.body))
                for m in messages
            ]
            return await database.transact(lambda tx: webhooks.take(tx, told))

    def rows(self, query: str, *params: object) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            cursor = connection.execute(query.encode(), params)
            return cursor.fetchall() if cursor.description else []


@pytest.fixture(scope="module")
def receiver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Receiver]:
    """See `Receiver`."""
    port, file = free_port(), tmp_path_factory.mktemp("receiver") / "requests.jsonl"
    process = subprocess.Popen([sys.executable, RECEIVER, file, str(port)])
    yield Receiver(port, file, process)
    process.kill()
    process.wait()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def mail(
    postgres: EmbeddedPostgres, receiver: Receiver, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Mail]:
    """One edge for all tests that do not kill it; each has merchants of its own."""
    services = Services(postgres, tmp_path_factory.mktemp("mail"))
    process = services.start("edge", **SETTINGS)
    async with AsyncExitStack() as stack:
        yield Mail(services, process, receiver, stack)
    services.stop()


def message(merchant: str, *, name: str = "payment.captured", number: int = 0, age_ms: int = 0) -> Message:
    message_id = new_id("evt")
    body = json.dumps({"id": message_id, "type": name, "data": {"id": f"pay_{number}", "note": "für 5 €"}})
    return Message(merchant, message_id, name, body.encode(), now_ms() - age_ms)


async def endpoint(shop: Merchant, url: str, **body: Any) -> dict[str, Any]:
    """A new endpoint."""
    made = await shop.post(ENDPOINTS, {"url": url, **body})
    assert made.status_code == 201, made.text
    answer: dict[str, Any] = made.json()
    return answer


async def until(what: str, condition: Callable[[], bool | Awaitable[bool]], seconds: float = 60.0) -> None:
    """Wait for something, with a limit."""
    end = time.monotonic() + seconds
    while True:
        found = condition()
        if found if isinstance(found, bool) else await found:
            return
        assert time.monotonic() < end, f"not within {seconds:.0f} s: {what}"
        await asyncio.sleep(0.05)


async def ended(shop: Merchant, count: int, **params: Any) -> list[dict[str, Any]]:
    """The deliveries of a merchant, once there are so many and all have ended."""
    found: list[dict[str, Any]] = []

    async def all_ended() -> bool:
        found[:] = (await shop.get(DELIVERIES, limit=100, **params)).json()["data"]
        return len(found) == count and all(one["status"] != "pending" for one in found)

    await until(f"{count} deliveries have ended", all_ended)
    return found


async def story(shop: Merchant, delivery: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = (await shop.get(f"{DELIVERIES}/{delivery['id']}")).json()
    return found


async def test_a_message_is_signed_delivered_and_listed(mail: Mail) -> None:
    name, shop = await mail.merchant()
    path = f"/ok/{name}"
    made = await endpoint(shop, mail.receiver.url(path), description="ours")
    sent = message(name)
    assert await mail.take(sent) == 1
    (delivery,) = await ended(shop, 1)
    assert (delivery["status"], delivery["type"], delivery["attempts"]) == (
        "delivered",
        "payment.captured",
        1,
    )
    assert (delivery["message_id"], delivery["endpoint_id"]) == (sent.message_id, made["id"])

    (request,) = mail.receiver.requests(path)
    headers = {key.lower(): value for key, value in request["headers"].items()}
    assert Webhook(made["secret"]).verify(request["body"], headers) == json.loads(sent.body)
    assert headers["webhook-id"] == sent.message_id
    assert request["body"].encode() == sent.body
    assert (headers["content-type"], headers["host"]) == (
        "application/json",
        f"127.0.0.1:{mail.receiver.port}",
    )
    with pytest.raises(WebhookVerificationError):
        Webhook(made["secret"]).verify(request["body"].replace("pay_0", "pay_1"), headers)

    told = await story(shop, delivery)
    assert told["message"] == json.loads(sent.body)
    (attempt,) = told["attempt_history"]
    assert (attempt["outcome"], attempt["http_status"], attempt["detail"]) == ("delivered", 200, "thanks")


async def test_the_same_message_is_told_once(mail: Mail) -> None:
    name, shop = await mail.merchant()
    paths = [f"/ok/{name}/{number}" for number in range(2)]
    for path in paths:
        await endpoint(shop, mail.receiver.url(path))
    sent, other = message(name), message(name)
    assert await mail.take(sent, sent) == 2
    counts = await asyncio.gather(*(mail.take(other, sent) for _ in range(5)))
    assert sorted(counts) == [0, 0, 0, 0, 2]
    await ended(shop, 4)
    assert await mail.take(sent, other) == 0
    for path in paths:
        got = Counter(request["headers"]["webhook-id"] for request in mail.receiver.requests(path))
        assert got == {sent.message_id: 1, other.message_id: 1}


async def test_what_was_before_the_endpoint_or_is_too_old_to_be_known_again_is_not_told(mail: Mail) -> None:
    name, shop = await mail.merchant()
    await endpoint(shop, mail.receiver.url(f"/ok/{name}"))
    assert await mail.take(message(name, age_ms=3_600_000)) == 0
    mail.rows(
        "UPDATE webhook_endpoints SET created_at = now() - interval '40 days' WHERE merchant_id = %s", name
    )
    old = message(name, age_ms=round(KEEP_SECONDS * 1000) + 1_000)
    assert await mail.take(old, message(name, age_ms=3_600_000)) == 1


async def test_an_endpoint_is_told_what_it_wants_and_of_its_merchant_only(mail: Mail) -> None:
    name, shop = await mail.merchant()
    other_name, other = await mail.merchant()
    some, everything, others = f"/ok/{name}/some", f"/ok/{name}/all", f"/ok/{other_name}"
    await endpoint(shop, mail.receiver.url(some), events=["order.*", "payment.refunded"])
    await endpoint(shop, mail.receiver.url(everything))
    await endpoint(other, mail.receiver.url(others))
    sent = [message(name, name=one) for one in ("payment.captured", "payment.refunded", "order.placed")]
    await mail.take(*sent, message(other_name, name="order.placed"))
    await ended(shop, 5)
    await ended(other, 1)
    types = {
        path: sorted(json.loads(request["body"])["type"] for request in mail.receiver.requests(path))
        for path in (some, everything, others)
    }
    assert types == {
        some: ["order.placed", "payment.refunded"],
        everything: ["order.placed", "payment.captured", "payment.refunded"],
        others: ["order.placed"],
    }


async def test_what_fails_comes_again_the_same_until_it_is_taken(mail: Mail) -> None:
    name, shop = await mail.merchant()
    path = f"/flaky/2/{name}"
    made = await endpoint(shop, mail.receiver.url(path))
    await mail.take(message(name))
    (delivery,) = await ended(shop, 1)
    assert (delivery["status"], delivery["attempts"]) == ("delivered", 3)
    requests = mail.receiver.requests(path)
    assert len({(request["body"], request["headers"]["webhook-id"]) for request in requests}) == 1
    for request in requests:
        Webhook(made["secret"]).verify(request["body"], {k.lower(): v for k, v in request["headers"].items()})
    attempts = (await story(shop, delivery))["attempt_history"]
    assert [(one["outcome"], one["http_status"]) for one in attempts] == [
        ("status", 500),
        ("status", 500),
        ("delivered", 204),
    ]
    assert (await shop.get(f"{ENDPOINTS}/{made['id']}")).json()["failing_since"] is None


async def test_a_receiver_that_hangs_holds_up_nobody_else(mail: Mail) -> None:
    (slow_name, slow), (name, shop) = await mail.merchant(), await mail.merchant()
    hang, path = f"/hang/{slow_name}", f"/ok/{name}"
    await endpoint(slow, mail.receiver.url(hang))
    await endpoint(shop, mail.receiver.url(path))
    await mail.take(*(message(slow_name, number=number) for number in range(30)))
    await until("it hangs", lambda: len(mail.receiver.requests(hang)) >= 4)
    await mail.take(*(message(name, number=number) for number in range(30)))
    delivered = await ended(shop, 30)
    assert {one["status"] for one in delivered} == {"delivered"}
    assert max(request["beside"] for request in mail.receiver.requests(path)) <= 4
    # Whoever has been given up here is still being answered there.
    waiting = (await slow.get(DELIVERIES, limit=100)).json()["data"]
    assert {one["status"] for one in waiting} == {"pending"}
    assert sum(one["attempts"] for one in waiting) < 30

    async def timed_out() -> bool:
        stories = [await story(slow, one) for one in waiting]
        return any(one["outcome"] == "timeout" for told in stories for one in told["attempt_history"])

    await until("an attempt has timed out", timed_out)
    (listed,) = (await slow.get(ENDPOINTS)).json()["data"]
    assert listed["failing_since"] is not None


async def test_nobody_is_led_elsewhere_and_nothing_endless_is_read(mail: Mail) -> None:
    name, shop = await mail.merchant()
    await endpoint(shop, mail.receiver.url(f"/redirect/{name}"), events=["payment.captured"])
    await endpoint(shop, mail.receiver.url(f"/big/{name}"), events=["payment.refunded"])
    await mail.take(message(name), message(name, name="payment.refunded"))
    await until("both were asked", lambda: len(mail.receiver.requests(f"/big/{name}")) == 1)
    (big,) = await ended(shop, 1, status="delivered")
    assert big["type"] == "payment.refunded"
    (led,) = (await shop.get(DELIVERIES, status="pending")).json()["data"]
    await until("it was redirected", lambda: len(mail.receiver.requests(f"/redirect/{name}")) >= 2)
    first = (await story(shop, led))["attempt_history"][0]
    assert (first["outcome"], first["http_status"]) == ("redirect", 307)
    assert mail.receiver.requests("/ok/followed") == []


async def test_after_its_time_a_delivery_is_given_up_and_the_endpoint_disabled_until_it_is_enabled(
    mail: Mail,
) -> None:
    name, shop = await mail.merchant()
    hurried = mail.services.start("edge", **{**SETTINGS, "webhook_retry_seconds": "6"})
    mail.process.send(signal.SIGSTOP)
    try:
        shop = (await mail.merchant(name=name, at=hurried.target))[1]
        made = await endpoint(shop, mail.receiver.url(f"/moody/{name}"))
        await mail.take(message(name), retry_seconds=6.0)
        await until("it has failed", lambda: len(mail.receiver.requests(f"/moody/{name}")) >= 2)
        # As if it had failed for all the time that a message is tried.
        mail.rows(
            "UPDATE webhook_endpoints SET failing_since = now() - interval '1 h' WHERE merchant_id = %s", name
        )
        (given_up,) = await ended(shop, 1)
        assert (given_up["status"], given_up["reason"]) == ("given_up", "retries_exhausted")
        listed = (await shop.get(f"{ENDPOINTS}/{made['id']}")).json()
        assert (listed["status"], bool(listed["reason"]), bool(listed["disabled_at"])) == (
            "disabled",
            True,
            True,
        )

        await mail.take(message(name))
        missed = (await ended(shop, 2))[0]
        assert (missed["reason"], missed["attempts"]) == ("endpoint_disabled", 0)
        for refused in (f"{DELIVERIES}/{missed['id']}/resend", f"{ENDPOINTS}/{made['id']}/resend"):
            assert problem(await shop.post(refused)) == (422, "webhook_endpoint_not_enabled")

        mail.receiver.file.with_name(name).touch()
        enabled = (await shop.post(f"{ENDPOINTS}/{made['id']}/enable")).json()
        assert (enabled["status"], enabled["reason"], enabled["failing_since"]) == ("enabled", None, None)
        key = new_key()
        again = await shop.post(f"{ENDPOINTS}/{made['id']}/resend", key=key)
        assert again.json() == {"count": 2}
        assert (await shop.post(f"{ENDPOINTS}/{made['id']}/resend", key=key)).headers["idempotent-replayed"]
        assert {one["status"] for one in await ended(shop, 2)} == {"delivered"}
    finally:
        mail.process.send(signal.SIGCONT)
        hurried.kill()


async def test_a_receiver_that_is_gone_is_disabled_at_once(mail: Mail) -> None:
    name, shop = await mail.merchant()
    made = await endpoint(shop, mail.receiver.url(f"/status/410/{name}"))
    await mail.take(message(name))
    (delivery,) = await ended(shop, 1)
    assert (delivery["status"], delivery["reason"]) == ("given_up", "endpoint_disabled")
    listed = (await shop.get(f"{ENDPOINTS}/{made['id']}")).json()
    assert (listed["status"], listed["reason"]) == ("disabled", "it answered 410 Gone")


async def test_a_delivered_message_is_sent_again_on_demand_under_its_name(mail: Mail) -> None:
    name, shop = await mail.merchant()
    path = f"/ok/{name}"
    await endpoint(shop, mail.receiver.url(path))
    await mail.take(message(name))
    (delivery,) = await ended(shop, 1)
    key, url = new_key(), f"{DELIVERIES}/{delivery['id']}/resend"
    again = await shop.post(url, key=key)
    assert (again.status_code, again.json()["status"]) == (200, "pending")
    await until("it came twice", lambda: len(mail.receiver.requests(path)) == 2)
    assert (await shop.post(url, key=key)).headers["idempotent-replayed"] == "true"
    (told,) = await ended(shop, 1)
    assert told["attempts"] == 2
    ids = {request["headers"]["webhook-id"] for request in mail.receiver.requests(path)}
    assert ids == {delivery["message_id"]}


async def test_after_a_rotation_both_secrets_sign_until_the_overlap_is_over(mail: Mail) -> None:
    name, shop = await mail.merchant()
    path = f"/ok/{name}"
    made = await endpoint(shop, mail.receiver.url(path))
    url = f"{ENDPOINTS}/{made['id']}/rotate-secret"
    second = (await shop.post(url)).json()["secret"]
    third = (await shop.post(url, {"overlap_seconds": 3_600})).json()["secret"]
    assert len({made["secret"], second, third}) == 3

    async def signers() -> set[str]:
        before = len(mail.receiver.requests(path))
        await mail.take(message(name))
        await until("it came", lambda: len(mail.receiver.requests(path)) == before + 1)
        request = mail.receiver.requests(path)[-1]
        headers = {key.lower(): value for key, value in request["headers"].items()}
        good = set()
        for secret in (made["secret"], second, third, fourth):
            try:
                Webhook(secret).verify(request["body"], headers)
                good.add(secret)
            except WebhookVerificationError:
                pass
        return good

    fourth = "whsec_bm90IHlldA=="
    assert await signers() == {second, third}, "never more than two"
    fourth = (await shop.post(url, {"overlap_seconds": 0})).json()["secret"]
    assert await signers() == {fourth}


async def test_a_secret_is_shown_once_and_kept_sealed(mail: Mail) -> None:
    name, shop = await mail.merchant()
    key, body = new_key(), {"url": mail.receiver.url("/ok/x"), "events": ["order.*"], "description": "d"}
    first = await shop.post(ENDPOINTS, body, key)
    again = await shop.post(ENDPOINTS, body, key)
    assert again.headers["idempotent-replayed"] == "true"
    assert again.json() == first.json()
    assert problem(await shop.post(ENDPOINTS, {**body, "description": "e"}, key)) == (
        422,
        "idempotency_key_reused",
    )
    made = first.json()
    assert first.headers["location"] == f"{ENDPOINTS}/{made['id']}"
    listed = (await shop.get(ENDPOINTS)).json()["data"]
    assert listed == [{name: value for name, value in made.items() if name != "secret"}]
    secret = made["secret"].removeprefix("whsec_")
    for (table,) in mail.rows(
        "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace"
    ):
        assert not any(secret in text for (text,) in mail.rows(f"SELECT t::text FROM {table} AS t")), table
    assert secret not in mail.process.log()
    moved = mail.rows(
        "SELECT sealed_secret, sealed_key, vault_key_id FROM webhook_secrets WHERE merchant_id = %s", name
    )
    assert len(moved) == 1


async def test_a_merchant_never_sees_or_changes_anothers(mail: Mail) -> None:
    name, shop = await mail.merchant()
    _, stranger = await mail.merchant()
    _, reader = await mail.merchant(name=name, access=Access.READ)
    made = await endpoint(shop, mail.receiver.url(f"/ok/{name}"))
    await mail.take(message(name))
    (delivery,) = await ended(shop, 1)
    at, of = f"{ENDPOINTS}/{made['id']}", f"{DELIVERIES}/{delivery['id']}"
    for path in (at, of):
        assert problem(await stranger.get(path)) == (404, "not_found"), path
    for path in (f"{at}/rotate-secret", f"{at}/enable", f"{at}/resend", f"{of}/resend"):
        assert problem(await stranger.post(path)) == (404, "not_found"), path
        assert problem(await reader.post(path)) == (403, "key_is_read_only"), path
    assert problem(await stranger.client.delete(at)) == (404, "not_found")
    assert problem(await reader.client.delete(at)) == (403, "key_is_read_only")
    for path in (ENDPOINTS, DELIVERIES, f"{DELIVERIES}?endpoint_id={made['id']}"):
        assert (await stranger.get(path)).json() == {"data": [], "next_page": None}
    assert (await reader.get(at)).json() == (await shop.get(at)).json()
    assert (await shop.get(at)).json()["status"] == "enabled"


async def test_a_deleted_endpoint_is_told_nothing_more(mail: Mail) -> None:
    name, shop = await mail.merchant()
    path = f"/fail/{name}"
    key, body = new_key(), {"url": mail.receiver.url(path)}
    made = (await shop.post(ENDPOINTS, body, key)).json()
    await mail.take(message(name))
    await until("it has failed", lambda: len(mail.receiver.requests(path)) >= 1)
    for _ in range(2):
        assert (await shop.client.delete(f"{ENDPOINTS}/{made['id']}")).status_code == 204
    (delivery,) = await ended(shop, 1)
    assert (delivery["status"], delivery["reason"]) == ("given_up", "endpoint_deleted")
    assert await mail.take(message(name)) == 0
    assert (await shop.get(ENDPOINTS)).json()["data"] == []
    again = await shop.post(ENDPOINTS, body, key)
    assert (again.status_code, again.json()["status"], again.json()["secret"]) == (201, "deleted", None)
    assert problem(await shop.get(f"{ENDPOINTS}/{made['id']}")) == (404, "not_found")
    assert problem(await shop.post(f"{ENDPOINTS}/{made['id']}/enable")) == (404, "not_found")
    assert problem(await shop.post(f"{DELIVERIES}/{delivery['id']}/resend")) == (
        422,
        "webhook_endpoint_not_enabled",
    )
    assert mail.rows("SELECT count(*) FROM webhook_secrets WHERE merchant_id = %s", name) == [(0,)]


async def test_endpoints_and_deliveries_come_page_by_page_and_have_a_limit(mail: Mail) -> None:
    name, shop = await mail.merchant()
    made = [await endpoint(shop, mail.receiver.url(f"/ok/{name}/{n}")) for n in range(ENDPOINTS_MAX)]
    body = {"url": mail.receiver.url("/ok")}
    assert problem(await shop.post(ENDPOINTS, body)) == (422, "too_many_webhook_endpoints")
    await mail.take(message(name))
    await ended(shop, ENDPOINTS_MAX)
    for path, ids in ((ENDPOINTS, [one["id"] for one in made]), (DELIVERIES, None)):
        found: list[str] = []
        page: str | None = ""
        while page is not None:
            answer = (await shop.get(path, limit=4, page=page)).json()
            found += [one["id"] for one in answer["data"]]
            page = answer["next_page"]
        assert len(set(found)) == len(found) == ENDPOINTS_MAX
        assert found == (ids or sorted(found, reverse=True))


@pytest.mark.parametrize(
    ("body", "at"),
    [
        ({}, "url"),
        ({"url": "ftp://shop.example/"}, "url"),
        ({"url": "https://10.0.0.1/"}, "url"),
        ({"url": "https://shop.example/\0"}, "url"),
        ({"url": "https://shop.example/", "events": ["payment.nothing"]}, "events[0]"),
        ({"url": "https://shop.example/", "events": "payment.*"}, "events"),
        ({"url": "https://shop.example/", "description": "d" * 201}, "description"),
        ({"url": "https://shop.example/", "description": "d\0"}, "description"),
        ({"url": "https://shop.example/", "secret": "mine"}, "secret"),
    ],
)
async def test_a_wrong_endpoint_is_refused(mail: Mail, body: dict[str, Any], at: str) -> None:
    _, shop = await mail.merchant()
    answer = await shop.post(ENDPOINTS, body)
    assert problem(answer) == (400, "invalid_request")
    assert at in {error["field"].partition(".")[0] for error in answer.json()["errors"]}
    assert (await shop.get(ENDPOINTS)).json()["data"] == []


async def test_nothing_is_sent_to_an_address_that_is_not_public(mail: Mail) -> None:
    """By a name that leads there: the name itself tells nothing."""
    name = new_merchant()
    strict = mail.services.start("edge", **{**SETTINGS, "webhook_networks_allowed": "10.255.255.0/24"})
    mail.process.send(signal.SIGSTOP)
    try:
        _, shop = await mail.merchant(name=name, at=strict.target)
        for host in ("localhost", "2130706433", "0x7f.1"):
            await endpoint(shop, f"https://{host}:{mail.receiver.port}/ok/{name}")
            await endpoint(shop, f"http://{host}:{mail.receiver.port}/ok/{name}")
        await mail.take(message(name))

        async def tried() -> bool:
            found = (await shop.get(DELIVERIES)).json()["data"]
            return len(found) == 6 and all(one["attempts"] >= 1 for one in found)

        await until("all were attempted", tried)
        for delivery in (await shop.get(DELIVERIES)).json()["data"]:
            first = (await story(shop, delivery))["attempt_history"][0]
            assert (first["outcome"], first["http_status"]) == ("address_not_allowed", None)
        assert mail.receiver.requests(f"/ok/{name}") == []
    finally:
        mail.process.send(signal.SIGCONT)
        strict.kill()


async def test_killed_in_the_midst_every_message_is_delivered(mail: Mail) -> None:
    """kill -9 of two edges while both wait for answers."""
    name = new_merchant()
    path = f"/slow/{name}"
    doomed = [mail.services.start("edge", **{**SETTINGS, "webhook_seconds": "5"}) for _ in range(2)]
    mail.process.send(signal.SIGSTOP)
    try:
        _, shop = await mail.merchant(name=name, at=doomed[0].target)
        await endpoint(shop, mail.receiver.url(path))
        sent = [message(name, number=number) for number in range(12)]
        await mail.take(*sent)
        await until("some are under way", lambda: len(mail.receiver.requests(path)) >= 6)
        for process in doomed:
            process.send(signal.SIGKILL)
        doomed[0].kill()
        doomed[0].start()
        delivered = await ended(shop, 12)
        assert {one["status"] for one in delivered} == {"delivered"}
        got = Counter(request["headers"]["webhook-id"] for request in mail.receiver.requests(path))
        assert got.keys() == {one.message_id for one in sent}
        stories = [await story(shop, one) for one in delivered]
        outcomes = Counter(one["outcome"] for told in stories for one in told["attempt_history"])
        assert outcomes["delivered"] == 12
        assert outcomes["interrupted"] >= 1
        assert sum(got.values()) <= sum(outcomes.values()), "no request without a record"
    finally:
        mail.process.send(signal.SIGCONT)
        for process in doomed:
            process.kill()


async def test_several_edges_attempt_each_delivery_once_and_no_endpoint_more_than_four_at_a_time(
    mail: Mail,
) -> None:
    name = new_merchant()
    path = f"/slow/{name}"
    others = [mail.services.start("edge", **{**SETTINGS, "webhook_seconds": "30"}) for _ in range(2)]
    mail.process.send(signal.SIGSTOP)
    try:
        _, shop = await mail.merchant(name=name, at=others[0].target)
        await endpoint(shop, mail.receiver.url(path))
        sent = [message(name, number=number) for number in range(12)]
        await mail.take(*sent)
        await ended(shop, 12)
        requests = mail.receiver.requests(path)
        got = Counter(request["headers"]["webhook-id"] for request in requests)
        assert got == {one.message_id: 1 for one in sent}
        assert max(request["beside"] for request in requests) <= 4
    finally:
        mail.process.send(signal.SIGCONT)
        for other in others:
            other.kill()


async def test_what_has_ended_long_ago_is_forgotten(mail: Mail) -> None:
    name, shop = await mail.merchant()
    await endpoint(shop, mail.receiver.url(f"/ok/{name}"))
    await mail.take(message(name), message(name))
    kept, old = await ended(shop, 2)
    mail.rows(
        "UPDATE webhook_deliveries SET ended_at = now() - interval '31 days' WHERE delivery_id = %s",
        old["id"],
    )
    mail.rows(
        "UPDATE webhook_messages SET created_at = now() - interval '31 days' WHERE merchant_id = %s", name
    )
    async with database_of(mail.dsn) as database:
        assert await database.transact(lambda tx: store.delete_old(tx, KEEP_SECONDS, 10)) == 1
    assert [one["id"] for one in (await shop.get(DELIVERIES)).json()["data"]] == [kept["id"]]
    assert mail.rows("SELECT message_id FROM webhook_messages WHERE merchant_id = %s", name) == [
        (kept["message_id"],)
    ]
    assert mail.rows("SELECT count(*) FROM webhook_attempts WHERE delivery_id = %s", old["id"]) == [(0,)]


async def test_a_name_is_looked_up_once_and_the_address_that_was_checked_is_connected_to(
    mail: Mail, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name server that gives another answer every time."""
    import socket

    real, answers = socket.getaddrinfo, iter(["127.0.0.1", "10.0.0.1"])
    asked: list[str] = []

    def rebinding(host: Any, port: Any, *args: Any, **more: Any) -> Any:
        if host == "rebind.example":
            asked.append(host)
            return real(next(answers), port, *args, **more)
        return real(host, port, *args, **more)

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    sender = Sender(2.0, networks(LOOPBACK))
    url = f"http://rebind.example:{mail.receiver.port}/ok/rebind"
    first = await sender.send(url, b"{}", {})
    assert (first.failure, first.status) == (None, 200)
    assert asked == ["rebind.example"]
    (request,) = mail.receiver.requests("/ok/rebind")
    assert request["headers"]["Host"] == f"rebind.example:{mail.receiver.port}"
    second = await sender.send(url, b"{}", {})
    assert (second.failure, second.status) == (Failure.ADDRESS_NOT_ALLOWED, None)
    assert len(mail.receiver.requests("/ok/rebind")) == 1
    await sender.close()


async def test_one_bad_address_among_good_ones_is_one_too_many(
    mail: Mail, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    real = socket.getaddrinfo

    def both(host: Any, port: Any, *args: Any, **more: Any) -> Any:
        if host == "both.example":
            return real("127.0.0.1", port, *args, **more) + real("169.254.169.254", port, *args, **more)
        return real(host, port, *args, **more)

    monkeypatch.setattr(socket, "getaddrinfo", both)
    sender = Sender(2.0, networks(LOOPBACK))
    outcome = await sender.send(f"http://both.example:{mail.receiver.port}/ok/both", b"{}", {})
    assert outcome.failure is Failure.ADDRESS_NOT_ALLOWED
    assert "169.254.169.254" in outcome.detail
    await sender.close()


async def test_what_goes_wrong_on_the_way_is_named(mail: Mail) -> None:
    sender = Sender(0.5, networks(LOOPBACK))
    url = mail.receiver.url
    outcomes = [
        await sender.send(one, b"{}", {})
        for one in (
            url("/hang"),
            url("/status/503"),
            f"http://127.0.0.1:{free_port()}/",
            "https://no.such.invalid/",
        )
    ]
    assert [one.failure for one in outcomes] == [
        Failure.TIMEOUT,
        Failure.STATUS,
        Failure.CONNECTION,
        Failure.NAME_NOT_FOUND,
    ]
    assert all(outcome.duration_ms < 5_000 for outcome in outcomes)
    big = await sender.send(url("/big"), b"{}", {})
    assert (big.failure, big.status) == (None, 200)
    assert len(big.detail) < ANSWER_BYTES_MAX
    await sender.close()


async def test_an_operator_does_all_of_it_by_command(mail: Mail) -> None:
    name, shop = await mail.merchant()
    environment = {
        **os.environ,
        "PAYMESH_EDGE_DATABASE_DSN": mail.dsn,
        "PAYMESH_EDGE_VAULT_KEY": VAULT_KEY,
        "PAYMESH_EDGE_WEBHOOK_NETWORKS_ALLOWED": LOOPBACK,
    }

    async def command(*arguments: str, exit_code: int = 0) -> str:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "paymesh.cli", "webhook", *arguments),
            env=environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said, _ = await process.communicate()
        assert process.returncode == exit_code, said.decode()
        assert "Traceback" not in said.decode()
        return said.decode()

    url = mail.receiver.url(f"/ok/{name}")
    secret = await command("add", name, url, "--event", "payment.*", "--key", "k", "--quiet")
    assert await command("add", name, url, "--event", "payment.*", "--key", "k", "--quiet") == secret
    (made,) = json.loads(await command("list", name, "--json"))
    assert (made["url"], made["events"], made["state"]) == (url, "payment.*", "ENABLED")
    await mail.take(message(name), message(name, name="order.placed"))
    (delivery,) = await ended(shop, 1)
    assert "DELIVERED" in await command("attempts", name)
    (attempt,) = json.loads(await command("attempts", name, delivery["id"], "--json"))
    assert (attempt["outcome"], attempt["status"], attempt["answer"]) == ("DELIVERED", 200, "thanks")
    await command("resend", name, delivery["id"])
    await until("it came again", lambda: len(mail.receiver.requests(f"/ok/{name}")) == 2)
    renewed = (await command("rotate", name, made["endpoint"], "--quiet")).strip()
    assert renewed != secret.strip()
    assert "is enabled" in await command("enable", name, made["endpoint"])
    assert await command("resend", name, made["endpoint"]) == "0 messages to be sent again\n"
    for wrong in (
        ("add", name, "http://10.0.0.1/"),
        ("attempts", name, "whd_nobody"),
        ("resend", new_merchant(), delivery["id"]),
    ):
        assert (await command(*wrong, exit_code=1)).startswith("error: ")
    await command("remove", name, made["endpoint"])
    assert await command("list", name) == "nothing\n"
