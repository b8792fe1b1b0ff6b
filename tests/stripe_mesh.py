"""Payment with Stripe as its processor: localstripe as a process, the gate before it (tests/stripe_gate.py), and a
comparison of payment's books with what localstripe has.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from services.payment.domain import Payment, State
from tests.conftest import Services
from tests.payment_mesh import PaymentMesh, Shop, until
from tests.processes import ROOT, free_port

KEY = "sk_test_paymesh0secret"
READY_SECONDS = 60.0

UGX = 100
"""Stripe counts shillings in hundredths; all other currencies of these tests as we do."""


class StripeSandbox:
    """localstripe, and the gate that payment talks to."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "stripe.log"
        self._books_url = f"http://127.0.0.1:{free_port()}"
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self._processes: list[subprocess.Popen[bytes]] = []
        self._start("localstripe", "--from-scratch", "--port", self._books_url.rpartition(":")[2])
        self._await(f"{self._books_url}/v1/payment_intents")
        self.start_gate()

    def start_gate(self) -> None:
        """Open, with nothing remembered."""
        self._start("tests.stripe_gate", "--port", str(self._port), "--behind", self._books_url, "--key", KEY)
        self._await(f"{self.url}/_gate/faults")

    def stop_gate(self) -> None:
        """Nobody listens: connections are refused."""
        self._processes.pop().kill()

    def stop(self) -> None:
        """End both."""
        for process in self._processes:
            process.kill()
            process.wait(30)

    def command(self, method: str, path: str, **body: Any) -> Any:
        """Have the gate do something."""
        return httpx.request(method, f"{self.url}/_gate/{path}", json=body).json()

    def arm(self, kind: str, target: str = "", strikes: int = 1_000_000, delay_ms: int = 0) -> None:
        """Have it misbehave: kinds are those of the gate's `answer`, targets the names in its `PATHS`."""
        self.command("POST", "faults", kind=kind, target=target, strikes_left=strikes, delay_ms=delay_ms)

    def calm(self) -> None:
        """Have it behave."""
        self.command("DELETE", "faults")
        self.command("POST", "key", key=KEY)

    async def struck(self) -> None:
        """Wait until a fault has struck: then Stripe has heard of the call."""

        async def look() -> bool:
            return any(fault["strikes"] for fault in self.command("GET", "faults"))

        await until(look)

    def calls(self, what: str) -> int:
        """How many calls of a kind were answered, well or not."""
        told: list[dict[str, Any]] = self.command("GET", "calls")
        return [call["what"] for call in told].count(what)

    def intents(self, merchant: str = "") -> list[dict[str, Any]]:
        """localstripe's own."""
        return [
            one
            for one in self._books("payment_intents")
            if merchant in ("", one["metadata"].get("paymesh_merchant"))
        ]

    def refunds(self) -> list[dict[str, Any]]:
        """localstripe's own, without what a partial capture has let go of."""
        return [one for one in self._books("refunds") if one["payment_intent"]]

    def captured(self, intent: dict[str, Any]) -> int:
        """What localstripe took: of a partial capture it takes all, and gives back the rest."""
        charge = intent["latest_charge"]
        if charge is None or not charge["captured"]:
            return 0
        rest = sum(
            one["amount"]
            for one in self._books("refunds")
            if one["charge"] == charge["id"] and not one["payment_intent"]
        )
        taken: int = charge["amount"] - rest
        return taken

    def forget_the_past(self) -> None:
        """Empty localstripe's books. It writes all of them to a file with every change, and so becomes slow."""
        httpx.delete(f"{self._books_url}/_config/data")

    def _books(self, what: str) -> list[dict[str, Any]]:
        answer = httpx.get(f"{self._books_url}/v1/{what}?limit=1000000", auth=("sk_test_books", "")).json()
        data: list[dict[str, Any]] = answer["data"]
        return data

    def _start(self, module: str, *options: str) -> None:
        with self._log.open("ab") as log:
            command = [sys.executable, "-m", module, *options]
            self._processes.append(subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log))

    def _await(self, url: str) -> None:
        until_at = time.monotonic() + READY_SECONDS
        while True:
            try:
                httpx.get(url, auth=("sk_test_books", ""), timeout=5.0)
            except httpx.HTTPError:
                assert time.monotonic() < until_at, self._log.read_text(errors="replace")
                time.sleep(0.05)
            else:
                return


