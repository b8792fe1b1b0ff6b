"""Brings messages to endpoints, beside the requests that this process answers.

One loop takes leases on due deliveries, lets each be attempted in a task of its own, and writes down together what has
ended meanwhile. Every worker of every edge does the same; the leases keep them apart. Whoever dies leaves leases that
run out, and deliveries that are attempted again: at least once, as a receiver has to expect anyway.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import defaultdict
from collections.abc import Sequence

from prometheus_client import Counter, Gauge, Histogram

from services.edge import store
from services.edge.domain.webhooks import (
    DeliveryState,
    Endpoint,
    EndpointState,
    Failure,
    GivenUp,
    Next,
    Outcome,
    Policy,
    signatures,
)
from services.edge.sender import Sender
from services.edge.store import Claimed, Ended, EndpointKey
from services.edge.webhooks import KEEP_SECONDS, Webhooks
from services.kit.clock import now_ms
from services.kit.db import Transaction
from services.kit.errors import Bug

log = logging.getLogger(__name__)

ATTEMPTS_AT_ONCE_MAX = 128
"""Requests under way in one process."""
LEASE_MARGIN_SECONDS = 5.0
"""A lease is so much longer than an attempt may take: for writing down how it has ended."""
END_SECONDS = 2.0
"""What attempts under way get when the process is asked to stop; the others are made again elsewhere."""
OVERDUE_SECONDS = 300.0
"""What has been due for so long waits for us, and not for its receiver."""
OVERDUE_COUNTED_MAX = 10_000
LOOK_SECONDS = 60.0
"""How often overdue deliveries are counted and old ones forgotten."""
DELETED_MAX = 1_000
"""Old deliveries that are forgotten at a time."""

ATTEMPTS = Counter("paymesh_edge_webhook_attempts_total", "Requests to merchants' endpoints.", ("outcome",))
GIVEN_UP = Counter("paymesh_edge_webhooks_given_up_total", "Deliveries that were given up.", ("reason",))
DISABLED = Counter("paymesh_edge_webhook_endpoints_disabled_total", "Endpoints that were disabled.")
DELAY = Histogram(
    "paymesh_edge_webhook_delay_seconds",
    "Time from an event to the end of the attempt that delivered it.",
    buckets=(0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 3_600.0, 21_600.0, 86_400.0, 259_200.0),
)
OVERDUE = Gauge(
    "paymesh_edge_webhooks_waiting",
    "Deliveries that have been due for five minutes and were not attempted.",
    multiprocess_mode="mostrecent",
)


class Deliveries:
    """The loop."""

    def __init__(
        self, webhooks: Webhooks, sender: Sender, policy: Policy, *, poll_ms: int, each_at_once: int
    ) -> None:
        self._webhooks = webhooks
        self._database = webhooks.database
        self._sender = sender
        self._policy = policy
        self._poll_seconds = poll_ms / 1000
        self._each_at_once = each_at_once
        self._under_way: set[asyncio.Task[Ended]] = set()

    async def run(self) -> None:
        """Deliver until cancelled."""
        looked_at = 0.0
        try:
            while True:
                started = time.monotonic()
                claimed = await self._claim()
                if started - looked_at > LOOK_SECONDS:
                    looked_at = started
                    await self._look()
                await self._ended(0.0 if claimed else self._poll_seconds)
        except asyncio.CancelledError:
            await self._end()
            raise

    async def _claim(self) -> bool:
        """Begin what is due, as far as there is room; whether there was anything."""
        room = ATTEMPTS_AT_ONCE_MAX - len(self._under_way)
        if room <= 0:
            return False

        async def work(tx: Transaction) -> list[Claimed]:
            ready = await store.lock_ready(tx, room)
            if not ready:
                return []
            return await store.claim_deliveries(
                tx,
                ready,
                each=self._each_at_once,
                limit=room,
                lease_seconds=self._sender.seconds + LEASE_MARGIN_SECONDS,
            )

        claimed = await self._database.transact(work)
        if not claimed:
            return False
        secrets = await self._secrets({(c.merchant_id, c.endpoint_id) for c in claimed})
        for one in claimed:
            keys = secrets.get((one.merchant_id, one.endpoint_id), [])
            self._under_way.add(asyncio.create_task(self._attempt(one, keys), name=one.delivery_id))
        return True

    async def _secrets(self, endpoints: set[EndpointKey]) -> dict[EndpointKey, list[str]]:
        found: dict[EndpointKey, list[str]] = defaultdict(list)
        for kept in await store.list_secrets(self._database, sorted(endpoints)):
            # One that does not open any more must not stop the others; its receiver will refuse what it does not sign.
            with contextlib.suppress(Bug):
                found[kept.merchant_id, kept.endpoint_id].append(self._webhooks.open(kept))
        return found

    async def _attempt(self, one: Claimed, secrets: Sequence[str]) -> Ended:
        timestamp = now_ms() // 1000
        headers = {
            "webhook-id": one.message_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": signatures(one.message_id, timestamp, one.body, secrets),
        }
        try:
            outcome = await self._sender.send(one.url, one.body, headers)
        except Exception:
            # A defect. It must not stop the others, and is tried again like everything.
            log.exception("an attempt at the webhook %s broke", one.delivery_id)
            outcome = Outcome(Failure.CONNECTION, None, "an internal error", 0)
        ATTEMPTS.labels("delivered" if outcome.failure is None else str(outcome.failure).lower()).inc()
        at_ms = now_ms()
        if outcome.delivered:
            DELAY.observe(max(0, at_ms - one.occurred_at_ms) / 1000)
        return Ended(one, outcome, self._policy.after(outcome, one.failures + 1, at_ms, one.retry_until_ms))

    async def _ended(self, seconds: float) -> None:
        """Wait so long, or until an attempt has ended, and write down all that have."""
        if not self._under_way:
            await asyncio.sleep(seconds)
            return
        await asyncio.wait(self._under_way, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        done = [task for task in self._under_way if task.done()]
        if done:
            # Should this fail, they stay, and are written down by the next round.
            await self._save([task.result() for task in done])
            self._under_way.difference_update(done)

    async def _save(self, ended: Sequence[Ended]) -> None:
        async def work(tx: Transaction) -> tuple[list[Ended], list[Endpoint], int]:
            failed = [one for one in ended if not one.outcome.delivered]
            well = sorted({_endpoint_of(one) for one in ended} - {_endpoint_of(one) for one in failed})
            endpoints = (
                await store.lock_endpoints(tx, [_endpoint_of(one) for one in failed]) if failed else {}
            )
            decided, disabled = self._decide(ended, endpoints)
            still = [key for key, endpoint in endpoints.items() if key not in disabled]
            store.save_failing(tx, sorted(still), well)
            store.save_attempts(tx, decided)
            count = 0
            if disabled:
                states = {key: (EndpointState.DISABLED, why) for key, why in disabled.items()}
                store.save_endpoint_states(tx, states)
                count = await store.give_up(tx, sorted(disabled), GivenUp.ENDPOINT_DISABLED)
            return decided, [endpoints[key] for key in disabled], count

        decided, disabled, count = await self._database.transact(work)
        GIVEN_UP.labels(GivenUp.ENDPOINT_DISABLED.lower()).inc(count)
        for one in decided:
            if one.then.reason is not None:
                GIVEN_UP.labels(str(one.then.reason).lower()).inc()
        for endpoint in disabled:
            DISABLED.inc()
            log.warning("webhook endpoint %s of %s is disabled", endpoint.endpoint_id, endpoint.merchant_id)

    def _decide(
        self, ended: Sequence[Ended], endpoints: dict[EndpointKey, Endpoint]
    ) -> tuple[list[Ended], dict[EndpointKey, str]]:
        """What becomes of deliveries now that their endpoints are known, and why which endpoints are disabled."""
        at_ms = now_ms()
        decided: list[Ended] = []
        disabled: dict[EndpointKey, str] = {}
        for one in ended:
            key = _endpoint_of(one)
            endpoint = endpoints.get(key)
            if endpoint is None or one.outcome.delivered:
                decided.append(one)
            elif endpoint.state is EndpointState.ENABLED:
                decided.append(one)
                why = self._policy.why_disabled(one.outcome, one.then, endpoint.failing_since_ms, at_ms)
                if why is not None:
                    disabled[key] = why
            else:
                gone = endpoint.state is EndpointState.DELETED
                reason = GivenUp.ENDPOINT_DELETED if gone else GivenUp.ENDPOINT_DISABLED
                decided.append(one._replace(then=Next(DeliveryState.GIVEN_UP, reason=reason)))
        return decided, disabled

    async def _look(self) -> None:
        OVERDUE.set(await store.count_overdue(self._database, OVERDUE_SECONDS, OVERDUE_COUNTED_MAX))

        async def work(tx: Transaction) -> int:
            return await store.delete_old(tx, KEEP_SECONDS, DELETED_MAX)

        while await self._database.transact(work) == DELETED_MAX:
            pass

    async def _end(self) -> None:
        """Let what is under way end, a moment long, and write that down. The rest is as if we had died."""
        if not self._under_way:
            return
        await asyncio.wait(self._under_way, timeout=END_SECONDS)
        done = [task for task in self._under_way if task.done()]
        for task in self._under_way:
            task.cancel()
        if done:
            await self._save([task.result() for task in done])


def _endpoint_of(one: Ended) -> EndpointKey:
    return one.claimed.merchant_id, one.claimed.endpoint_id
