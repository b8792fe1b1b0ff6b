"""The whole mesh with Stripe as its processor, as `PAYMESH_PROCESSOR=stripe paymesh up` starts it: what becomes of
orders is what localstripe has."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from audit.run import run_audit
from paymesh.orchestrator.v1 import orchestrator_pb2 as pb
from tests.orders import AUDITED, PRICE_MINOR, Shop, order, running_shop
from tests.stripe_mesh import KEY, StripeSandbox

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.fixture(scope="module")
def stripe(tmp_path_factory: pytest.TempPathFactory) -> StripeSandbox:
    return StripeSandbox(tmp_path_factory.mktemp("stripe"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shop(stripe: StripeSandbox) -> AsyncIterator[Shop]:
    chosen = {
        "PAYMESH_PROCESSOR": "stripe",
        "PAYMESH_STRIPE_KEY": KEY,
        "PAYMESH_STRIPE_URL": stripe.url,
    }
    try:
        async with running_shop(environment=chosen) as shop:
            yield shop
    finally:
        stripe.stop()


async def _place(shop: Shop, merchant: str, card: str = "pm_card_visa", country: str = "GB") -> pb.Order:
    request = order(merchant, country=country)
    request.card.token = card
    return await shop.place(request)


async def test_orders_are_held_taken_and_given_back_at_stripe(shop: Shop, stripe: StripeSandbox) -> None:
    merchant = await shop.merchant()
    placed = await _place(shop, merchant)
    assert placed.state == pb.SAGA_STATE_COMPLETED, placed
    (held,) = stripe.intents(merchant)
    assert (held["status"], held["amount"], held["currency"]) == ("requires_capture", PRICE_MINOR, "usd")
    assert held["metadata"]["paymesh_key"] == f"{placed.payment_id}/authorize"

    refused = await _place(shop, merchant, card="pm_card_visa_chargeDeclined")
    assert (refused.state, refused.reason.step) == (pb.SAGA_STATE_COMPENSATED, "authorize")
    undone = await _place(shop, merchant, country="AQ")
    assert (undone.state, undone.reason.step) == (pb.SAGA_STATE_COMPENSATED, "ship")
    states = {
        one["metadata"]["paymesh_key"].partition("/")[0]: one["status"] for one in stripe.intents(merchant)
    }
    assert (states[placed.payment_id], states[undone.payment_id]) == ("requires_capture", "canceled")
    assert states.get(refused.payment_id, "requires_payment_method") == "requires_payment_method"

    await shop.dispatch(placed)
    (taken,) = [one for one in stripe.intents(merchant) if one["status"] == "succeeded"]
    assert (taken["id"], stripe.captured(taken)) == (held["id"], PRICE_MINOR)
    await shop.take_back(placed, 1, 500)
    assert [(one["payment_intent"], one["amount"]) for one in stripe.refunds()] == [(held["id"], 500)]

    assert await shop.rows("bank", "SELECT count(*) FROM operations") == [(0,)]
    report = await run_audit({name: shop.mesh.dsn(name) for name in AUDITED}, wait_seconds=20)
    assert report.ok, [f"{offence}" for line in report.lines for offence in line.first]
