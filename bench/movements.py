"""Payments that an earlier phase has made, for the phase that captures them, gives them back or reads them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from paymesh.payment.v1 import payment_pb2


class Made(NamedTuple):
    """A payment that is there."""

    merchant_id: str
    payment_id: str


class Movers:
    """Draws one payment after the other, each once; IndexError when there is none left."""

    def __init__(self, payments: Sequence[Made]) -> None:
        self._left = list(reversed(payments))

    def fill_capture(self, request: payment_pb2.CapturePaymentRequest) -> str:
        """Write the capture of all of the next payment into an empty request; returns its idempotency key."""
        return self._fill(request, "capture")

    def fill_refund(self, request: payment_pb2.RefundPaymentRequest) -> str:
        """The same for a refund."""
        return self._fill(request, "refund")

    def take(self) -> Made:
        """The next payment."""
        return self._left.pop()

    def _fill(
        self, request: payment_pb2.CapturePaymentRequest | payment_pb2.RefundPaymentRequest, what: str
    ) -> str:
        made = self.take()
        request.merchant_id, request.payment_id = made
        return f"{what}-{made.payment_id}"


def write_made(path: Path, payments: Sequence[Made]) -> None:
    """Into a file for the load generator."""
    path.write_text("".join(json.dumps(one) + "\n" for one in payments))


def read_made(path: str, merchants: Sequence[str]) -> Iterator[Made]:
    """Those of some merchants, from such a file."""
    wanted = set(merchants)
    with Path(path).open() as file:
        for line in file:
            one = Made(*json.loads(line))
            if one.merchant_id in wanted:
                yield one
