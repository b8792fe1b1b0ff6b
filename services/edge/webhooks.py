"""Endpoints of merchants, and what they are told: what a merchant may do with them, and the intake of messages.

An endpoint's secret is sealed like a card number, and shown when it is made. Requests that change something carry a key
like everywhere; here the work is done in this service, so here the key is claimed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import orjson
from google.protobuf.wrappers_pb2 import StringValue

from services.edge import store
from services.edge.clients import Replayed
from services.edge.domain import webhooks as domain
from services.edge.domain.addresses import Network, check_url
from services.edge.domain.webhooks import Endpoint, EndpointState, GivenUp
from services.edge.store import EndpointKey, KeptSecret, Message, NewDelivery
from services.edge.vault import Vault
from services.kit.clock import now_ms
from services.kit.db import Database, Transaction
from services.kit.deadline import Deadline
from services.kit.errors import Invalid, NotFound, PaymeshError, Refused
from services.kit.idempotency import run_set
from services.kit.ids import new_id
from services.kit.rpc.stored import Pack
from services.kit.sets import Answer, Command, Failed

ENDPOINTS_MAX = 10
"""Endpoints of one merchant. More than a handful means that nobody deletes the old ones, and each is told."""
DESCRIPTION_LENGTH_MAX = 200
OVERLAP_SECONDS = 86_400
"""So long the secret before signs beside the new one, unless the merchant says otherwise."""
OVERLAP_SECONDS_MAX = 30 * 86_400
RESEND_MAX = 1_000
"""Deliveries that are sent again at once."""
KEEP_SECONDS = 2_592_000.0
"""Thirty days: so long what was told can be looked at and sent again. What is older when it is first heard of is told
no more: it might have been told before."""
BEFORE_MS = 60_000
"""An endpoint is told of what happens after it was made. The clocks that say so differ: a minute before counts, too."""
SECONDS_MAX = 5.0
"""A request that changes an endpoint."""

CALLER = "edge"
"""Who claims keys here."""

_PACK = Pack(StringValue)


class Told(NamedTuple):
    """Something that has happened, before anybody knows whether it is told to somebody."""

    merchant_id: str
    message_id: str
    """The same whenever it is heard of."""
    type: str
    occurred_at_ms: int
    write: Callable[[], bytes]
    """The message's body. Called only if an endpoint wants it: most merchants have none."""


class Made(NamedTuple):
    """An endpoint that was made, or whose secret was."""

    endpoint: Endpoint
    secret: str | None
    """None in a replay that comes after the secret has ended."""
    replayed: bool


