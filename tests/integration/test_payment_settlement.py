"""Settlement in payment with a real bank beside it: days that are settled once whatever is run twice or at once,
answers that are lost, processes that are killed at any moment, refunds that come after, and merchants who owe.

One set of processes serves all tests; each test is a merchant of its own, and after each one the books of both sides
are compared, item by item.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta

import pytest
import pytest_asyncio

from deploy.local.stores import EmbeddedPostgres, EmbeddedValkey
from paymesh.bank.v1 import bank_pb2
from paymesh.channel import open_channel, with_key
from paymesh.errors import Kind, PaymeshCallError
from paymesh.money.v1 import money_pb2
from paymesh.payment.v1 import ledger_pb2
from paymesh.payment.v1 import payment_pb2 as payments
from paymesh.payment.v1 import settlement_pb2 as pb
from tests.conftest import Services
from tests.payment_mesh import (
    CAPTURED,
    PARTIALLY_REFUNDED,
    REFUNDED,
    REFUNDING,
    SETTLED,
    PaymentMesh,
    Shop,
    failure_of,
    until,
)
from tests.settlements import COMPLETED, Till, assert_settlements_agree, today

LOST_AFTER = bank_pb2.FAULT_KIND_ANSWER_LOST_AFTER
LOST_BEFORE = bank_pb2.FAULT_KIND_ANSWER_LOST_BEFORE
SETTLE, PAYOUT = bank_pb2.FAULT_TARGET_SETTLE, bank_pb2.FAULT_TARGET_PAYOUT
LOOKUP, REFUND = bank_pb2.FAULT_TARGET_LOOKUP, bank_pb2.FAULT_TARGET_REFUND

STEADY = {
    "bank_seconds": "2",
    "fraud_seconds": "2",
    "resolve_first_ms": "20",
    "resolve_max_ms": "100",
    "resolve_poll_ms": "20",
    "intent_seconds": "3",
    "settle_poll_ms": "20",
    "settle_round_seconds": "2",
    "settle_look_seconds": "3600",
}


@pytest.fixture(scope="module")
def mesh(
    postgres: EmbeddedPostgres, valkey: EmbeddedValkey, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PaymentMesh]:
    services = Services(postgres, tmp_path_factory.mktemp("payment"))
    mesh = PaymentMesh.start(services, valkey.url, {"soft_deadline_ms": "60000"}, **STEADY)
    yield mesh
    mesh.close()
    services.stop()


@pytest_asyncio.fixture
async def till(mesh: PaymentMesh, request: pytest.FixtureRequest) -> AsyncIterator[Till]:
    async with Shop(mesh, request.node.name) as shop:
        try:
            yield Till(shop)
        finally:
            await shop.calm()
        await mesh.assert_books_agree(shop.merchant)
        assert_settlements_agree(mesh, shop.merchant)


async def _captured(till: Till, order: str, amount_minor: int, refund_minor: int = 0) -> str:
    """Id of a payment that was captured, and given back in part or (as much) in full."""
    shop = till.shop
    payment_id = (await shop.authorize(f"{order}/a", shop.wish(order, amount_minor))).payment_id
    await shop.move("capture", f"{order}/c", payment_id)
    if refund_minor:
        await shop.move("refund", f"{order}/r", payment_id, refund_minor)
    return payment_id


async def _plan(till: Till, basis_points: int, fixed_minor: int) -> None:
    plan = ledger_pb2.FeePlan(basis_points=basis_points, fixed_minor=fixed_minor)
    request = ledger_pb2.SetFeePlanRequest(merchant_id=till.shop.merchant, currency="GBP", plan=plan)
    await till.shop.ledger.SetFeePlan(request, metadata=with_key("plan"))


async def _balances(till: Till) -> dict[str, int]:
    request = ledger_pb2.GetTrialBalanceRequest(merchant_id=till.shop.merchant)
    found = (await till.shop.ledger.GetTrialBalance(request)).accounts
    return {one.account: one.balance.amount_minor for one in found if one.balance.amount_minor}


def _gbp(amount_minor: int) -> money_pb2.Money:
    return money_pb2.Money(amount_minor=amount_minor, currency="GBP")


async def test_a_day_is_settled_and_the_merchant_paid(till: Till) -> None:
    await _plan(till, 200, 10)
    whole = await _captured(till, "o1", 10_000)
    part = await _captured(till, "o2", 5_000, 2_000)
    none = await _captured(till, "o3", 1_000, 1_000)
    made = await till.settle()
    assert (made.number, made.items, made.date) == (1, 5, today())
    assert (made.captured, made.refunded) == (_gbp(16_000), _gbp(3_000))
    # Of ours, 2 % and 10 each: 210, 110, 30. Of the bank's, 0.6 % and 5 each: 65, 35, 11.
    assert (made.fees, made.due, made.payout) == (_gbp(350), _gbp(12_650), _gbp(12_650))
    assert (made.processor_fees, made.net) == (_gbp(111), _gbp(12_889))
    assert made.payout_state == pb.PAYOUT_STATE_PAID
    states = [(await till.shop.get(one)).payment for one in (whole, part, none)]
    assert [one.state for one in states] == [SETTLED, PARTIALLY_REFUNDED, REFUNDED]
    assert [one.settled.amount_minor for one in states] == [10_000, 3_000, 0]
    assert (await till.shop.story(none))[-1] == "Settled", "what came to nothing was settled, too"
    # What is left with us: our fees, less the bank's.
    assert await _balances(till) == {"cash": 239, "fees": -350, "processor_fees": 111}


async def test_a_refund_after_the_settlement_is_taken_off_the_next(till: Till) -> None:
    payment_id = await _captured(till, "o1", 1_000)
    await till.settle()
    assert (await till.shop.get(payment_id)).payment.state == SETTLED
    refunded = await till.shop.move("refund", "r", payment_id, 400)
    assert (refunded.state, refunded.settled.amount_minor) == (PARTIALLY_REFUNDED, 1_000)
    second = await till.settle()
    assert (second.number, second.net, second.payout_state) == (2, _gbp(-400), pb.PAYOUT_STATE_CARRIED)
    assert (await till.shop.get(payment_id)).payment.settled.amount_minor == 600
    # The merchant owes us 400, which his next day pays.
    assert (await _balances(till))["merchant_payable"] == 400
    await _captured(till, "o2", 1_000)
    third = await till.settle()
    assert (third.brought_forward, third.due, third.payout) == (_gbp(-400), _gbp(1_000), _gbp(600))
    assert "merchant_payable" not in await _balances(till)


async def test_a_run_that_is_repeated_settles_nothing_more(till: Till) -> None:
    await _captured(till, "o1", 1_000)
    assert await till.run((datetime.now(UTC).date() - timedelta(days=1)).isoformat()) == 0
    assert [await till.run() for _ in range(3)] == [1, 0, 0]
    first = await till.completed()
    assert await till.run() == 0
    assert await till.list_all() == first
    assert (
        len(till.shop.mesh.on_bank("SELECT 1 FROM settlements WHERE merchant_id = %s", till.shop.merchant))
        == 1
    )


async def test_runs_at_once_in_two_processes_settle_everything_once(till: Till) -> None:
    other = till.shop.mesh.another_payment(**STEADY)
    try:
        for n in range(6):
            await _captured(till, f"o{n}", 100)
        async with open_channel(other.target, caller="other", wait_for_ready=True) as channel:
            tills = [till, Till(till.shop, channel)]
            made = await asyncio.gather(*(tills[n % 2].run() for n in range(12)))
        assert sum(made) == 1
        (one,) = await till.completed()
        assert one.items == 6
    finally:
        other.kill()


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        (LOST_AFTER, SETTLE),
        (LOST_BEFORE, SETTLE),
        (LOST_AFTER, PAYOUT),
        (LOST_BEFORE, PAYOUT),
        (bank_pb2.FAULT_KIND_ERROR, SETTLE),
        (bank_pb2.FAULT_KIND_REFUSE_CONNECTION, PAYOUT),
    ],
)
async def test_a_lost_answer_is_found_out_and_money_moves_once(
    till: Till, kind: bank_pb2.FaultKind.ValueType, target: bank_pb2.FaultTarget.ValueType
) -> None:
    await _captured(till, "o1", 1_000)
    await till.shop.arm(kind, target, strikes=2)
    await till.shop.arm(LOST_AFTER, LOOKUP, strikes=2)
    assert (await till.settle()).payout == _gbp(1_000)
    assert till.shop.mesh.on_bank(
        "SELECT kind, amount_minor FROM account_lines WHERE merchant_id = %s ORDER BY kind",
        till.shop.merchant,
    ) == [("PAYOUT", -1_000), ("SETTLEMENT", 989)]


async def test_a_settlement_that_waits_says_why(till: Till) -> None:
    await _captured(till, "o1", 1_000)
    await till.shop.arm(LOST_BEFORE, SETTLE)
    await till.run()

    async def look() -> pb.Settlement | None:
        (one,) = await till.list_all(open_only=True)
        return one if one.waits_for else None

    waiting = await until(look)
    assert (waiting.state, waiting.waits_for) == (pb.SETTLEMENT_STATE_SETTLING, "ANSWER_LOST")
    assert not waiting.HasField("net")
    await till.shop.calm()
    await till.completed()
    assert await till.list_all(open_only=True) == []


async def test_a_payout_that_is_refused_is_part_of_the_next(till: Till) -> None:
    await _captured(till, "o1", 1_000)
    await till.shop.arm(bank_pb2.FAULT_KIND_REFUSE, PAYOUT, strikes=1)
    first = await till.settle()
    assert (first.payout_state, first.payout_refusal) == (pb.PAYOUT_STATE_REFUSED, "ACCOUNT_CLOSED")
    assert (await _balances(till))["merchant_payable"] == -1_000
    await _captured(till, "o2", 500)
    second = await till.settle()
    assert (second.brought_forward, second.payout) == (_gbp(1_000), _gbp(1_500))
    assert "payouts" not in await _balances(till)


@pytest.mark.parametrize("target", [SETTLE, PAYOUT])
async def test_a_process_killed_while_the_bank_is_asked_is_followed_by_one_that_finds_out(
    mesh: PaymentMesh, valkey: EmbeddedValkey, target: bank_pb2.FaultTarget.ValueType
) -> None:
    dsn = mesh.services._postgres.create_database(f"killed_{os.urandom(4).hex()}")
    apart = mesh.apart(dsn, **STEADY | {"bank_seconds": "30"})
    async with Shop(apart, f"killed-{target}") as shop:
        till = Till(shop)
        await _captured(till, "o1", 1_000)
        # Carried out a second after the process that asked is dead.
        await shop.arm(bank_pb2.FAULT_KIND_DELAY, target, strikes=1, delay_ms=1_000)
        await till.run()
        await shop.struck()
        apart.payment.kill()
        apart.payment.start()
        (one,) = await till.completed()
        assert one.payout_state == pb.PAYOUT_STATE_PAID
        assert len(apart.on_bank("SELECT 1 FROM account_lines WHERE merchant_id = %s", shop.merchant)) == 2
        await apart.assert_books_agree(shop.merchant)
        assert_settlements_agree(apart, shop.merchant)
    apart.payment.kill()
    apart.close()
    mesh.services._postgres.drop_database(dsn.rsplit("/", 1)[-1].split("?")[0])


async def test_a_process_killed_again_and_again_settles_everything_once(mesh: PaymentMesh) -> None:
    dsn = mesh.services._postgres.create_database(f"killed_{os.urandom(4).hex()}")
    apart = mesh.apart(dsn, **STEADY | {"settle_round_seconds": "1"})
    count = 250
    async with Shop(apart, "again") as shop:
        till = Till(shop)
        wishes = [(f"a{n}", shop.wish(f"o{n}", 100 + n, token=f"tok_visa_{n}")) for n in range(count)]
        made = [one.response.payment.payment_id for one in await shop.authorize_all(*wishes)]
        assert all(made)
        captures = [(f"c{n}", shop.move_wish("capture", one)) for n, one in enumerate(made)]
        assert all(
            one.response.payment.state == CAPTURED for one in await shop.move_all("capture", *captures)
        )
        for pause_ms in (1, 150):
            # Whether this run has ended or not, what it has left is carried on by the next process.
            run = asyncio.ensure_future(till.run())
            await asyncio.sleep(pause_ms / 1000)
            apart.payment.kill()
            await asyncio.gather(run, return_exceptions=True)
            apart.payment.start()
        await till.run()
        found = await till.completed(60)
        assert [one.items for one in found] == [count]
        assert {(await shop.get(one)).payment.state for one in made[:: count // 5]} == {SETTLED}
        await apart.assert_books_agree(shop.merchant)
        assert_settlements_agree(apart, shop.merchant)
    apart.payment.kill()
    apart.close()
    mesh.services._postgres.drop_database(dsn.rsplit("/", 1)[-1].split("?")[0])


async def test_a_payment_that_is_busy_learns_of_its_settlement_when_it_is_not(till: Till) -> None:
    busy, free = await _captured(till, "o1", 1_000), await _captured(till, "o2", 500)
    await till.shop.arm(LOST_BEFORE, REFUND)
    await till.shop.arm(LOST_AFTER, LOOKUP)
    with pytest.raises(PaymeshCallError):
        await till.shop.move("refund", "r", busy, 300)
    await till.run()
    await till.shop.becomes(free, SETTLED)

    async def look() -> pb.Settlement | None:
        (one,) = await till.list_all()
        return one if one.payout_state == pb.PAYOUT_STATE_PAID else None

    posting = await until(look)
    assert (posting.state, posting.items_waiting) == (pb.SETTLEMENT_STATE_POSTING, 1)
    assert (await till.shop.get(busy)).payment.state == REFUNDING
    await till.shop.calm()
    await till.completed()
    payment = (await till.shop.get(busy)).payment
    assert (payment.state, payment.settled.amount_minor) == (PARTIALLY_REFUNDED, 1_000)


async def test_what_was_captured_in_parts_is_settled_while_the_rest_is_held(till: Till) -> None:
    shop = till.shop
    payment_id = (await shop.authorize("a", shop.wish("o1", 1_000))).payment_id
    await shop.move("capture", "c1", payment_id, 300)
    await till.settle()
    payment = (await shop.get(payment_id)).payment
    assert (payment.state, payment.settled.amount_minor) == (payments.PAYMENT_STATE_PARTIALLY_CAPTURED, 300)
    await shop.move("capture", "c2", payment_id)
    assert (await shop.get(payment_id)).payment.state == CAPTURED
    await till.settle()
    assert (await shop.get(payment_id)).payment.state == SETTLED


async def test_items_have_what_a_statement_is_compared_by(till: Till) -> None:
    await _plan(till, 100, 0)
    payment_id = await _captured(till, "o1", 1_000, 400)
    await till.stub.RunSettlement(pb.RunSettlementRequest(merchant_id=till.shop.merchant, date=today()))
    (settlement,) = await till.completed()
    payout, capture, refund = items = await till.items()
    assert [one.kind for one in items] == [
        pb.SETTLEMENT_ITEM_KIND_PAYOUT,
        pb.SETTLEMENT_ITEM_KIND_CAPTURE,
        pb.SETTLEMENT_ITEM_KIND_REFUND,
    ]
    assert (payout.amount, capture.amount, refund.amount) == (_gbp(590), _gbp(1_000), _gbp(400))
    assert (capture.fee, capture.processor_fee) == (_gbp(10), _gbp(11))
    assert (capture.operation_key, refund.operation_key) == (
        f"{payment_id}/capture/3",
        f"{payment_id}/refund/5",
    )
    assert payout.operation_key == f"{settlement.settlement_id}/payout"
    assert {one.booked_on for one in items} == {today()}
    at_bank = till.shop.mesh.on_bank(
        "SELECT operation_id, key, batch_id, value_on::text FROM money_operations WHERE merchant_id = %s",
        till.shop.merchant,
    )
    assert {
        (one.bank_reference, one.operation_key, one.batch_reference, one.value_on)
        for one in (capture, refund)
    } == set(at_bank)
    assert await till.items(limit=1) == items, "page by page it is the same"
    assert await till.items(from_date=today(), to_date=today()) == items
    assert await till.items(booked_from=today(), booked_to=today()) == items
    assert await till.items(booked_to="2026-01-01") == []
    assert await till.items(from_date="2999-01-01") == []


async def test_what_is_in_no_settlement_yet_is_listed_apart(till: Till) -> None:
    await _captured(till, "o1", 1_000)
    await till.settle()
    later = [await _captured(till, f"o{n}", 100) for n in (2, 3)]
    # A run for a day before all of this settles nothing, and gathers what there is.
    assert await till.run("2020-01-01") == 0
    for limit in (1, 100):
        open_ = await till.items(unsettled_only=True, limit=limit)
        assert [one.payment_id for one in open_] == later
        assert {(one.settlement_id, one.booked_on, one.HasField("processor_fee")) for one in open_} == {
            ("", "", False)
        }


async def test_settlements_are_found_and_paged(till: Till) -> None:
    for n in range(3):
        await _captured(till, f"o{n}", 100)
        await till.settle()
    everything = await till.list_all()
    token = ""
    found: list[pb.Settlement] = []
    for _ in range(3):
        request = pb.ListSettlementsRequest(merchant_id=till.shop.merchant, page_size=1, page_token=token)
        page = await till.stub.ListSettlements(request)
        found += page.settlements
        token = page.next_page_token
    assert not token
    assert found == everything[::-1]
    key = {"merchant_id": till.shop.merchant, "settlement_id": found[0].settlement_id}
    assert (await till.stub.GetSettlement(pb.GetSettlementRequest(**key))).settlement == found[0]


async def test_wrong_input_is_named(till: Till) -> None:
    tomorrow = (datetime.now(UTC).date() + timedelta(days=1)).isoformat()
    for day in ("", "yesterday", "20261125", "2026-02-30", tomorrow):
        failed = await failure_of(till.stub.RunSettlement(pb.RunSettlementRequest(date=day)))
        assert (failed.kind, [one.field for one in failed.violations]) == (Kind.INVALID, ["date"])
    for wrong, field in (
        ({"from_date": "x"}, "from_date"),
        ({"from_date": "2026-02-01", "to_date": "2026-01-01"}, "from_date"),
        ({"after_cursor": "x"}, "after_cursor"),
        ({"after_cursor": "WyJhIl0="}, "after_cursor"),
        ({"limit": -1}, "limit"),
        ({"unsettled_only": True, "from_date": "2026-02-01"}, "unsettled_only"),
    ):
        failed = await failure_of(till.stub.ListSettlementItems(pb.ListSettlementItemsRequest(**wrong)))
        assert (failed.kind, [one.field for one in failed.violations]) == (Kind.INVALID, [field])
    failed = await failure_of(
        till.stub.GetSettlement(pb.GetSettlementRequest(merchant_id="m", settlement_id="stl_1"))
    )
    assert (failed.kind, failed.reason) == (Kind.NOT_FOUND, "UNKNOWN_SETTLEMENT")


async def test_the_night_settles_what_nobody_has_asked_for(mesh: PaymentMesh) -> None:
    dsn = mesh.services._postgres.create_database(f"night_{os.urandom(4).hex()}")
    # A clock for which today has been over for long.
    night = {"settle_clock_ahead_seconds": "172800", "settle_look_seconds": "0.1"}
    apart = mesh.apart(dsn, **STEADY | night)
    async with Shop(apart, "night") as shop:
        payment_id = await _captured(Till(shop), "o1", 1_000)
        await shop.becomes(payment_id, SETTLED)
        (one,) = await Till(shop).completed()
        assert (one.date, one.state) == (today(), COMPLETED)
        assert_settlements_agree(apart, shop.merchant)
    apart.payment.kill()
    apart.close()
    mesh.services._postgres.drop_database(dsn.rsplit("/", 1)[-1].split("?")[0])