@dataclass
class StripeMesh(PaymentMesh):
    """The bank is still there, and nobody asks it anything."""

    stripe: Any = None
    metrics: str = ""
    """Address of payment's metrics."""

    @classmethod
    def begin(cls, services: Services, valkey_url: str, stripe: StripeSandbox, **settings: str) -> StripeMesh:
        """Start the processes, with payment's processor chosen."""
        metrics = f"127.0.0.1:{free_port()}"
        mesh = cls.start(services, valkey_url, {}, **cls.chosen(stripe), metrics_listen=metrics, **settings)
        assert isinstance(mesh, StripeMesh)
        mesh.stripe, mesh.metrics = stripe, metrics
        return mesh

    @staticmethod
    def chosen(stripe: StripeSandbox) -> dict[str, str]:
        """What a payment process needs to know."""
        return {"processor": "stripe", "stripe_key": KEY, "stripe_url": stripe.url}

    def _assert_bank_agrees(self, payments: Iterable[Payment], merchant: str) -> None:
        by_key: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for one in self.stripe.intents(merchant):
            by_key[one["metadata"]["paymesh_key"]].append(one)
        refunds: dict[str, Counter[tuple[str, int]]] = defaultdict(Counter)
        for one in self.stripe.refunds():
            refunds[one["payment_intent"]][(one["id"], one["amount"])] += 1
        for payment in payments:
            factor = UGX if payment.amount.currency == "UGX" else 1
            intents = by_key.pop(f"{payment.payment_id}/authorize", [])
            open_ = [one for one in intents if one["status"] != "canceled"]
            assert len(open_) <= 1, f"{payment} is held {len(open_)} times"
            intent = next(iter(open_ or intents), None)
            status = intent["status"] if intent else ""
            captured = self.stripe.captured(intent) if intent else 0
            told = (status, captured, intent["id"] if intent else "")
            reference = payment.processor_reference
            match payment.state:
                case State.AUTHORIZED:
                    expected = ("requires_capture", 0, reference)
                case State.CAPTURED | State.PARTIALLY_REFUNDED | State.REFUNDED:
                    expected = ("succeeded", payment.captured_minor * factor, reference)
                case State.VOIDED | State.EXPIRED:
                    expected = ("canceled", 0, reference)
                case State.DECLINED:
                    expected = ("requires_payment_method" if reference else "", 0, reference)
                case State.REJECTED:
                    expected = ("", 0, "")
                case State.FAILED:
                    assert status in ("", "canceled"), f"{payment} holds something"
                    expected = told
                case _:
                    raise AssertionError(f"{payment} has not ended")
            assert told == expected, payment
            if intent and payment.state is not State.FAILED:
                assert intent["amount"] == (payment.amount.amount_minor + payment.incremented_minor) * factor
                assert intent["currency"] == payment.amount.currency.lower()
            ours = self.on_payment(
                "SELECT data->>'processor_reference', (data->>'amount_minor')::bigint FROM payment_events"
                " WHERE payment_id = %s AND type = 'PaymentRefunded'",
                payment.payment_id,
            )
            theirs = refunds[intent["id"]] if intent else Counter()
            assert Counter((reference, minor * factor) for reference, minor in ours) == theirs
        assert not [one for some in by_key.values() for one in some if one["status"] != "canceled"], (
            "held for no payment"
        )
        assert not self.on_bank("SELECT 1 FROM operations WHERE %s::text IN ('', merchant_id)", merchant)


class StripeShop(Shop):
    """A merchant whose payments go to Stripe."""

    mesh: StripeMesh

    async def __aenter__(self) -> StripeShop:
        await super().__aenter__()
        return self

    @property
    def stripe(self) -> StripeSandbox:
        sandbox: StripeSandbox = self.mesh.stripe
        return sandbox

    def intents(self) -> list[dict[str, Any]]:
        """What localstripe has of this merchant."""
        return self.stripe.intents(self.merchant)
