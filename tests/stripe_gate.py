"""Stripe's front door, for tests: stands before localstripe and adds what that lacks. Idempotency keys, declines with
their codes, states that refuse, the limit of refunds, increments, search with its lag, and faults on demand.

Only what payment uses is let through; a parameter that Stripe would refuse is refused. localstripe keeps the books and
is asked for them directly (tests/stripe_mesh.py), so that what is compared does not come from here.

`python -m tests.stripe_gate --port PORT --behind URL --key KEY`; `/_gate/…` is for whoever runs the test.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

import httpx

DECLINES = {
    "pm_card_visa_chargeDeclined": ("card_declined", "generic_decline"),
    "pm_card_visa_chargeDeclinedInsufficientFunds": ("card_declined", "insufficient_funds"),
    "pm_card_visa_chargeDeclinedLostCard": ("card_declined", "lost_card"),
    "pm_card_visa_chargeDeclinedStolenCard": ("card_declined", "stolen_card"),
    "pm_card_chargeDeclinedExpiredCard": ("expired_card", "expired_card"),
    "pm_card_chargeDeclinedIncorrectCvc": ("incorrect_cvc", "incorrect_cvc"),
    "pm_card_chargeDeclinedProcessingError": ("processing_error", "processing_error"),
    "pm_card_visa_chargeDeclinedVelocityLimitExceeded": ("card_declined", "card_velocity_exceeded"),
    "pm_card_authenticationRequired": ("authentication_required", "authentication_required"),
}
APPROVED = {
    f"pm_card_{brand}"
    for brand in ("visa", "mastercard", "amex", "discover", "diners", "jcb", "unionpay", "refundFail")
}
INCREMENT_MAX = 900_000
"""Whoever wants more held has not got the money."""

CREATE_PARAMS = re.compile(
    r"amount|currency|capture_method|confirm|error_on_requires_action|payment_method|expand\[\d\]"
    r"|allowed_payment_method_types\[\d\]|metadata\[\w+\]"
)


class Answer(NamedTuple):
    status: int
    body: dict[str, Any]


class Refused(Exception):
    """An answer that ends a request early."""

    def __init__(self, status: int, code: str, type_: str = "invalid_request_error", **more: Any) -> None:
        super().__init__(code)
        error = {"type": type_, "code": code, "message": f"no: {code}"} | more
        self.answer = Answer(status, {"error": error})


class HungUp(Exception):
    """The connection ends without an answer."""


class Call(NamedTuple):
    """A request, taken apart."""

    what: str
    id: str
    params: dict[str, str]
    key: str
    fingerprint: str


PATHS = (
    ("POST", re.compile(r"/v1/payment_intents"), "create"),
    ("GET", re.compile(r"/v1/payment_intents"), "list"),
    ("GET", re.compile(r"/v1/payment_intents/search"), "search"),
    ("GET", re.compile(r"/v1/payment_intents/(pi_\w+)"), "retrieve"),
    ("POST", re.compile(r"/v1/payment_intents/(pi_\w+)/capture"), "capture"),
    ("POST", re.compile(r"/v1/payment_intents/(pi_\w+)/cancel"), "cancel"),
    ("POST", re.compile(r"/v1/payment_intents/(pi_\w+)/increment_authorization"), "increment"),
    ("POST", re.compile(r"/v1/refunds"), "refund"),
    ("GET", re.compile(r"/v1/refunds"), "list_refunds"),
)


class Gate:
    """What is remembered between requests."""

    def __init__(self, behind: str, key: str) -> None:
        self.key = key
        self.http = httpx.Client(base_url=behind, auth=("sk_test_gate", ""), timeout=30.0)
        self.lock = threading.Lock()
        self.books = threading.Lock()
        self.remembered: dict[str, tuple[str, Answer | None]] = {}
        self.declines: dict[str, tuple[str, str]] = {}
        self.captured: dict[str, int] = {}
        self.methods: dict[str, str] = {}
        self.made_at: dict[str, float] = {}
        self.pending: dict[str, float] = {}
        self.failed_refunds: dict[str, list[dict[str, Any]]] = {}
        self.faults: list[dict[str, Any]] = []
        self.calls: list[dict[str, Any]] = []
        self.search_lag_seconds = 0.0
        self.search_refused = False

    def answer(self, call: Call, authorization: str) -> Answer:
        """Carry out a request. Raises HungUp."""
        try:
            if authorization != f"Bearer {self.key}":
                raise Refused(401, "api_key_invalid")
            fault = self._strike(call)
            kind = fault["kind"] if fault else ""
            if kind == "delay":
                time.sleep(fault["delay_ms"] / 1000)
            if kind == "before":
                raise HungUp
            if kind == "error":
                raise Refused(500, "api_error", "api_error")
            if kind == "rate_limit":
                raise Refused(429, "rate_limit")
            answer = self._once(call, kind)
            if kind == "pending":
                self.pending[answer.body["id"]] = time.monotonic() + fault["delay_ms"] / 1000
                answer.body["status"] = "pending"
            if kind == "after":
                raise HungUp
        except Refused as refused:
            answer = refused.answer
        with self.lock:
            self.calls.append({"what": call.what, "key": call.key, "status": answer.status})
        return answer

    def _strike(self, call: Call) -> Any:
        with self.lock:
            for fault in self.faults:
                if fault["target"] in ("", call.what) and fault["strikes_left"]:
                    fault["strikes_left"] -= 1
                    fault["strikes"] += 1
                    return fault
        return None

    def _once(self, call: Call, kind: str) -> Answer:
        """Idempotency: of one key the first answer stands, whatever it was."""
        if not call.key:
            return self._carry_out(call)
        with self.lock:
            if call.key in self.remembered:
                fingerprint, stored = self.remembered[call.key]
                if fingerprint != call.fingerprint:
                    raise Refused(400, "idempotency_key_reused", "idempotency_error")
                if stored is None:
                    raise Refused(409, "idempotency_key_in_use", "idempotency_error")
                return stored
            self.remembered[call.key] = (call.fingerprint, None)
        answer = None
        try:
            if kind == "stored_error":
                raise Refused(500, "api_error", "api_error")
            answer = self._carry_out(call)
        except Refused as refused:
            answer = refused.answer
        finally:
            with self.lock:
                if answer is None:
                    del self.remembered[call.key]
                else:
                    self.remembered[call.key] = (call.fingerprint, answer)
        return answer

    def _carry_out(self, call: Call) -> Answer:
        with self.books:
            answer: dict[str, Any] = getattr(self, f"_{call.what}")(call)
        return Answer(200, answer)

    def _create(self, call: Call) -> dict[str, Any]:
        params = call.params
        for name in params:
            if not CREATE_PARAMS.fullmatch(name):
                raise Refused(400, "parameter_unknown", param=name)
        method = params.get("payment_method", "")
        if method and method not in DECLINES and method not in APPROVED:
            raise Refused(400, "resource_missing", param="payment_method")
        if bool(method) != (params.get("confirm") == "true"):
            raise Refused(400, "parameter_missing", param="confirm")
        wanted = {k: v for k, v in params.items() if re.match(r"amount|currency|capture_method|metadata", k)}
        if method:
            declined = method in DECLINES
            wanted |= {
                "confirm": "true",
                "payment_method": "pm_card_chargeCustomerFail" if declined else "pm_card_visa",
            }
        status, body = self._post("/v1/payment_intents", wanted)
        if status == 402:
            charge = self._get(f"/v1/charges/{body['error']['charge']}")
            intent = charge["payment_intent"]
            self.declines[intent] = DECLINES[method]
            self.made_at[intent] = time.monotonic()
            code, decline_code = DECLINES[method]
            found = self._shown(self._get(f"/v1/payment_intents/{intent}"), call)
            raise Refused(402, code, "card_error", decline_code=decline_code, payment_intent=found)
        self.methods[body["id"]] = method
        self.made_at[body["id"]] = time.monotonic()
        return self._shown(body, call)

    _authorize = _claim = _create

    def _list(self, call: Call) -> dict[str, Any]:
        return {"object": "list", "url": "/v1/payment_intents", "has_more": False, "data": []}

    def _search(self, call: Call) -> dict[str, Any]:
        if self.search_refused:
            raise Refused(400, "search_unavailable")
        match = re.fullmatch(r'metadata\["(\w+)"\]:"([^"]+)"', call.params["query"])
        if match is None:
            raise Refused(400, "query_unreadable")
        old = time.monotonic() - self.search_lag_seconds
        found = [
            self._shown(one, call)
            for one in self._get("/v1/payment_intents?limit=100000")["data"]
            if one["metadata"].get(match[1]) == match[2] and self.made_at.get(one["id"], 0) <= old
        ]
        return {
            "object": "search_result",
            "url": "/v1/payment_intents/search",
            "has_more": False,
            "data": found,
        }

    def _retrieve(self, call: Call) -> dict[str, Any]:
        return self._shown(self._get(f"/v1/payment_intents/{call.id}"), call)

    def _capture(self, call: Call) -> dict[str, Any]:
        intent = self._in_state(call, "requires_capture")
        amount = int(call.params["amount_to_capture"])
        if call.params.get("final_capture") == "false":
            raise Refused(400, "capture_multiple_unavailable")
        if amount > intent["amount"]:
            raise Refused(400, "amount_too_large")
        _, body = self._post(f"/v1/payment_intents/{call.id}/capture", {"amount_to_capture": str(amount)})
        self.captured[call.id] = amount
        return self._shown(body, call)

    def _cancel(self, call: Call) -> dict[str, Any]:
        self._in_state(call, "requires_capture", "requires_payment_method", "requires_confirmation")
        _, body = self._post(f"/v1/payment_intents/{call.id}/cancel", {})
        return self._shown(body, call)

    def _increment(self, call: Call) -> dict[str, Any]:
        intent = self._in_state(call, "requires_capture")
        amount = int(call.params["amount"])
        if amount <= intent["amount"]:
            raise Refused(400, "amount_too_small")
        if amount > INCREMENT_MAX:
            raise Refused(402, "card_declined", "card_error", decline_code="insufficient_funds")
        self.http.post(f"/v1/charges/{intent['latest_charge']['id']}", json={"amount": amount})
        body = self.http.post(f"/v1/payment_intents/{call.id}", json={"amount": amount}).json()
        return self._shown(body, call)

    def _refund(self, call: Call) -> dict[str, Any]:
        intent, amount = call.params["payment_intent"], int(call.params["amount"])
        given_back = sum(one["amount"] for one in self._refunds_of(intent))
        if amount + given_back > self.captured.get(intent, 0):
            raise Refused(400, "charge_already_refunded")
        if self.methods[intent] == "pm_card_refundFail":
            failed = {
                "id": f"re_failed{len(self.failed_refunds)}",
                "object": "refund",
                "amount": amount,
                "status": "failed",
                "failure_reason": "expired_or_canceled_card",
                "metadata": {"paymesh_key": call.params["metadata[paymesh_key]"]},
            }
            self.failed_refunds.setdefault(intent, []).append(failed)
            return failed
        _, body = self._post("/v1/refunds", call.params)
        return body

    def _list_refunds(self, call: Call) -> dict[str, Any]:
        intent = call.params["payment_intent"]
        data = self._refunds_of(intent) + self.failed_refunds.get(intent, [])
        for one in data:
            if self.pending.get(one["id"], 0) > time.monotonic():
                one["status"] = "pending"
        return {"object": "list", "url": "/v1/refunds", "has_more": False, "data": data}

    def _refunds_of(self, intent: str) -> list[dict[str, Any]]:
        """What was given back: what a partial capture had left is shown by localstripe as a refund, too."""
        data: list[dict[str, Any]] = self._get(f"/v1/refunds?payment_intent={intent}&limit=100000")["data"]
        return [one for one in data if one["payment_intent"] == intent]

    def _in_state(self, call: Call, *states: str) -> dict[str, Any]:
        intent = self._get(f"/v1/payment_intents/{call.id}")
        if intent["status"] not in states:
            raise Refused(
                400, "payment_intent_unexpected_state", payment_intent=self._shown(dict(intent), call)
            )
        return intent

    def _shown(self, intent: dict[str, Any], call: Call) -> dict[str, Any]:
        """An intent as Stripe would show it."""
        charge = intent.get("latest_charge")
        intent["amount_received"] = self.captured.get(intent["id"], 0)
        intent["amount_capturable"] = intent["amount"] if intent["status"] == "requires_capture" else 0
        if intent["id"] in self.declines:
            code, decline_code = self.declines[intent["id"]]
            intent["last_payment_error"] = {
                "type": "card_error",
                "code": code,
                "decline_code": decline_code,
                "message": "no",
            }
        if charge is not None:
            if call.params.get("expand[0]") == "latest_charge":
                charge["payment_method_details"] = {"card": {"authorization_code": charge["id"][-6:].upper()}}
            else:
                intent["latest_charge"] = charge["id"]
        return intent

    def _post(self, path: str, data: dict[str, str]) -> tuple[int, dict[str, Any]]:
        response = self.http.post(path, data=data)
        assert response.status_code in (200, 402), response.text
        body: dict[str, Any] = response.json()
        return response.status_code, body

    def _get(self, path: str) -> dict[str, Any]:
        response = self.http.get(path)
        if response.status_code == 404:
            raise Refused(404, "resource_missing", param="id")
        body: dict[str, Any] = response.json()
        return body

    def command(self, method: str, path: str, body: dict[str, Any]) -> Any:
        """What a test asks for."""
        with self.lock:
            match (method, path):
                case ("POST", "faults"):
                    self.faults.append({"target": "", "delay_ms": 0, "strikes": 0} | body)
                case ("DELETE", "faults"):
                    self.faults.clear()
                    self.search_lag_seconds, self.search_refused = 0.0, False
                case ("POST", "search"):
                    self.search_lag_seconds = body.get("lag_seconds", 0.0)
                    self.search_refused = body.get("refused", False)
                case ("POST", "key"):
                    self.key = body["key"]
                case ("POST", "forget"):
                    self.remembered.clear()
                case ("GET", "calls"):
                    return self.calls
            return self.faults


def _call(method: str, target: str, body: str, key: str) -> Call:
    url = urlsplit(target)
    params = dict(parse_qsl(body if method == "POST" else url.query, keep_blank_values=True))
    for its, path, what in PATHS:
        if its == method and (match := path.fullmatch(url.path)):
            if what == "create":
                # Without a card it is a cancellation that claims the key.
                what = "authorize" if "payment_method" in params else "claim"
            digest = hashlib.sha256(f"{method} {url.path} {sorted(params.items())}".encode()).hexdigest()
            return Call(what, match[1] if match.groups() else "", params, key, digest)
    raise Refused(404, "unknown_path")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    gate: Gate

    def _handle(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length).decode()
        if self.path.startswith("/_gate/"):
            told = self.gate.command(
                self.command, self.path.removeprefix("/_gate/"), json.loads(body or "{}")
            )
            self._send(200, told)
            return
        try:
            call = _call(self.command, self.path, body, self.headers.get("Idempotency-Key") or "")
            answer = self.gate.answer(call, self.headers.get("Authorization") or "")
        except Refused as refused:
            answer = refused.answer
        except HungUp:
            self.close_connection = True
            return
        try:
            self._send(answer.status, answer.body)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True  # nobody waits any more

    do_GET = do_POST = do_DELETE = _handle  # noqa: N815 - the library's names

    def _send(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--behind", required=True)
    parser.add_argument("--key", required=True)
    options = parser.parse_args()
    Handler.gate = Gate(options.behind, options.key)
    Server(("127.0.0.1", options.port), Handler).serve_forever()
