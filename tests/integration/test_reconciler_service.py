"""The reconciler as a real process on a real PostgreSQL: statements arrive in pieces, are imported whole or not at all
and once, whoever is killed; cases are resolved by two people, and a correction is posted once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from deploy.local.stores import EmbeddedPostgres
from paymesh.errors import Kind
from paymesh.money.v1 import money_pb2
from paymesh.reconciler.v1 import reconciler_pb2 as pb
from services.kit.errors import Refused, Retryable
from tests.conftest import Services
from tests.payment_mesh import failure_of, until
from tests.processes import ServiceProcess
from tests.reconciler_service import Payment, Reconciler, item, merchant_of, requests, sha256

BEGIN = pb.ReconcileRequest.Begin
FILE = pb.ReconcileRequest.File


@pytest.fixture(scope="module")
def payment() -> Iterator[Payment]:
    served = Payment()
    yield served
    served.stop()


@pytest.fixture(scope="module")
def everything(postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    started = Services(postgres, tmp_path_factory.mktemp("reconciler"))
    yield started
    started.stop()


@pytest.fixture(scope="module")
def process(everything: Services, payment: Payment) -> ServiceProcess:
    """One for all tests of this file; each has a merchant of its own."""
    return everything.start(
        "reconciler", payment_target=payment.target, post_poll_seconds="0.05", post_first_ms="50"
    )


@pytest_asyncio.fixture
async def one(
    everything: Services, process: ServiceProcess, payment: Payment, tmp_path: Path
) -> AsyncIterator[Reconciler]:
    async with merchant_of(process, payment, everything.dsn("reconciler"), tmp_path) as merchant:
        yield merchant


async def test_a_statement_is_imported_matched_and_what_is_wrong_with_it_becomes_cases(
    one: Reconciler,
) -> None:
    one.payment.items = [item("a/1", 500), item("b/1", 700), item("c/1", 900)]
    path = one.statement([("a/1", 500), ("b/1", 690), ("?", 5)])
    preview = await one.run(path, dry_run=True)
    assert one.query("SELECT count(*) FROM lines WHERE merchant_id = %s") == [(0,)]
    found = await one.run(path)

    kinds = {d.case.reference: pb.CaseKind.Name(d.case.kind) for d in found.differences}
    assert kinds == {
        "b/1": "CASE_KIND_AMOUNT",
        "c/1": "CASE_KIND_MISSING_IN_BANK",
        "?": "CASE_KIND_MISSING_IN_LEDGER",
    }
    assert found.standing == preview.standing == 3
    assert list(found.summary.differences) == list(preview.summary.differences)
    assert (found.summary.files[0].lines_new, found.summary.files[0].statements) == (3, 1)
    assert {case.case_id for case in await one.cases()} == {d.case.case_id for d in found.differences}
    shown = await one.stub.GetCase(
        pb.GetCaseRequest(merchant_id=one.merchant_id, case_id=found.differences[0].case.case_id)
    )
    assert [event.type for event in shown.events] == ["opened"]
    assert one.query("SELECT type FROM outbox WHERE merchant_id = %s") == [
        ("paymesh.reconciler.v1.ReconciliationEnded",)
    ]
    listed = await one.stub.ListStatements(pb.ListStatementsRequest(merchant_id=one.merchant_id))
    assert [(s.statement_id, s.lines, s.file_sha256) for s in listed.statements] == [("S1", 3, sha256(path))]


async def test_a_file_is_known_by_its_hash_and_need_not_be_sent_twice(one: Reconciler) -> None:
    path = one.statement([("a/1", 500)])
    await one.run(path)
    again = await one.run(path)
    assert again.summary.files[0].already_imported
    header = FILE(name="again", sha256=sha256(path), size_bytes=path.stat().st_size)
    answers = await _answers(one, BEGIN(merchant_id=one.merchant_id, date="2026-11-30"), header)
    assert answers[-1].done.files[0].already_imported
    unknown = FILE(name="new.xml", sha256="0" * 64, size_bytes=7)
    error = await failure_of(_answers(one, BEGIN(merchant_id=one.merchant_id, date="2026-11-30"), unknown))
    assert "send its bytes" in str(error)


async def test_a_broken_statement_is_refused_with_its_place_and_changes_nothing(one: Reconciler) -> None:
    path = one.statement([("a/1", 500)])
    path.write_text(path.read_text().replace(",5.00,a/1", ",5.01,a/1"), encoding="utf-8")
    error = await failure_of(one.run(path))
    assert error.kind is Kind.INVALID
    assert [v.field for v in error.violations] == ["S1.csv, line 4, closing balance"]
    assert one.query("SELECT count(*) FROM statements WHERE merchant_id = %s") == [(0,)]
    assert one.query("SELECT count(*) FROM statement_files WHERE merchant_id = %s") == [(0,)]


GOOD = BEGIN(merchant_id="m", date="2026-11-30")


@pytest.mark.parametrize(
    ("parts", "field"),
    [
        ([], "begin"),
        ([b"x"], "begin"),
        ([BEGIN(date="2026-11-30")], "begin.merchant_id"),
        ([BEGIN(merchant_id="m", date="30.11.2026")], "begin.date"),
        ([BEGIN(merchant_id="m", date="2026-11-30", differences_max=-1)], "begin.differences_max"),
        ([GOOD, GOOD], "begin"),
        ([GOOD, b"x"], "chunk"),
        ([GOOD, FILE(name="f", sha256="x", size_bytes=1)], "file.sha256"),
        ([GOOD, FILE(sha256="0" * 64, size_bytes=1)], "file.name"),
        ([GOOD, FILE(name="f", sha256="0" * 64, size_bytes=-1)], "file.size_bytes"),
        ([GOOD, FILE(name="f", sha256="0" * 64, size_bytes=1), b"xy"], "chunk"),
        ([GOOD, FILE(name="f", sha256="0" * 64, size_bytes=9), b"xy"], "f"),
        ([GOOD, FILE(name="f", sha256="0" * 64, size_bytes=2), b"xy"], "f"),
    ],
)
async def test_what_does_not_belong_into_a_run_is_named(
    one: Reconciler, parts: list[Any], field: str
) -> None:
    error = await failure_of(_answers(one, *parts))
    assert (error.kind, [v.field for v in error.violations]) == (Kind.INVALID, [field])


async def test_one_run_at_a_time_and_the_others_are_told(one: Reconciler) -> None:
    one.payment.items = [item(f"p{n}/1", 100 + n) for n in range(300)]
    path = one.statement([(f"p{n}/1", 100 + n) for n in range(300)])
    outcomes = await asyncio.gather(*(one.run(path) for _ in range(8)), return_exceptions=True)
    codes = Counter(o.code() if isinstance(o, grpc.aio.AioRpcError) else "done" for o in outcomes)
    assert codes["done"] >= 1
    assert set(codes) <= {"done", grpc.StatusCode.ABORTED}
    assert one.query(
        "SELECT count(*), count(DISTINCT line_no) FROM matched_lines WHERE merchant_id = %s"
    ) == [(300, 300)]


@pytest.mark.parametrize("phase", ["importing", "matching", "looking for differences"])
async def test_a_run_that_is_killed_has_done_nothing_and_the_next_does_it_all(
    one: Reconciler, phase: str
) -> None:
    count = 12_000
    one.payment.items = [item(f"p{n}/1", 100 + n) for n in range(count)]
    path = one.statement([(f"p{n}/1", 100 + n) for n in range(1, count)])

    async def killed() -> None:
        async for answer in one.stub.Reconcile(_sent(one, path), timeout=60):
            if answer.progress.phase == phase:
                one.process.kill()

    with pytest.raises(grpc.aio.AioRpcError):
        await killed()
    await asyncio.to_thread(one.process.start)
    # What was copied of payment's items stays; the run's own work does not, unless it was just committed.
    copied = one.query("SELECT count(*) FROM items WHERE merchant_id = %s")[0][0]

    async def again() -> Any:
        try:
            return await one.run(path)
        except grpc.aio.AioRpcError as error:
            # The database may not have noticed yet that whoever held the lock is gone, nor the channel who is back.
            if error.code() in (grpc.StatusCode.ABORTED, grpc.StatusCode.UNAVAILABLE):
                return None
            raise

    found = await until(again)
    assert copied == count
    assert [d.case.reference for d in found.differences] == ["p0/1"]
    assert one.query("SELECT count(*) FROM lines WHERE merchant_id = %s") == [(count - 1,)]
    assert one.query("SELECT count(*) FROM matched_items WHERE merchant_id = %s") == [(count - 1,)]


async def test_a_copy_of_items_goes_on_behind_the_last_page_that_was_saved(one: Reconciler) -> None:
    one.payment.items = [item(f"p{n}/1", 100) for n in range(50)]
    one.payment.page_size = 10
    await one.run()
    assert one.payment.asked == ["", "10", "20", "30", "40"]
    one.payment.items.append(item("late/1", 7))
    found = await one.run()
    assert found.summary.items_copied == 1
    assert one.query("SELECT count(*), count(DISTINCT item_id) FROM items WHERE merchant_id = %s") == [
        (51, 51)
    ]


async def test_a_caller_who_goes_away_takes_the_run_along(one: Reconciler) -> None:
    path = one.statement([(f"p{n}/1", 100 + n) for n in range(20_000)])
    call = one.stub.Reconcile(_sent(one, path))
    async for answer in call:
        if answer.WhichOneof("part") == "progress":
            call.cancel()
            break

    async def free() -> bool:
        try:
            await one.run()
        except grpc.aio.AioRpcError:
            return False
        return True

    assert await until(free)
    assert one.query("SELECT count(*) FROM statements WHERE merchant_id = %s") == [(0,)]


async def _case(one: Reconciler) -> str:
    found = await one.run(one.statement([("?", 30)], name=f"S-{one.merchant_id}"))
    return found.differences[0].case.case_id


CORRECTION = pb.Correction(
    debit_account="cash", credit_account="suspense", amount=money_pb2.Money(amount_minor=30, currency="GBP")
)


def _propose(case_id: str, actor: str = "ann", correction: pb.Correction | None = None) -> Any:
    return pb.ProposeResolutionRequest(
        case_id=case_id, reason="bank error", actor=actor, correction=correction
    )


def _approve(case_id: str, actor: str = "bob", proposal: int = 1) -> Any:
    return pb.ApproveResolutionRequest(case_id=case_id, proposal=proposal, actor=actor)


async def test_two_people_explain_a_difference_and_it_never_comes_back(one: Reconciler) -> None:
    case_id = await _case(one)
    await one.change("AssignCase", pb.AssignCaseRequest(case_id=case_id, owner="ann", actor="cas"))
    await one.change("ProposeResolution", _propose(case_id))
    error = await failure_of(one.change("ApproveResolution", _approve(case_id, "ANN")))
    assert (error.kind, error.reason) == (Kind.REFUSED, "SAME_PERSON")
    closed = (await one.change("ApproveResolution", _approve(case_id))).case
    assert (closed.state, closed.outcome) == (pb.CASE_STATE_CLOSED, pb.CASE_OUTCOME_EXPLAINED)
    assert (await one.run()).differences == []
    shown = await one.stub.GetCase(pb.GetCaseRequest(merchant_id=one.merchant_id, case_id=case_id))
    assert [(e.type, e.actor) for e in shown.events] == [
        ("opened", "reconciler"), ("assigned", "cas"), ("proposed", "ann"), ("closed", "bob")
    ]  # fmt: skip
    assert [line.reference for line in shown.lines] == ["?"]
    assert one.query("SELECT type FROM outbox WHERE merchant_id = %s AND type LIKE '%%CaseResolved'") != []


async def test_a_correction_is_posted_once_however_long_payment_is_away(one: Reconciler) -> None:
    case_id = await _case(one)
    one.payment.refusal = Retryable("AWAY", "not now")
    await one.change("ProposeResolution", _propose(case_id, correction=CORRECTION))
    resolving = (await one.change("ApproveResolution", _approve(case_id))).case
    assert resolving.state == pb.CASE_STATE_RESOLVING
    error = await failure_of(one.change("ProposeResolution", _propose(case_id)))
    assert error.reason == "CASE_RESOLVING"
    # A run in between leaves it alone.
    await one.run()
    one.process.kill()
    one.payment.refusal = None
    await asyncio.to_thread(one.process.start)

    async def closed() -> pb.Case | None:
        return next(iter(await one.cases(pb.CASE_STATE_CLOSED)), None)

    case = await until(closed)
    key = f"{case_id}/correct/1"
    assert case.resolution.journal_id == f"cor_{key}"
    assert list(one.payment.corrections) == [key]
    posted = one.payment.corrections[key]
    assert (posted.proposed_by, posted.approved_by, posted.reference) == ("ann", "bob", case_id)
    assert posted.amount == CORRECTION.amount


async def test_a_correction_that_payment_refuses_opens_the_case_again(one: Reconciler) -> None:
    case_id = await _case(one)
    one.payment.refusal = Refused("NO", "never")
    await one.change("ProposeResolution", _propose(case_id, correction=CORRECTION))
    await one.change("ApproveResolution", _approve(case_id))

    async def types() -> list[str] | None:
        shown = await one.stub.GetCase(pb.GetCaseRequest(merchant_id=one.merchant_id, case_id=case_id))
        seen = [event.type for event in shown.events]
        return seen if shown.case.state == pb.CASE_STATE_OPEN and "refused" in seen else None

    assert await until(types) == ["opened", "proposed", "approved", "refused"]


async def test_one_key_fifty_times_at_once_is_one_proposal(one: Reconciler) -> None:
    case_id = await _case(one)
    answers = await asyncio.gather(
        *(one.change("ProposeResolution", _propose(case_id), key="once") for _ in range(50))
    )
    assert {answer.case.resolution.proposal for answer in answers} == {1}
    error = await failure_of(one.change("ProposeResolution", _propose(case_id, actor="bob"), key="once"))
    assert error.reason == "IDEMPOTENCY_KEY_REUSED"


async def test_of_two_who_approve_at_once_one_closes_the_case(one: Reconciler) -> None:
    case_id = await _case(one)
    await one.change("ProposeResolution", _propose(case_id))
    outcomes = await asyncio.gather(
        *(one.change("ApproveResolution", _approve(case_id, who)) for who in ("bob", "cas")),
        return_exceptions=True,
    )
    assert sorted(isinstance(o, Exception) for o in outcomes) == [False, True]


async def test_the_database_too_wants_two_people(one: Reconciler) -> None:
    case_id = await _case(one)
    await one.change("ProposeResolution", _propose(case_id))
    with pytest.raises(Exception, match="four_eyes"):
        one.query(
            "UPDATE cases SET state = 'CLOSED', outcome = 'EXPLAINED', closed_at = now(), approved_by = 'Ann'"
            " WHERE merchant_id = %s RETURNING 1"
        )


@pytest.mark.parametrize("table", ["lines", "items", "matched_lines", "statements", "case_events"])
async def test_what_is_history_refuses_to_be_changed(one: Reconciler, table: str) -> None:
    with pytest.raises(Exception, match="history is never changed"):
        one.query(f"DELETE FROM {table} WHERE merchant_id = %s RETURNING 1")


@pytest.mark.parametrize(
    ("method", "request_", "field"),
    [
        ("AssignCase", pb.AssignCaseRequest(case_id="case_1"), "actor"),
        ("AssignCase", pb.AssignCaseRequest(actor="ann"), "case_id"),
        ("AssignCase", pb.AssignCaseRequest(case_id="case_1", actor="ann", owner="x" * 65), "owner"),
        ("ProposeResolution", pb.ProposeResolutionRequest(case_id="case_1", actor="ann"), "reason"),
        ("ApproveResolution", pb.ApproveResolutionRequest(case_id="case_1", actor=" "), "actor"),
        ("RejectResolution", pb.RejectResolutionRequest(case_id="case_1", actor="ann"), "reason"),
    ],
)
async def test_wrong_input_is_named_by_its_field(
    one: Reconciler, method: str, request_: Any, field: str
) -> None:
    error = await failure_of(one.change(method, request_))
    assert (error.kind, [v.field for v in error.violations]) == (Kind.INVALID, [field])


@pytest.mark.parametrize("case_id", ["case_999999", "nonsense", "case_"])
async def test_a_case_that_does_not_exist_is_not_found(one: Reconciler, case_id: str) -> None:
    for call in (
        one.stub.GetCase(pb.GetCaseRequest(merchant_id=one.merchant_id, case_id=case_id)),
        one.change("ApproveResolution", _approve(case_id)),
    ):
        assert (await failure_of(call)).kind is Kind.NOT_FOUND


async def test_every_page_of_cases_has_others(one: Reconciler) -> None:
    await one.run(one.statement([(f"r{n}", 100 + n) for n in range(7)]))
    seen: list[str] = []
    token = ""
    while True:
        page = await one.stub.ListCases(
            pb.ListCasesRequest(merchant_id=one.merchant_id, page_size=3, page_token=token)
        )
        seen += [case.reference for case in page.cases]
        token = page.next_page_token
        if not token:
            break
    assert sorted(seen) == [f"r{n}" for n in range(7)]
    wrong = pb.ListCasesRequest(merchant_id=one.merchant_id, page_token="x/y")
    assert (await failure_of(one.stub.ListCases(wrong))).kind is Kind.INVALID


async def test_by_night_every_merchants_folder_is_read_and_a_bad_statement_keeps_nobody(
    services: Services, payment: Payment, tmp_path: Path
) -> None:
    process = await asyncio.to_thread(
        services.start,
        "reconciler",
        payment_target=payment.target,
        nightly_folder=str(tmp_path),
        nightly_at="00:00",
        nightly_poll_seconds="0.1",
    )
    async with merchant_of(process, payment, services.dsn("reconciler"), tmp_path) as one:
        one.payment.items = [item("a/1", 500)]
        ready = tmp_path / "draft"
        ready.mkdir()
        (ready / "broken.sta").write_text(":20:nonsense\n")
        one.folder = ready
        one.statement([("a/1", 500)])
        ready.rename(tmp_path / one.merchant_id)

        async def matched() -> bool:
            return one.query("SELECT count(*) FROM matched_lines WHERE merchant_id = %s") == [(1,)]

        await until(matched)
        assert "broken.sta" in process.log()


async def _answers(one: Reconciler, *parts: Any) -> list[pb.ReconcileResponse]:
    return [answer async for answer in one.stub.Reconcile(iter(requests(*parts)), timeout=30)]


async def _sent(one: Reconciler, path: Path) -> AsyncIterator[pb.ReconcileRequest]:
    data = path.read_bytes()
    header = FILE(name=path.name, sha256=sha256(path), size_bytes=len(data))
    pieces = [data[start : start + 200_000] for start in range(0, len(data), 200_000)]
    for request in requests(BEGIN(merchant_id=one.merchant_id, date="2026-11-30"), header, *pieces):
        yield request
