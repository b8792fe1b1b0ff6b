"""The application: operations, the document that describes them, and the problems that everything else becomes."""

from __future__ import annotations

import functools
from typing import Annotated, Any

import orjson
from fastapi import Depends, FastAPI, Header, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse, JSONResponse, Response
from fastapi.security import HTTPBearer
from fastapi.telemetry import TelemetryConfig
from markupsafe import escape
from starlette.exceptions import HTTPException

from services.edge.clients import Clients, Replayed
from services.edge.config import EdgeConfig
from services.edge.domain import problems
from services.edge.domain.problems import Declined, Problem, problem_of
from services.edge.limiter import Limiter
from services.edge.service.bodies import BY_NUMBER, BY_TOKEN, ProblemBody
from services.edge.service.door import REPLAYED_HEADER, Cards
from services.edge.service.gate import PROBLEM_TYPE, Application, Gate, Grants
from services.edge.service.orders import Orders
from services.edge.service.page import HERE, POLICY, page_of
from services.edge.service.payments import Payments
from services.edge.service.webhook_bodies import WebhookMessage
from services.edge.service.webhooks import WebhookDeliveries, WebhookEndpoints
from services.edge.vault import Vault
from services.edge.webhooks import Webhooks
from services.kit.checks import VIOLATIONS_MAX
from services.kit.db import Database
from services.kit.errors import PaymeshError

DESCRIPTION = """
Takes an order's money safely. Amounts are whole numbers of minor units (10000 USD is $100.00).

Every request that changes something carries an `Idempotency-Key` of your choice. Send it again, with the same key,
as often as you like: nothing happens twice, and you get the first answer, marked `Idempotent-Replayed: true`.

Errors are `application/problem+json` (RFC 9457) with a stable `code`. Of all that happens your own server can be told:
see *webhooks*.
"""
# FastAPI's own spans carry the path as it was sent, and its log records what was wrong with a body, body included:
# either may hold a card number. The gate's span says what is needed.
_SILENT = TelemetryConfig(
    tracing=False, metrics=False, logs=False, operation_spans=False, auto_configure=False
)
_bearer = HTTPBearer(auto_error=False, description="The API key that `paymesh merchant create` has shown.")


def build_app(
    database: Database,
    clients: Clients,
    limiter: Limiter,
    vault: Vault,
    webhooks: Webhooks,
    config: EdgeConfig,
) -> Application:
    """The edge as an ASGI application."""
    secret = config.key_secret.get_secret_value()
    cards = Cards(database, clients, vault, secret)
    app = FastAPI(
        title="paymesh",
        version="1",
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        default_response_class=JSONResponse,
        redirect_slashes=False,
        telemetry=_SILENT,
    )
    app.state.routes = []
    parts = (
        Payments(clients, cards),
        Orders(clients, cards),
        WebhookEndpoints(webhooks),
        WebhookDeliveries(webhooks),
    )
    for part in parts:
        app.include_router(part.router, dependencies=[Depends(_bearer)])
        app.state.routes += part.router.routes
    app.webhooks.add_api_route(
        "event",
        _told,
        methods=["POST"],
        status_code=204,
        tags=["webhooks"],
        summary="What your server is sent",
    )
    app.add_api_route("/healthz", _healthy, include_in_schema=False)
    app.add_api_route("/docs", _page(app), include_in_schema=False)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_exception_handler(HTTPException, _not_served)
    app.add_exception_handler(PaymeshError, _failed)
    app.add_exception_handler(Replayed, _replayed)
    app.add_exception_handler(Declined, _declined)
    app.add_exception_handler(Exception, _broken)
    app.openapi = _document(app)  # type: ignore[method-assign]
    return Gate(app, Grants(database, secret, config.grant_seconds), limiter, config)


async def _told(
    body: WebhookMessage,
    webhook_id: Annotated[str, Header(description="The `id` of the message, the same at every attempt.")],
    webhook_timestamp: Annotated[
        int, Header(description="When this attempt was made, in seconds since 1970.")
    ],
    webhook_signature: Annotated[
        str,
        Header(
            description="`v1,` and the HMAC-SHA256 of `{id}.{timestamp}.{body}` in base64, with the secret after "
            "`whsec_`; several with a blank between them while a secret is replaced. Any library of [Standard "
            "Webhooks](https://www.standardwebhooks.com) checks it."
        ),
    ],
) -> None:
    """Answer with 2xx within seconds, and work afterwards. Whatever else you answer, it is sent again: after seconds at
    first, later after hours, for three days. An endpoint that accepts nothing for so long is disabled, and one that
    answers 410 at once. It may come more than once and in any order: know it by `id`, and read the thing itself by GET
    where the order matters. Redirects are not followed."""