@dataclass(frozen=True, slots=True)
class Webhooks:
    """See the module."""

    database: Database
    vault: Vault
    allowed: Sequence[Network]
    """Networks that webhooks may be sent to though they are not public."""
    retry_seconds: float = domain.RETRY_SECONDS

    async def create(
        self, merchant_id: str, key: str, url: str, events: Sequence[str] = (), description: str = ""
    ) -> Made:
        """A new endpoint. Raises Invalid, Refused, or what else a call with a key may fail with."""
        check_url(url, self.allowed)
        events = domain.check_events(events)
        if len(description) > DESCRIPTION_LENGTH_MAX or "\0" in description:
            raise Invalid.field("description", f"may have {DESCRIPTION_LENGTH_MAX} characters, and no NUL")
        endpoint_id, secret_id = new_id("whe"), new_id("whs")
        endpoint = Endpoint(
            merchant_id,
            endpoint_id,
            url,
            events,
            description,
            EndpointState.ENABLED,
            "",
            None,
            now_ms(),
            None,
        )

        async def work(tx: Transaction) -> str | PaymeshError:
            known = await store.lock_merchants_endpoints(tx, merchant_id)
            if len(known) >= ENDPOINTS_MAX:
                why = f"{merchant_id} has {len(known)} endpoints; delete one first"
                return Refused("TOO_MANY_WEBHOOK_ENDPOINTS", why)
            store.insert_endpoint(tx, endpoint)
            self._insert_secret(tx, merchant_id, endpoint_id, secret_id)
            return f"{endpoint_id}/{secret_id}"

        request = [url, *events, "", description]
        return await self._with_secret("CreateWebhookEndpoint", merchant_id, key, request, work)

    async def rotate(
        self, merchant_id: str, key: str, endpoint_id: str, overlap_seconds: int = OVERLAP_SECONDS
    ) -> Made:
        """A new secret; the one before signs beside it until the overlap is over. Raises NotFound, or what else a call
        with a key may fail with."""
        if not 0 <= overlap_seconds <= OVERLAP_SECONDS_MAX:
            raise Invalid.field("overlap_seconds", f"must be from 0 to {OVERLAP_SECONDS_MAX}")
        secret_id = new_id("whs")

        async def work(tx: Transaction) -> str | PaymeshError:
            if await _lock(tx, merchant_id, endpoint_id) is None:
                return no_endpoint(endpoint_id)
            kept = 0 if overlap_seconds == 0 else domain.SECRETS_MAX - 1
            store.end_secrets(tx, merchant_id, endpoint_id, kept, overlap_seconds)
            self._insert_secret(tx, merchant_id, endpoint_id, secret_id)
            return f"{endpoint_id}/{secret_id}"

        request = [endpoint_id, str(overlap_seconds)]
        return await self._with_secret("RotateWebhookSecret", merchant_id, key, request, work)

    async def enable(self, merchant_id: str, key: str, endpoint_id: str) -> tuple[Endpoint, bool]:
        """Tell an endpoint things again; what it has missed is sent by `resend`. Raises NotFound, or what else a call
        with a key may fail with. Returns also whether this was done before."""

        async def work(tx: Transaction) -> str | PaymeshError:
            if await _lock(tx, merchant_id, endpoint_id) is None:
                return no_endpoint(endpoint_id)
            store.save_endpoint_states(tx, {(merchant_id, endpoint_id): (EndpointState.ENABLED, "")})
            return endpoint_id

        _, replayed = await self._once("EnableWebhookEndpoint", merchant_id, key, [endpoint_id], work)
        return await self.find(merchant_id, endpoint_id), replayed

    async def delete(self, merchant_id: str, endpoint_id: str) -> None:
        """Tell an endpoint nothing any more. A second call changes nothing. Raises NotFound."""

        async def work(tx: Transaction) -> None:
            key = (merchant_id, endpoint_id)
            found = await store.lock_endpoints(tx, [key])
            if key not in found:
                raise no_endpoint(endpoint_id)
            store.save_endpoint_states(tx, {key: (EndpointState.DELETED, "")})
            await store.give_up(tx, [key], GivenUp.ENDPOINT_DELETED)
            store.end_secrets(tx, merchant_id, endpoint_id, 0, 0)

        await self.database.transact(work)

    async def find(self, merchant_id: str, endpoint_id: str) -> Endpoint:
        """An endpoint that is not deleted. Raises NotFound."""
        found = None
        if "\0" not in endpoint_id:
            found = await store.find_endpoint(self.database, merchant_id, endpoint_id)
        if found is None or found.state is EndpointState.DELETED:
            raise no_endpoint(endpoint_id)
        return found

    async def resend(self, merchant_id: str, key: str, delivery_id: str) -> tuple[store.Delivery, bool]:
        """Send one message to one endpoint again, delivered or not. Raises NotFound, Refused, or what else a call with
        a key may fail with. Returns also whether this was done before."""

        async def work(tx: Transaction) -> str | PaymeshError:
            endpoint_id = await store.find_endpoint_of(tx, merchant_id, delivery_id)
            if endpoint_id is None:
                return no_delivery(delivery_id)
            endpoint = await _lock(tx, merchant_id, endpoint_id)
            if endpoint is None or endpoint.state is not EndpointState.ENABLED:
                return not_enabled(endpoint_id)
            store.send_again(tx, merchant_id, [delivery_id], self.retry_seconds)
            return delivery_id

        _, replayed = await self._once("ResendWebhook", merchant_id, key, [delivery_id], work)
        found = await store.find_delivery(self.database, merchant_id, delivery_id)
        if found is None:
            raise no_delivery(delivery_id)
        return found, replayed

    async def resend_given_up(self, merchant_id: str, key: str, endpoint_id: str) -> tuple[int, bool]:
        """Send again what was given up of an endpoint, the oldest RESEND_MAX; returns how many, and whether this was
        done before. Raises NotFound, Refused, or what else a call with a key may fail with."""

        async def work(tx: Transaction) -> str | PaymeshError:
            endpoint = await _lock(tx, merchant_id, endpoint_id)
            if endpoint is None:
                return no_endpoint(endpoint_id)
            if endpoint.state is not EndpointState.ENABLED:
                return not_enabled(endpoint_id)
            ids = await store.list_given_up(tx, merchant_id, endpoint_id, RESEND_MAX)
            store.send_again(tx, merchant_id, ids, self.retry_seconds)
            return str(len(ids))

        count, replayed = await self._once("ResendGivenUpWebhooks", merchant_id, key, [endpoint_id], work)
        return int(count), replayed

    async def listening(self, tx: Transaction, merchant_ids: Collection[str]) -> set[str]:
        """Those of merchants that have endpoints."""
        found = await store.lock_endpoints_of(tx, sorted(merchant_ids))
        return {endpoint.merchant_id for endpoint in found}

    async def take(self, tx: Transaction, told: Sequence[Told]) -> int:
        """Take in what has happened, for every endpoint that wants it; returns how many deliveries are new. What was
        taken before changes nothing. What a disabled endpoint would be told is kept as given up, to be sent by
        `resend` when it is well again."""
        since_ms = now_ms() - round(KEEP_SECONDS * 1000)
        recent = {(one.merchant_id, one.message_id): one for one in told if one.occurred_at_ms > since_ms}
        if not recent:
            return 0
        endpoints: dict[str, list[Endpoint]] = {}
        for endpoint in await store.lock_endpoints_of(tx, [merchant_id for merchant_id, _ in recent]):
            endpoints.setdefault(endpoint.merchant_id, []).append(endpoint)
        new = [
            NewDelivery(
                one.merchant_id,
                new_id("whd"),
                endpoint.endpoint_id,
                one.message_id,
                None if endpoint.state is EndpointState.ENABLED else GivenUp.ENDPOINT_DISABLED,
            )
            for _, one in sorted(recent.items())
            for endpoint in endpoints.get(one.merchant_id, ())
            if domain.wants(endpoint.events, one.type)
            and one.occurred_at_ms >= endpoint.created_at_ms - BEFORE_MS
        ]
        if not new:
            return 0
        wanted = sorted({(one.merchant_id, one.message_id) for one in new})
        store.insert_messages(tx, [_message(recent[key]) for key in wanted])
        return await store.insert_deliveries(tx, new, self.retry_seconds)

    def open(self, secret: KeptSecret) -> str:
        """A secret. Raises Bug when it does not open."""
        return self.vault.open(secret.sealed, secret.merchant_id, secret.secret_id)

    def _insert_secret(self, tx: Transaction, merchant_id: str, endpoint_id: str, secret_id: str) -> None:
        sealed = self.vault.seal(domain.new_secret(), merchant_id, secret_id)
        store.insert_secret(tx, KeptSecret(merchant_id, endpoint_id, secret_id, sealed))

    async def _with_secret(
        self, method: str, merchant_id: str, key: str, request: Sequence[str], work: _Work
    ) -> Made:
        answer, replayed = await self._once(method, merchant_id, key, request, work)
        endpoint_id, _, secret_id = answer.partition("/")
        secret = await store.find_secret(self.database, merchant_id, endpoint_id, secret_id)
        # In a replay it may be deleted by now: that is told, for it was made all the same.
        endpoint = await store.find_endpoint(self.database, merchant_id, endpoint_id)
        if endpoint is None:
            raise no_endpoint(endpoint_id)
        return Made(endpoint, self.open(secret) if secret else None, replayed)

    async def _once(
        self, method: str, merchant_id: str, key: str, request: Sequence[str], work: _Work
    ) -> tuple[str, bool]:
        """Do something once for a key: what it has come to, and whether it was done before. Raises what it failed
        with."""

        async def worked(tx: Transaction, _: list[Command[None]]) -> list[Answer[StringValue] | Failed]:
            outcome = await work(tx)
            return [
                Failed(outcome) if isinstance(outcome, PaymeshError) else Answer(StringValue(value=outcome))
            ]

        digest = hashlib.blake2b(orjson.dumps(list(request)), digest_size=16).digest()
        command: Command[None] = Command(merchant_id, CALLER, key, digest, new_id("cmd"), None, None)
        (outcome,) = await run_set(
            self.database, method, [command], worked, _PACK, Deadline.after(SECONDS_MAX)
        )
        if isinstance(outcome, Failed):
            if outcome.replayed:
                raise Replayed(outcome.error)
            raise outcome.error
        return outcome.message.value, outcome.replayed


