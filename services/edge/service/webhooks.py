"""Webhooks over HTTP: endpoints, and what became of what they were told."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Path, Query, Request, Response

from services.edge import store
from services.edge.clients import Answered
from services.edge.domain.webhooks import DeliveryState, Endpoint
from services.edge.service import documented
from services.edge.service import webhook_bodies as bodies
from services.edge.service.documented import CHANGES, NOT_FOUND, READS, REMOVES, replay_header, responses
from services.edge.service.door import PAGE_LIMIT_DEFAULT, Key, Limit, key_of, mark, merchant_of, page_of
from services.edge.store import Attempt, Delivery
from services.edge.webhooks import Made, Webhooks, no_delivery

_ENDPOINT, _DELIVERY = "^whe_[0-9a-f]{32}$", "^whd_[0-9a-f]{32}$"
EndpointId = Annotated[str, Path(pattern=_ENDPOINT, examples=["whe_019ab2c4f3d07c61b6a3f2f1d9a4e5b7"])]
DeliveryId = Annotated[str, Path(pattern=_DELIVERY, examples=["whd_019ab2c4f3d07c61b6a3f2f1d9a4e5b7"])]
EndpointPage = Annotated[
    str, Query(pattern="^(whe_[0-9a-f]{32})?$", description="`next_page` of the page before.")
]
DeliveryPage = Annotated[
    str, Query(pattern="^(whd_[0-9a-f]{32})?$", description="`next_page` of the page before.")
]
_USUAL_OVERLAP = bodies.RotateSecretRequest()
_NOTHING_TO_SAY = bodies.NothingToSay()


class WebhookEndpoints:
    """See the OpenAPI document."""

    def __init__(self, webhooks: Webhooks) -> None:
        self._webhooks = webhooks
        self.router = router = APIRouter(prefix="/api/v1/webhook-endpoints", tags=["webhooks"])
        ok = {"headers": replay_header()}
        router.post(
            "",
            status_code=201,
            response_model=bodies.NewWebhookEndpoint,
            responses={201: ok, **responses(*CHANGES, *documented.CREATE_ENDPOINT)},
            summary="Be told of what happens",
        )(self.create)
        router.get(
            "",
            response_model=bodies.WebhookEndpointPage,
            responses=responses(*READS),
            summary="Webhook endpoints, oldest first",
        )(self.list)
        router.get(
            "/{endpoint_id}",
            response_model=bodies.WebhookEndpoint,
            responses=responses(*READS, NOT_FOUND),
            summary="A webhook endpoint",
        )(self.show)
        router.delete(
            "/{endpoint_id}",
            status_code=204,
            response_class=Response,
            responses=responses(*REMOVES, NOT_FOUND),
            summary="Be told no more",
        )(self.delete)
        for name, method, model, summary, errors in (
            ("rotate-secret", self.rotate, bodies.NewWebhookEndpoint, "Sign with a new secret", ()),
            ("enable", self.enable, bodies.WebhookEndpoint, "Be told again", ()),
            ("resend", self.resend, bodies.Resent, "Be told what was given up", documented.RESEND),
        ):
            router.post(
                f"/{{endpoint_id}}/{name}",
                response_model=model,
                responses={200: ok, **responses(*CHANGES, NOT_FOUND, *errors)},
                summary=summary,
            )(method)

    async def create(
        self, body: bodies.WebhookEndpointRequest, request: Request, response: Response, idempotency_key: Key
    ) -> dict[str, Any]:
        """From now on. Every message is signed as [Standard Webhooks](https://www.standardwebhooks.com) has it, with
        the `secret` of this answer, which is shown this once. Messages may come more than once and in any order: know
        them by their `id`. What is not answered with 2xx within seconds is sent again for three days."""
        made = await self._webhooks.create(
            merchant_of(request), key_of(request), body.url, body.events, body.description
        )
        response.headers["Location"] = f"{self.router.prefix}/{made.endpoint.endpoint_id}"
        return _made(made, response)

    async def list(
        self, request: Request, limit: Limit = PAGE_LIMIT_DEFAULT, page: EndpointPage = ""
    ) -> dict[str, Any]:
        """The endpoints of the merchant, page by page."""
        database = self._webhooks.database
        found = await store.list_endpoints(database, merchant_of(request), page, limit + 1)
        more = found[limit - 1].endpoint_id if len(found) > limit else ""
        return page_of([endpoint_json(one) for one in found[:limit]], more)

    async def show(self, endpoint_id: EndpointId, request: Request) -> dict[str, Any]:
        """Where it leads, what it is told, and whether it is well."""
        return endpoint_json(await self._webhooks.find(merchant_of(request), endpoint_id))

    async def delete(self, endpoint_id: EndpointId, request: Request) -> Response:
        """What waits for it is given up. A second call changes nothing."""
        await self._webhooks.delete(merchant_of(request), endpoint_id)
        return Response(status_code=204)

    async def rotate(
        self,
        endpoint_id: EndpointId,
        request: Request,
        response: Response,
        idempotency_key: Key,
        body: bodies.RotateSecretRequest = _USUAL_OVERLAP,
    ) -> dict[str, Any]:
        """The new secret is in the answer, this once. Until the overlap is over messages bear two signatures, one with
        the secret before, so that a receiver may change over when it likes."""
        made = await self._webhooks.rotate(
            merchant_of(request), key_of(request), endpoint_id, body.overlap_seconds
        )
        return _made(made, response)

    async def enable(
        self,
        endpoint_id: EndpointId,
        request: Request,
        response: Response,
        idempotency_key: Key,
        body: bodies.NothingToSay = _NOTHING_TO_SAY,
    ) -> dict[str, Any]:
        """An endpoint that has accepted nothing for days, or has answered 410, is disabled. What it has missed is sent
        by `resend`."""
        endpoint, replayed = await self._webhooks.enable(merchant_of(request), key_of(request), endpoint_id)
        mark(response, Answered(None, replayed))
        return endpoint_json(endpoint)

    async def resend(
        self,
        endpoint_id: EndpointId,
        request: Request,
        response: Response,
        idempotency_key: Key,
        body: bodies.NothingToSay = _NOTHING_TO_SAY,
    ) -> dict[str, Any]:
        """Sends again what was given up of this endpoint, the oldest thousand: call it until `count` is 0."""
        count, replayed = await self._webhooks.resend_given_up(
            merchant_of(request), key_of(request), endpoint_id
        )
        mark(response, Answered(None, replayed))
        return {"count": count}


class WebhookDeliveries:
    """See the OpenAPI document."""

    def __init__(self, webhooks: Webhooks) -> None:
        self._webhooks = webhooks
        self.router = router = APIRouter(prefix="/api/v1/webhook-deliveries", tags=["webhooks"])
        router.get(
            "",
            response_model=bodies.WebhookDeliveryPage,
            responses=responses(*READS),
            summary="Webhook deliveries, newest first",
        )(self.list)
        router.get(
            "/{delivery_id}",
            response_model=bodies.WebhookDeliveryStory,
            responses=responses(*READS, NOT_FOUND),
            summary="A webhook delivery with its attempts",
        )(self.show)
        router.post(
            "/{delivery_id}/resend",
            response_model=bodies.WebhookDelivery,
            responses={
                200: {"headers": replay_header()},
                **responses(*CHANGES, NOT_FOUND, *documented.RESEND),
            },
            summary="Be told once more",
        )(self.resend)

    async def list(
        self,
        request: Request,
        endpoint_id: Annotated[
            str, Query(pattern="^(whe_[0-9a-f]{32})?$", description="Only those of this endpoint.")
        ] = "",
        status: Annotated[bodies.DeliveryStatus | None, Query(description="Only those.")] = None,
        limit: Limit = PAGE_LIMIT_DEFAULT,
        page: DeliveryPage = "",
    ) -> dict[str, Any]:
        """What the merchant was told in the last thirty days, page by page."""
        found = await store.list_deliveries(
            self._webhooks.database,
            merchant_of(request),
            endpoint_id=endpoint_id,
            state=DeliveryState(status.upper()) if status else None,
            before_id=page,
            limit=limit + 1,
        )
        more = found[limit - 1].delivery_id if len(found) > limit else ""
        return page_of([delivery_json(one) for one in found[:limit]], more)

    async def show(self, delivery_id: DeliveryId, request: Request) -> dict[str, Any]:
        """The message as it is sent, and what every attempt came to."""
        merchant_id, database = merchant_of(request), self._webhooks.database
        found = await store.find_delivery(database, merchant_id, delivery_id)
        if found is None:
            raise no_delivery(delivery_id)
        attempts = await store.list_attempts(database, merchant_id, delivery_id)
        return {
            **delivery_json(found),
            "message": orjson.loads(found.body),
            "attempt_history": [attempt_json(one) for one in attempts],
        }

    async def resend(
        self,
        delivery_id: DeliveryId,
        request: Request,
        response: Response,
        idempotency_key: Key,
        body: bodies.NothingToSay = _NOTHING_TO_SAY,
    ) -> dict[str, Any]:
        """The same message with the same `id`, whether it was delivered or not, with all its time before it."""
        found, replayed = await self._webhooks.resend(merchant_of(request), key_of(request), delivery_id)
        mark(response, Answered(None, replayed))
        return delivery_json(found)


def endpoint_json(endpoint: Endpoint) -> dict[str, Any]:
    """An endpoint as JSON has it."""
    return {
        "id": endpoint.endpoint_id,
        "url": endpoint.url,
        "events": list(endpoint.events),
        "description": endpoint.description,
        "status": endpoint.state.lower(),
        "reason": endpoint.reason or None,
        "failing_since": _instant(endpoint.failing_since_ms),
        "disabled_at": _instant(endpoint.disabled_at_ms),
        "created_at": _instant(endpoint.created_at_ms),
    }


def delivery_json(delivery: Delivery) -> dict[str, Any]:
    """A delivery as JSON has it."""
    pending = delivery.state is DeliveryState.PENDING
    return {
        "id": delivery.delivery_id,
        "endpoint_id": delivery.endpoint_id,
        "message_id": delivery.message_id,
        "type": delivery.type,
        "status": delivery.state.lower(),
        "reason": delivery.reason.lower() or None,
        "attempts": delivery.attempts,
        "next_attempt_at": _instant(delivery.due_at_ms) if pending else None,
        "created_at": _instant(delivery.created_at_ms),
        "ended_at": _instant(delivery.ended_at_ms),
    }


def attempt_json(attempt: Attempt) -> dict[str, Any]:
    """An attempt as JSON has it."""
    outcome = None
    if attempt.ended_at_ms is not None:
        outcome = attempt.failure.lower() if attempt.failure else "delivered"
    return {
        "number": attempt.number,
        "outcome": outcome,
        "http_status": attempt.status,
        "detail": attempt.detail or None,
        "started_at": _instant(attempt.started_at_ms),
        "duration_ms": attempt.duration_ms,
    }


def _made(made: Made, response: Response) -> dict[str, Any]:
    mark(response, Answered(None, made.replayed))
    return {**endpoint_json(made.endpoint), "secret": made.secret}


def _instant(at_ms: int | None) -> datetime | None:
    return None if at_ms is None else datetime.fromtimestamp(at_ms / 1000, UTC)
