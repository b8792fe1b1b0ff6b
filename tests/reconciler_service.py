"""The reconciler as a process, and payment as its contract has it, so that a test decides what payment's books say and
when it answers; with the real payment it is tested in `e2e/`."""

from __future__ import annotations

import hashlib
import itertools
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import psycopg

from paymesh.channel import open_channel, with_key
from paymesh.money.v1 import money_pb2
from paymesh.payment.v1 import ledger_pb2, ledger_pb2_grpc, settlement_pb2, settlement_pb2_grpc
from paymesh.reconciler.v1 import reconciler_pb2 as pb
from paymesh.reconciler.v1 import reconciler_pb2_grpc
from paymesh.reconciliation.sending import Findings, examine, reconcile
from services.kit.errors import PaymeshError
from services.kit.rpc.failures import to_status
from tests.processes import ServiceProcess

DAY = "2026-11-02"
UNTIL = "2026-12-31"
HEADING = (
    "record,statement,account,currency,booking date,value date,amount,reference,bank reference,batch reference,kind,"
    "text"
)

_numbers = itertools.count(1)


def item(key: str, amount_minor: int, *, fee_minor: int = 0, batch: str = "", currency: str = "GBP") -> Any:
    """A capture, or a refund if negative, that the bank has booked."""
    capture = amount_minor > 0
    return settlement_pb2.SettlementItem(
        kind=settlement_pb2.SETTLEMENT_ITEM_KIND_CAPTURE
        if capture
        else settlement_pb2.SETTLEMENT_ITEM_KIND_REFUND,
        payment_id=key.partition("/")[0],
        operation_key=key,
        bank_reference=f"bank-{key}",
        batch_reference=batch,
        settlement_date=DAY,
        amount=money_pb2.Money(amount_minor=abs(amount_minor), currency=currency),
        processor_fee=money_pb2.Money(amount_minor=fee_minor, currency=currency),
        booked_on=DAY,
        value_on=DAY,
    )


class BooksOfPayment:
    """What payment says of one merchant."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self.page_size = 1_000
        self.asked: list[str] = []
        """The cursors that pages were asked for."""
        self.corrections: dict[str, ledger_pb2.PostCorrectionRequest] = {}
        """By key."""
        self.refusal: PaymeshError | None = None
        """What a correction is answered with."""


class Payment:
    """Serves payment's contract from threads of its own, so that it outlives a test's event loop."""

    def __init__(self) -> None:
        self.of: defaultdict[str, BooksOfPayment] = defaultdict(BooksOfPayment)
        """By merchant."""
        self._server = grpc.server(ThreadPoolExecutor(4))
        add: Any = settlement_pb2_grpc.add_SettlementServiceServicer_to_server
        add(self, self._server)
        add = ledger_pb2_grpc.add_LedgerServiceServicer_to_server
        add(self, self._server)
        self.target = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def stop(self) -> None:
        """Answer nobody any more."""
        self._server.stop(None).wait()

    def __getattr__(self, name: str) -> Any:
        # The contracts have more methods than anybody here asks for.
        if name[:1].isupper():
            return None
        raise AttributeError(name)

    def ListSettlements(self, request: Any, context: Any) -> Any:
        return settlement_pb2.ListSettlementsResponse()

    def ListSettlementItems(self, request: Any, context: Any) -> Any:
        books = self.of[request.merchant_id]
        books.asked.append(request.after_cursor)
        first = int(request.after_cursor or 0)
        last = min(first + books.page_size, len(books.items))
        return settlement_pb2.ListSettlementItemsResponse(
            items=books.items[first:last], next_cursor=str(last), more=last < len(books.items)
        )

    def PostCorrection(self, request: Any, context: Any) -> Any:
        books = self.of[request.merchant_id]
        key = str(dict(context.invocation_metadata())["idempotency-key"])
        if books.refusal is not None:
            context.abort_with_status(to_status(books.refusal))
        books.corrections.setdefault(key, request)
        return ledger_pb2.PostCorrectionResponse(journal_id=f"cor_{key}")


@dataclass
class Reconciler:
    """The process, and one merchant's view of it."""

    process: ServiceProcess
    payment: BooksOfPayment
    stub: Any
    dsn: str
    folder: Path
    merchant_id: str

    async def run(self, *paths: Path, dry_run: bool = False, until: str = UNTIL) -> Findings:
        """Send statements and wait for what comes of them."""
        begin = pb.ReconcileRequest.Begin(
            merchant_id=self.merchant_id, date=until, dry_run=dry_run, differences_max=1_000
        )
        return await reconcile(self.stub, begin, [examine(path) for path in paths], lambda *_: None)

    def statement(self, lines: Iterable[tuple[str, int]], name: str = "S1", currency: str = "GBP") -> Path:
        """A CSV statement of (reference, amount) lines, as the sandbox bank writes it."""
        path = self.folder / f"{name}.csv"
        rows = [
            HEADING,
            f"opening,{name},GB00TEST,{currency},{DAY},,0.00,,,,,",
        ]
        total = 0
        for reference, amount_minor in lines:
            total += amount_minor
            rows.append(
                f"line,{name},GB00TEST,{currency},{DAY},{DAY},{_decimal(amount_minor)},{reference},,,NTRF,"
            )
        rows.append(f"closing,{name},GB00TEST,{currency},{DAY},,{_decimal(total)},,,,,")
        path.write_text("\n".join(rows) + "\n", encoding="utf-8")
        return path

    async def cases(self, *states: Any) -> list[pb.Case]:
        """The merchant's cases."""
        return list(
            (
                await self.stub.ListCases(pb.ListCasesRequest(merchant_id=self.merchant_id, states=states))
            ).cases
        )

    async def change(self, method: str, request: Any, key: str = "") -> Any:
        """Make a call with a key, a new one if none is given."""
        request.merchant_id = self.merchant_id
        call = getattr(self.stub, method)
        return await call(request, metadata=with_key(key or f"key-{next(_numbers)}"))

    def query(self, query: str) -> list[tuple[Any, ...]]:
        """Rows of the reconciler's database; `%s` is the merchant."""
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            return connection.execute(query.encode(), [self.merchant_id] * query.count("%s")).fetchall()


def _decimal(amount_minor: int) -> str:
    sign = "-" if amount_minor < 0 else ""
    return f"{sign}{abs(amount_minor) // 100}.{abs(amount_minor) % 100:02d}"


@asynccontextmanager
async def merchant_of(
    process: ServiceProcess, payment: Payment, dsn: str, folder: Path
) -> AsyncIterator[Reconciler]:
    """A merchant that nobody else has."""
    merchant_id = f"mer_{next(_numbers)}"
    async with open_channel(process.target, caller="test") as channel:
        stub = reconciler_pb2_grpc.ReconcilerServiceStub(channel)
        yield Reconciler(process, payment.of[merchant_id], stub, dsn, folder, merchant_id)


def sha256(path: Path) -> str:
    """Of a file, hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def requests(*parts: Any) -> Sequence[pb.ReconcileRequest]:
    """Messages of Reconcile."""
    named = {pb.ReconcileRequest.Begin: "begin", pb.ReconcileRequest.File: "file", bytes: "chunk"}
    return [pb.ReconcileRequest(**{named[type(part)]: part}) for part in parts]