_Work = Callable[[Transaction], Awaitable[str | PaymeshError]]
"""What is done for a key: what it has come to, or why it was not done."""


async def _lock(tx: Transaction, merchant_id: str, endpoint_id: str) -> Endpoint | None:
    """An endpoint that is not deleted, locked."""
    key: EndpointKey = (merchant_id, endpoint_id)
    found = (await store.lock_endpoints(tx, [key])).get(key)
    return None if found is None or found.state is EndpointState.DELETED else found


def _message(told: Told) -> Message:
    return Message(told.merchant_id, told.message_id, told.type, told.write(), told.occurred_at_ms)


def no_endpoint(endpoint_id: str) -> NotFound:
    """An endpoint was named that does not exist."""
    return NotFound("UNKNOWN_WEBHOOK_ENDPOINT", f"there is no webhook endpoint {endpoint_id!r}")


def no_delivery(delivery_id: str) -> NotFound:
    """A delivery was named that does not exist."""
    return NotFound("UNKNOWN_WEBHOOK_DELIVERY", f"there is no webhook delivery {delivery_id!r}")


def not_enabled(endpoint_id: str) -> Refused:
    """Nothing is sent to a disabled or deleted endpoint."""
    return Refused("WEBHOOK_ENDPOINT_NOT_ENABLED", f"the endpoint {endpoint_id} is not enabled")