async def _healthy() -> dict[str, str]:
    return {"status": "serving"}


def _page(app: FastAPI) -> Any:
    """The document for people, made at the first request."""

    @functools.cache
    def made() -> str:
        return page_of(app.openapi())

    async def page(request: Request) -> Response:
        here = str(request.base_url).rstrip("/")
        return HTMLResponse(
            made().replace(HERE, str(escape(here))), headers={"Content-Security-Policy": POLICY}
        )

    return page


def _document(app: FastAPI) -> Any:
    """FastAPI's document, without the answers to wrong input that it adds itself: ours are problems with 400."""

    def document() -> dict[str, Any]:
        if app.openapi_schema is None:
            made = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=app.routes,
                webhooks=app.webhooks.routes,
            )
            schemas = made["components"]["schemas"]
            for name in ("HTTPValidationError", "ValidationError"):
                schemas.pop(name, None)
            problem = ProblemBody.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas |= problem.pop("$defs")
            schemas[ProblemBody.__name__] = problem
            for path in (*made["paths"].values(), *made["webhooks"].values()):
                for operation in path.values():
                    _keep_problems(operation["responses"])
            app.openapi_schema = made
        return app.openapi_schema

    return document


def _keep_problems(answers: dict[str, Any]) -> None:
    for status in [status for status in answers if int(status) >= 400]:
        if PROBLEM_TYPE in answers[status].get("content", {}):
            answers[status]["content"] = {PROBLEM_TYPE: answers[status]["content"][PROBLEM_TYPE]}
        else:
            del answers[status]


def _answer(problem: Problem, headers: dict[str, str] | None = None) -> Response:
    return Response(
        orjson.dumps(problem.body),
        problem.status,
        {**problem.all_headers, **(headers or {})},
        media_type=PROBLEM_TYPE,
    )


async def _malformed(_: Request, error: Exception) -> Response:
    """What FastAPI has found wrong. Never what was sent: it may be a card number."""
    assert isinstance(error, RequestValidationError)
    if any(mistake["type"] == "json_invalid" for mistake in error.errors()):
        return _answer(problems.malformed("(body)", "is not JSON"))
    found = [(_field(mistake["loc"]), str(mistake["msg"])) for mistake in error.errors()]
    if any(field == "Idempotency-Key" for field, _ in found):
        missing = any(m["type"] == "missing" and m["loc"][0] == "header" for m in error.errors())
        return _answer(problems.key_missing() if missing else problems.key_malformed())
    detail = "; ".join(f"{field}: {text}" for field, text in found[:VIOLATIONS_MAX])
    return _answer(Problem(400, "invalid_request", detail, tuple(found[:VIOLATIONS_MAX])))


def _field(place: tuple[int | str, ...]) -> str:
    """Where a mistake is, as a client writes it: `card.number`, `lines[2].sku`."""
    text = ""
    for part in place[1:]:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part not in {BY_TOKEN, BY_NUMBER}:
            text += f".{part}" if text else str(part)
    return text or "(body)"


async def _not_served(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        # The router has looked no further than the first operation at this path.
        path = request.scope["path"]
        routes: list[Any] = request.app.state.routes
        allowed = {method for route in routes if route.path_regex.match(path) for method in route.methods}
        return _answer(problems.no_such_method(", ".join(sorted(allowed))))
    if error.status_code == 404:
        return _answer(problems.no_such_path())
    return _answer(problems.malformed("(body)", "is not JSON"))


async def _failed(_: Request, error: Exception) -> Response:
    assert isinstance(error, PaymeshError)
    return _answer(problem_of(error))


async def _replayed(_: Request, error: Exception) -> Response:
    assert isinstance(error, Replayed)
    return _answer(problem_of(error.error), {REPLAYED_HEADER: "true"})


async def _declined(_: Request, error: Exception) -> Response:
    assert isinstance(error, Declined)
    return _answer(error.problem)


async def _broken(_: Request, error: Exception) -> Response:
    """A defect. It is raised again after this, and the gate writes it down."""
    return _answer(problems.internal())
