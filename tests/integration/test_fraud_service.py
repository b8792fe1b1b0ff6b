"""Fraud as a real process on real PostgreSQL and Valkey: one judgement per call, lists, and life without Valkey."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import psycopg
import pytest
import pytest_asyncio

from deploy.local.stores import EmbeddedPostgres, EmbeddedValkey
from paymesh.channel import open_channel, with_key
from paymesh.fraud.v1 import fraud_pb2 as pb
from paymesh.fraud.v1.fraud_pb2_grpc import FraudServiceStub
from paymesh.money.v1.money_pb2 import Money
from services.fraud.config import RULES_FILE
from services.kit.rpc.failures import from_call
from tests.conftest import Services
from tests.processes import ROOT

MERCHANTS = (f"mer_{os.urandom(4).hex()}" for _ in itertools.count())
APPROVE, DECLINE = pb.DECISION_APPROVE, pb.DECISION_DECLINE


@pytest.fixture
def merchant() -> str:
    """A merchant of which Valkey, which all tests share, has never heard."""
    return next(MERCHANTS)


@pytest.fixture(scope="module")
def shared(
    postgres: EmbeddedPostgres, valkey: EmbeddedValkey, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, str]]:
    """Target and DSN of one process for all tests that neither kill nor configure it: merchants keep them apart."""
    services = Services(postgres, tmp_path_factory.mktemp("fraud"))
    yield services.start("fraud", valkey_url=valkey.url).target, services.dsn("fraud")
    services.stop()


@pytest_asyncio.fixture
async def stub(shared: tuple[str, str]) -> AsyncIterator[FraudServiceStub]:
    async with open_channel(shared[0], caller="test") as channel:
        yield FraudServiceStub(channel)


@pytest.fixture
def keys_stored(shared: tuple[str, str], merchant: str) -> Callable[[], list[str]]:
    """The keys under which the merchant has assessments."""
    return lambda: _keys(shared[1], merchant)


@pytest.fixture
def own_valkey(tmp_path: Path) -> Iterator[EmbeddedValkey]:
    """A Valkey that a test may kill."""
    server = EmbeddedValkey(tmp_path / "own")
    server.start()
    yield server
    if server.pid is not None:
        os.kill(server.pid, signal.SIGCONT)
    server.stop()


def _request(
    merchant: str, amount_minor: int = 5_000, *, payment: str = "pay_1", currency: str = "USD", **traits: str
) -> pb.AssessPaymentRequest:
    traits = {"card_token": "tok_1"} | traits
    subject = pb.Subject(amount=Money(amount_minor=amount_minor, currency=currency), **traits)
    return pb.AssessPaymentRequest(merchant_id=merchant, payment_id=payment, subject=subject)


async def _assess(stub: FraudServiceStub, key: str, request: pb.AssessPaymentRequest) -> pb.Assessment:
    return (await stub.AssessPayment(request, metadata=with_key(key))).assessment


def _batch(*items: tuple[str, pb.AssessPaymentRequest]) -> pb.BatchAssessPaymentsRequest:
    return pb.BatchAssessPaymentsRequest(
        items=[pb.AssessPaymentItem(idempotency_key=key, request=request) for key, request in items]
    )


def _rules(assessment: pb.Assessment) -> list[str]:
    return [rule.rule for rule in assessment.fired_rules]


def _keys(dsn: str, merchant: str) -> list[str]:
    with psycopg.connect(dsn) as connection:
        rows = connection.execute(
            "SELECT key FROM assessments WHERE merchant_id = %s ORDER BY key", (merchant,)
        )
        return [str(key) for (key,) in rows]


async def test_an_ordinary_payment_is_approved_and_can_be_read_again(
    stub: FraudServiceStub, merchant: str
) -> None:
    request = _request(
        merchant, card_bin="424242", customer_id="c", email="a@b", ip_address="::1", billing_country="GB"
    )
    assessment = await _assess(stub, "k1", request)
    assert (assessment.decision, assessment.score_milli, assessment.degraded) == (APPROVE, 0, False)
    assert assessment.assessment_id.startswith("fra_")
    assert assessment.payment_id == "pay_1"
    read = pb.GetAssessmentRequest(merchant_id=merchant, assessment_id=assessment.assessment_id)
    assert (await stub.GetAssessment(read)).assessment == assessment
    read.merchant_id = "another"
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.GetAssessment(read)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_decline_names_its_rules_heaviest_first_and_is_stored_so(
    stub: FraudServiceStub, merchant: str
) -> None:
    request = _request(merchant, 6_000_000, card_bin="40000082", billing_country="FR")
    assessment = await _assess(stub, "k1", request)
    assert (assessment.decision, assessment.score_milli) == (DECLINE, 1_000)
    assert [(rule.rule, rule.score_milli) for rule in assessment.fired_rules] == [
        ("amount_extreme", 1_000),
        ("card_sum_1m", 400),
        ("amount_high", 300),
        ("bin_country", 250),
    ]
    assert assessment.fired_rules[0].explanation == "60000.00 USD is more than 50000.00 USD"
    read = pb.GetAssessmentRequest(merchant_id=merchant, assessment_id=assessment.assessment_id)
    assert (await stub.GetAssessment(read)).assessment == assessment


async def test_a_repeated_key_returns_the_first_assessment_and_counts_once(
    stub: FraudServiceStub, merchant: str
) -> None:
    first = await _assess(stub, "k0", _request(merchant))
    for _ in range(15):
        call = stub.AssessPayment(_request(merchant), metadata=with_key("k0"))
        assert (await call).assessment == first
        assert ("idempotent-replayed", "true") in tuple(await call.trailing_metadata())
    for n in range(1, 10):
        assert (await _assess(stub, f"k{n}", _request(merchant))).decision == APPROVE
    assert _rules(await _assess(stub, "k10", _request(merchant))) == ["card_velocity_1m"]


async def test_a_key_of_another_request_is_refused_and_counts_nothing(
    stub: FraudServiceStub, merchant: str
) -> None:
    await _assess(stub, "k0", _request(merchant))
    for n in range(15):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await _assess(stub, "k0", _request(merchant, 6_000 + n))
        assert from_call(caught.value).reason == "IDEMPOTENCY_KEY_REUSED"
    for n in range(1, 10):
        assert (await _assess(stub, f"k{n}", _request(merchant))).decision == APPROVE


async def test_a_key_twice_in_a_batch_has_one_effect_and_two_equal_answers(
    stub: FraudServiceStub, keys_stored: Callable[[], list[str]], merchant: str
) -> None:
    same, other = _request(merchant), _request(merchant, 1)
    batch = _batch(("a", same), ("b", same), ("a", same), ("a", other))
    results = (await stub.BatchAssessPayments(batch)).results
    assert results[0].response == results[2].response
    assert [result.replayed for result in results] == [False, False, True, False]
    assert results[3].failure.reason == "IDEMPOTENCY_KEY_REUSED"
    assert results[1].response.assessment.assessment_id != results[0].response.assessment.assessment_id
    again = (await stub.BatchAssessPayments(batch)).results
    assert [r.response for r in again] == [r.response for r in results]
    assert [result.replayed for result in again] == [True, True, True, False]
    assert keys_stored() == ["a", "b"]


async def test_one_key_fifty_times_at_once_is_judged_once(
    services: Services, valkey: EmbeddedValkey, merchant: str
) -> None:
    """Through two processes, so that it is the database that decides."""
    targets = [services.start("fraud", valkey_url=valkey.url).target for _ in range(2)]
    async with open_channel(targets[0], caller="test") as one, open_channel(targets[1], caller="test") as two:
        stubs = itertools.cycle([FraudServiceStub(one), FraudServiceStub(two)])
        requests = [_request(merchant), _request(merchant, 1)]
        calls = [_assess(next(stubs), "k", requests[n % 5 == 0]) for n in range(50)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
    answers = {o.SerializeToString() for o in outcomes if isinstance(o, pb.Assessment)}
    refusals = {from_call(o).reason for o in outcomes if isinstance(o, grpc.aio.AioRpcError)}
    assert (len(answers), refusals) == (1, {"IDEMPOTENCY_KEY_REUSED"})
    assert sum(isinstance(o, pb.Assessment) for o in outcomes) in {10, 40}
    assert _keys(services.dsn("fraud"), merchant) == ["k"]


async def test_a_repeat_from_beyond_the_memory_of_the_windows_is_not_counted(
    services: Services, valkey: EmbeddedValkey, merchant: str, tmp_path: Path
) -> None:
    rules = RULES_FILE.read_text().replace("short_seconds = 60", "short_seconds = 1")
    rules = rules.replace("long_seconds = 3600", "long_seconds = 2")
    (tmp_path / "rules.toml").write_text(rules)
    process = services.start("fraud", valkey_url=valkey.url, rules_file=str(tmp_path / "rules.toml"))
    async with open_channel(process.target, caller="test") as channel:
        stub = FraudServiceStub(channel)
        keys = [f"old{n}" for n in range(10)]
        for key in keys:
            await _assess(stub, key, _request(merchant))
        await asyncio.sleep(2.1)
        for key in keys:
            await _assess(stub, key, _request(merchant))
        assert _rules(await _assess(stub, "new", _request(merchant))) == []


async def test_the_members_of_a_set_count_each_other_in_order(stub: FraudServiceStub, merchant: str) -> None:
    other = _request(merchant, card_token="tok_2")
    batch = _batch(*((f"k{n:02}", _request(merchant)) for n in range(12)), ("other", other))
    results = (await stub.BatchAssessPayments(batch)).results
    decisions = [result.response.assessment.decision for result in results]
    assert decisions == [APPROVE] * 10 + [DECLINE] * 2 + [APPROVE]


async def test_many_cards_with_small_payments_from_one_address_are_declined(
    stub: FraudServiceStub, merchant: str
) -> None:
    def batch(name: str, amount_minor: int, ip: str) -> pb.BatchAssessPaymentsRequest:
        cards = [_request(merchant, amount_minor, card_token=f"{name}{n}", ip_address=ip) for n in range(22)]
        return _batch(*((f"{name}{n:02}", request) for n, request in enumerate(cards)))

    small = (await stub.BatchAssessPayments(batch("a", 100, "203.0.113.1"))).results
    assert [r.response.assessment.decision for r in small] == [APPROVE] * 20 + [DECLINE] * 2
    assert _rules(small[-1].response.assessment) == ["card_testing"]
    ordinary = (await stub.BatchAssessPayments(batch("b", 5_000, "203.0.113.2"))).results
    assert {r.response.assessment.decision for r in ordinary} == {APPROVE}


@pytest.mark.parametrize(
    ("subject", "listed", "trait"),
    [
        (pb.LIST_SUBJECT_CARD, "tok_9", {"card_token": "tok_9"}),
        (pb.LIST_SUBJECT_CUSTOMER, "cus_9", {"customer_id": "cus_9"}),
        (pb.LIST_SUBJECT_EMAIL, "Ann@Example.com", {"email": "aNN@example.COM"}),
        (pb.LIST_SUBJECT_IP, "2001:db8::7", {"ip_address": "2001:DB8:0::0:7"}),
        (pb.LIST_SUBJECT_IP, "203.0.113.9", {"ip_address": "::ffff:203.0.113.9"}),
    ],
)
async def test_a_blocked_value_is_declined_at_once_and_until_it_is_removed(
    stub: FraudServiceStub, merchant: str, subject: pb.ListSubject, listed: str, trait: dict[str, Any]
) -> None:
    entry: dict[str, Any] = {
        "merchant_id": merchant,
        "kind": pb.LIST_KIND_BLOCK,
        "subject": subject,
        "value": listed,
    }
    assert (await _assess(stub, "k1", _request(merchant, **trait))).decision == APPROVE
    await stub.AddListEntry(pb.AddListEntryRequest(**entry), metadata=with_key("a"))
    assert _rules(await _assess(stub, "k2", _request(merchant, **trait))) == ["block_list"]
    assert (await _assess(stub, "k3", _request(next(MERCHANTS), **trait))).decision == APPROVE
    for key in ("r", "r", "r2"):
        await stub.RemoveListEntry(pb.RemoveListEntryRequest(**entry), metadata=with_key(key))
    assert (await _assess(stub, "k4", _request(merchant, **trait))).decision == APPROVE
    assert (await _assess(stub, "k2", _request(merchant, **trait))).decision == DECLINE


async def test_an_allowed_value_is_approved_unless_a_block_list_names_the_payment_too(
    stub: FraudServiceStub, merchant: str
) -> None:
    request = _request(merchant, 9_000_000, customer_id="cus_1")
    assert (await _assess(stub, "k1", request)).decision == DECLINE
    allow = pb.AddListEntryRequest(
        merchant_id=merchant, kind=pb.LIST_KIND_ALLOW, subject=pb.LIST_SUBJECT_CUSTOMER, value="cus_1"
    )
    await stub.AddListEntry(allow, metadata=with_key("a1"))
    allowed = await _assess(stub, "k2", request)
    assert (allowed.decision, allowed.score_milli, _rules(allowed)) == (APPROVE, 0, ["allow_list"])
    block = pb.AddListEntryRequest(
        merchant_id=merchant, kind=pb.LIST_KIND_BLOCK, subject=pb.LIST_SUBJECT_CARD, value="tok_1"
    )
    await stub.AddListEntry(block, metadata=with_key("a2"))
    assert _rules(await _assess(stub, "k3", request)) == ["block_list"]


async def test_an_entry_that_stands_is_returned_whatever_is_added_again(
    stub: FraudServiceStub, merchant: str
) -> None:
    request = pb.AddListEntryRequest(
        merchant_id=merchant,
        kind=pb.LIST_KIND_BLOCK,
        subject=pb.LIST_SUBJECT_EMAIL,
        value="Ann@Example.com",
        note="chargeback",
    )
    first = (await stub.AddListEntry(request, metadata=with_key("a"))).entry
    assert (first.value, first.note) == ("ann@example.com", "chargeback")
    request.note = "another reason"
    assert (await stub.AddListEntry(request, metadata=with_key("b"))).entry == first
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.AddListEntry(request, metadata=with_key("a"))
    assert from_call(caught.value).reason == "IDEMPOTENCY_KEY_REUSED"


async def test_list_entries_come_in_pages_without_gaps_or_repeats(
    stub: FraudServiceStub, merchant: str
) -> None:
    wanted = set()
    for n in range(7):
        kind = pb.LIST_KIND_ALLOW if n % 2 else pb.LIST_KIND_BLOCK
        add = pb.AddListEntryRequest(
            merchant_id=merchant, kind=kind, subject=pb.LIST_SUBJECT_CARD, value=f"tok_{n}"
        )
        await stub.AddListEntry(add, metadata=with_key(f"a{n}"))
        wanted.add((kind, f"tok_{n}"))
    seen, token, pages = [], "", 0
    while pages == 0 or token:
        request = pb.ListListEntriesRequest(merchant_id=merchant, page_size=3, page_token=token)
        page = await stub.ListListEntries(request)
        seen += [(entry.kind, entry.value) for entry in page.entries]
        token, pages = page.next_page_token, pages + 1
    assert (pages, len(seen), set(seen)) == (3, 7, wanted)
    assert not (await stub.ListListEntries(pb.ListListEntriesRequest(merchant_id="another"))).entries


async def test_a_list_changed_through_another_process_is_known_within_the_refresh_time(
    services: Services, valkey: EmbeddedValkey, merchant: str
) -> None:
    first, second = (
        services.start("fraud", valkey_url=valkey.url, lists_refresh_seconds="0.2").target for _ in range(2)
    )
    entry: dict[str, Any] = {
        "merchant_id": merchant,
        "kind": pb.LIST_KIND_BLOCK,
        "subject": pb.LIST_SUBJECT_CARD,
        "value": "t",
    }
    async with open_channel(first, caller="test") as here, open_channel(second, caller="test") as there:
        request = _request(merchant, card_token="t")
        await FraudServiceStub(here).AddListEntry(pb.AddListEntryRequest(**entry), metadata=with_key("a"))
        await asyncio.sleep(0.6)
        assert (await _assess(FraudServiceStub(there), "k1", request)).decision == DECLINE
        await FraudServiceStub(here).RemoveListEntry(
            pb.RemoveListEntryRequest(**entry), metadata=with_key("r")
        )
        await asyncio.sleep(0.6)
        assert (await _assess(FraudServiceStub(there), "k2", request)).decision == APPROVE


async def test_lists_and_assessments_outlive_a_kill(
    services: Services, valkey: EmbeddedValkey, merchant: str
) -> None:
    process = services.start("fraud", valkey_url=valkey.url)
    entry = pb.AddListEntryRequest(
        merchant_id=merchant, kind=pb.LIST_KIND_BLOCK, subject=pb.LIST_SUBJECT_CARD, value="tok_1"
    )
    async with open_channel(process.target, caller="test") as channel:
        stub = FraudServiceStub(channel)
        before = await _assess(stub, "k1", _request(merchant))
        await stub.AddListEntry(entry, metadata=with_key("a"))
    process.kill()
    process.start()
    async with open_channel(process.target, caller="test") as channel:
        stub = FraudServiceStub(channel)
        assert await _assess(stub, "k1", _request(merchant)) == before
        assert (await _assess(stub, "k2", _request(merchant))).decision == DECLINE


Change = Callable[[pb.AssessPaymentRequest], object]


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("merchant_id", lambda r: r.ClearField("merchant_id")),
        ("merchant_id", lambda r: setattr(r, "merchant_id", "m" * 65)),
        ("payment_id", lambda r: r.ClearField("payment_id")),
        ("payment_id", lambda r: setattr(r, "payment_id", "p\x00")),
        ("subject.amount.amount_minor", lambda r: setattr(r.subject.amount, "amount_minor", 0)),
        ("subject.amount.amount_minor", lambda r: setattr(r.subject.amount, "amount_minor", -1)),
        ("subject.amount.amount_minor", lambda r: setattr(r.subject.amount, "amount_minor", 2**63 - 1)),
        ("subject.amount.currency", lambda r: setattr(r.subject.amount, "currency", "XXX")),
        ("subject.amount.currency", lambda r: r.ClearField("subject")),
        ("subject.card_token", lambda r: r.subject.ClearField("card_token")),
        ("subject.card_token", lambda r: setattr(r.subject, "card_token", "t" * 129)),
        ("subject.card_bin", lambda r: setattr(r.subject, "card_bin", "12345")),
        ("subject.card_bin", lambda r: setattr(r.subject, "card_bin", "123456789")),
        ("subject.card_bin", lambda r: setattr(r.subject, "card_bin", "12345٦")),
        ("subject.customer_id", lambda r: setattr(r.subject, "customer_id", "c" * 65)),
        ("subject.email", lambda r: setattr(r.subject, "email", "a@" + "b" * 199)),
        ("subject.email", lambda r: setattr(r.subject, "email", "nobody")),
        ("subject.ip_address", lambda r: setattr(r.subject, "ip_address", "203.0.113.256")),
        ("subject.ip_address", lambda r: setattr(r.subject, "ip_address", "fe80::1%eth0")),
        ("subject.billing_country", lambda r: setattr(r.subject, "billing_country", "gb")),
    ],
)
async def test_a_field_at_fault_is_named_and_nothing_is_stored(
    stub: FraudServiceStub, keys_stored: Callable[[], list[str]], merchant: str, field: str, change: Change
) -> None:
    request = _request(merchant)
    change(request)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await _assess(stub, "k1", request)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert field in [violation.field for violation in from_call(caught.value).violations]
    result = (await stub.BatchAssessPayments(_batch(("k1", request), ("k2", _request(merchant))))).results
    assert field in [violation.field for violation in result[0].failure.violations]
    assert result[1].response.assessment.decision == APPROVE
    assert keys_stored() == ["k2"]


async def test_a_call_without_a_key_and_a_batch_of_a_wrong_size_are_refused(
    stub: FraudServiceStub, keys_stored: Callable[[], list[str]], merchant: str
) -> None:
    entry: dict[str, Any] = {"merchant_id": merchant, "kind": 1, "subject": 1, "value": "v"}
    calls: list[Any] = [
        stub.AssessPayment(_request(merchant)),
        stub.AddListEntry(pb.AddListEntryRequest(**entry)),
        stub.RemoveListEntry(pb.RemoveListEntryRequest(**entry)),
        stub.BatchAssessPayments(_batch()),
        stub.BatchAssessPayments(_batch(*((f"k{n}", _request(merchant)) for n in range(1_001)))),
    ]
    for call in calls:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert keys_stored() == []
    assert not (await stub.ListListEntries(pb.ListListEntriesRequest(merchant_id=merchant))).entries


@pytest.mark.parametrize(
    ("field", "entry"),
    [
        ("merchant_id", {"merchant_id": ""}),
        ("kind", {"kind": 0}),
        ("kind", {"kind": 99}),
        ("subject", {"subject": 0}),
        ("value", {"value": ""}),
        ("value", {"value": "v" * 201}),
        ("value", {"subject": pb.LIST_SUBJECT_IP, "value": "host"}),
        ("value", {"subject": pb.LIST_SUBJECT_EMAIL, "value": "nobody"}),
        ("note", {"note": "n" * 501}),
    ],
)
async def test_a_list_entry_at_fault_is_refused_with_the_field(
    stub: FraudServiceStub, merchant: str, field: str, entry: dict[str, Any]
) -> None:
    values: dict[str, Any] = {
        "merchant_id": merchant,
        "kind": pb.LIST_KIND_BLOCK,
        "subject": pb.LIST_SUBJECT_CARD,
        "value": "v",
    }
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.AddListEntry(pb.AddListEntryRequest(**(values | entry)), metadata=with_key("a"))
    assert [violation.field for violation in from_call(caught.value).violations] == [field]
    assert not (await stub.ListListEntries(pb.ListListEntriesRequest(merchant_id=merchant))).entries


@pytest.mark.parametrize("token", ["x", "e30=", "WyJhIl0=", "WzEsMiwzXQ==", "WyIAIiwiIiwiIl0="])
async def test_a_page_token_that_nobody_gave_is_refused(
    stub: FraudServiceStub, merchant: str, token: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.ListListEntries(pb.ListListEntriesRequest(merchant_id=merchant, page_token=token))
    assert [violation.field for violation in from_call(caught.value).violations] == ["page_token"]


@pytest.mark.parametrize("outage", [signal.SIGKILL, signal.SIGSTOP])
async def test_without_valkey_payments_are_judged_at_once_by_the_other_rules(
    services: Services, own_valkey: EmbeddedValkey, merchant: str, outage: signal.Signals
) -> None:
    process = services.start("fraud", valkey_url=own_valkey.url, valkey_probe_seconds="0.3")
    async with open_channel(process.target, caller="test") as channel:
        stub = FraudServiceStub(channel)
        for n in range(20):
            await _assess(stub, f"before{n}", _request(merchant))
        assert not (await _assess(stub, "other", _request(merchant, card_token="tok_2"))).degraded
        assert own_valkey.pid is not None
        os.kill(own_valkey.pid, outage)
        waited = []
        for n in range(30):
            started = time.monotonic()
            small = await _assess(stub, f"small{n}", _request(merchant))
            waited.append(time.monotonic() - started)
            assert (small.decision, small.degraded, _rules(small)) == (APPROVE, True, [])
        assert max(waited) < 2
        assert sorted(waited)[15] < 0.09, "they did not even ask"
        large = await _assess(stub, "large", _request(merchant, 250_001))
        assert (large.decision, large.degraded, _rules(large)) == (DECLINE, True, ["degraded_amount"])

        if outage is signal.SIGKILL:
            own_valkey.start()
        else:
            os.kill(own_valkey.pid, signal.SIGCONT)
        await asyncio.sleep(0.5)
        after = await _assess(stub, "after", _request(merchant))
        assert (after.decision, after.degraded, _rules(after)) == (DECLINE, False, ["card_velocity_1m"])
        assert await _assess(stub, "small0", _request(merchant)) == await _assess(
            stub, "small0", _request(merchant)
        )
        assert (await _assess(stub, "small0", _request(merchant))).degraded


async def test_fraud_starts_without_valkey_and_uses_it_when_it_comes(
    services: Services, own_valkey: EmbeddedValkey, merchant: str
) -> None:
    own_valkey.stop()
    process = services.start("fraud", valkey_url=own_valkey.url, valkey_probe_seconds="0.2")
    async with open_channel(process.target, caller="test") as channel:
        stub = FraudServiceStub(channel)
        for n in range(5):
            assert (await _assess(stub, f"early{n}", _request(merchant))).degraded
        own_valkey.start()
        await asyncio.sleep(0.3)
        assert not (await _assess(stub, "late", _request(merchant))).degraded


def test_a_start_with_mistakes_reports_all_of_them_and_serves_nothing(tmp_path: Path) -> None:
    rules = RULES_FILE.read_text().replace("decline_above_milli = 800", "decline_above_milli = 1001")
    (tmp_path / "rules.toml").write_text(rules.replace("score_milli = 300", "score_milli = -3"))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PAYMESH_")} | {
        "PAYMESH_FRAUD_LISTEN": "127.0.0.1:1",
        "PAYMESH_FRAUD_VALKEY_URL": "http://nowhere",
        "PAYMESH_FRAUD_VALKEY_TIMEOUT_MS": "0",
        "PAYMESH_FRAUD_RULES_FILE": str(tmp_path / "rules.toml"),
    }
    ended = subprocess.run(
        [sys.executable, "-m", "services.fraud"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 2
    for mistake in (
        "PAYMESH_FRAUD_DATABASE_DSN",
        "PAYMESH_FRAUD_VALKEY_URL",
        "PAYMESH_FRAUD_VALKEY_TIMEOUT_MS",
        "PAYMESH_FRAUD_RULES_FILE",
        "decline_above_milli: Input should be less than 1000",
        "amount.amount_high.score_milli: Input should be greater than or equal to 0",
    ):
        assert mistake in ended.stderr
