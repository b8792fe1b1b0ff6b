"""The choice of a processor: a third one is a file and a line (tests/paper.py), a payment stays where it was begun, and
settings that cannot be right end the process with what to do.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from deploy.local.stores import EmbeddedPostgres, EmbeddedValkey
from paymesh.errors import Kind
from tests.conftest import Services
from tests.payment_mesh import (
    AUTHORIZED,
    CAPTURED,
    PARTIALLY_REFUNDED,
    REFUNDED,
    VOIDED,
    PaymentMesh,
    Shop,
    failure_of,
)
from tests.processes import ROOT

STEADY = {"resolve_first_ms": "20", "resolve_max_ms": "100", "resolve_poll_ms": "20"}


@pytest.fixture(scope="module")
def neighbours(
    postgres: EmbeddedPostgres, valkey: EmbeddedValkey, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PaymentMesh]:
    services = Services(postgres, tmp_path_factory.mktemp("processors"))
    mesh = PaymentMesh.start(services, valkey.url, {}, **STEADY)
    yield mesh
    mesh.close()
    services.stop()


def _payment(mesh: PaymentMesh, processor: str, *, bank: bool = True) -> str:
    """One more payment process, which knows the third processor; its target."""
    settings = {"fraud_target": mesh.fraud.target, "bank_target": mesh.bank.target if bank else "", **STEADY}
    mesh.payment.kill()  # two with different settings would take each other's work
    mesh.services.last.kill()
    return mesh.services.start("payment", "tests.paper", processor=processor, **settings).target


def _at(mesh: PaymentMesh, payment_id: str) -> str:
    ((processor,),) = mesh.on_payment("SELECT processor FROM payments WHERE payment_id = %s", payment_id)
    return str(processor)


async def test_a_life_at_a_third_processor(neighbours: PaymentMesh) -> None:
    async with Shop(neighbours, "third", _payment(neighbours, "paper")) as shop:
        held = await shop.authorize("k1")
        assert (held.state, held.auth_code, held.processor_reference) == (AUTHORIZED, "PAPER1", "paper_0")
        assert _at(neighbours, held.payment_id) == "paper"
        assert (await shop.authorize("k1")) == held, "a replay"
        more = await shop.move("increment", "i1", held.payment_id, 500)
        assert more.authorized.amount_minor == 1_500
        await shop.move("capture", "c1", held.payment_id, 400)
        assert (await shop.move("capture", "c2", held.payment_id)).state == CAPTURED
        assert (await shop.move("refund", "r1", held.payment_id, 100)).state == PARTIALLY_REFUNDED
        assert (await shop.move("refund", "r2", held.payment_id)).state == REFUNDED
        other = await shop.authorize("k2", shop.wish("o2"))
        assert (await shop.void("v2", other.payment_id)).state == VOIDED
        assert shop.books() == [], "the bank was never asked"


async def test_at_a_third_processor_a_lost_answer_is_found_out_and_a_defect_hurts_only_its_own(
    neighbours: PaymentMesh,
) -> None:
    async with Shop(neighbours, "third-lost", _payment(neighbours, "paper")) as shop:
        good, lost, broken = await shop.authorize_all(
            ("k1", shop.wish("o1")), ("k2", shop.wish("lost")), ("k3", shop.wish("o3", token="tok_defect"))
        )
        assert good.response.payment.state == AUTHORIZED
        assert [r.failure.reason for r in (lost, broken)] == ["OUTCOME_UNKNOWN"] * 2
        held = await shop.insist(lambda: shop.authorize("k2", shop.wish("lost")))
        assert held.state == AUTHORIZED
        # What was begun at its defect is there, when one looks.
        found = await shop.insist(lambda: shop.authorize("k3", shop.wish("o3", token="tok_defect")))
        assert found.state == AUTHORIZED


async def test_a_payment_stays_where_it_was_begun(neighbours: PaymentMesh) -> None:
    async with Shop(neighbours, "moving", _payment(neighbours, "bank")) as shop:
        old = await shop.authorize("k1")
        assert _at(neighbours, old.payment_id) == "bank"
    async with Shop(neighbours, "moving", _payment(neighbours, "paper", bank=False)) as later:
        later.merchant = shop.merchant
        new = await later.authorize("k2", later.wish("o2"))
        assert _at(neighbours, new.payment_id) == "paper"
        error = await failure_of(later.move("capture", "c1", old.payment_id))
        assert (error.kind, error.reason) == (Kind.IN_PROGRESS, "OUTCOME_UNKNOWN"), "nobody else is asked"
        assert "'bank', which is not set up" in neighbours.services.last.log()
    async with Shop(neighbours, "moving", _payment(neighbours, "paper")) as again:
        again.merchant = shop.merchant
        captured = await again.insist(lambda: again.move("capture", "c1", old.payment_id))
        assert captured.state == CAPTURED
        both = await again.move_all(
            "capture",
            ("c2", again.move_wish("capture", new.payment_id)),
            ("c1", again.move_wish("capture", old.payment_id)),
        )
        assert [one.response.payment.state for one in both] == [CAPTURED, CAPTURED]
        assert [kind for _, kind, _ in again.books()] == ["AUTHORIZE", "CAPTURE"]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"PROCESSOR": "strip"}, "PAYMESH_PAYMENT_PROCESSOR is 'strip', which is none of bank, stripe"),
        ({"PROCESSOR": "stripe"}, "set PAYMESH_PAYMENT_STRIPE_KEY to Stripe's secret key"),
        ({"PROCESSOR": "bank"}, "set PAYMESH_PAYMENT_BANK_TARGET"),
        ({"PROCESSOR": "stripe", "STRIPE_KEY": "pk_test_publishable"}, "this is the publishable key"),
        ({"PROCESSOR": "stripe", "STRIPE_KEY": "hunter2hunter2"}, "a key of Stripe's begins with sk_ or rk_"),
    ],
)
def test_settings_that_cannot_be_right_end_the_process_with_what_to_do(
    neighbours: PaymentMesh, settings: dict[str, str], says: str
) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PAYMESH_")}
    environment |= {f"PAYMESH_PAYMENT_{name}": value for name, value in settings.items()}
    environment |= {
        "PAYMESH_PAYMENT_LISTEN": "127.0.0.1:0",
        "PAYMESH_PAYMENT_DATABASE_DSN": neighbours.payment_dsn,
        "PAYMESH_PAYMENT_FRAUD_TARGET": neighbours.fraud.target,
    }
    ended = subprocess.run(
        [sys.executable, "-m", "services.payment"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ended.returncode == 2
    assert says in ended.stderr
    assert "Traceback" not in ended.stderr
    for secret in settings.get("STRIPE_KEY", ""), "hunter2":
        assert not secret or secret not in ended.stderr
