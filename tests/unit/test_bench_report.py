"""The bench's arithmetic: what is said follows from what was counted, and what would be misleading is not said."""

import math
import statistics
from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.machine import NotDurableError, check_durable
from bench.orders import SKUS, Buyers, ip_address_of
from bench.phases import Task, What, all_phases, choose, split
from bench.report import Bar, Measured, bars, headline, latencies, loss, percentile, rate, ratio
from bench.subject import environment_of_subject, knobs
from bench.table import lines
from bench.tally import Tally
from paymesh.orchestrator.v1 import orchestrator_pb2
from paymesh.payment.v1 import payment_pb2
from services.kit.errors import Invalid
from services.orchestrator.service.requests import parse_order
from services.payment.service.messages import authorize_wish

PHASES = {phase.name: phase for phase in all_phases()}
SAFE = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on"}


def measured(
    name: str, *, told: int = 100, found: int = 100, seconds: float = 2.0, **tally: object
) -> Measured:
    return Measured(
        phase=PHASES[name],
        tally=Tally(succeeded=told, seconds=seconds, samples=[(20_000, told)], **tally),  # type: ignore[arg-type]
        in_database=found,
        cpu_seconds={"payment": 1.0, "load": 0.5},
        machine_busy_seconds=2.5,
        set_sizes={},
        shed=0,
    )


def test_a_percentile_is_the_least_value_that_enough_items_do_not_exceed() -> None:
    samples = [(value, 1) for value in range(100, 0, -1)]
    assert [percentile(samples, share) for share in (0.01, 0.5, 0.95, 0.99, 1.0)] == [1, 50, 95, 99, 100]
    assert percentile([(7, 1)], 0.5) == percentile([(7, 1)], 0.99) == 7
    assert percentile([(1, 1), (2, 1)], 0.5) == 1


def test_a_call_counts_as_often_as_it_has_items() -> None:
    assert percentile([(10, 95), (999, 5)], 0.95) == 10
    assert percentile([(10, 94), (999, 6)], 0.95) == 999


def test_nothing_has_no_percentile() -> None:
    assert math.isnan(percentile([], 0.5))
    assert math.isnan(percentile([(5, 0)], 0.5))
    assert latencies(Tally()) == {"p50_ms": None, "p95_ms": None, "p99_ms": None, "max_ms": None}


@given(st.lists(st.integers(0, 10**7), min_size=1), st.floats(0.001, 1.0))
def test_a_percentile_is_one_of_the_values_and_has_its_share_below(values: list[int], share: float) -> None:
    found = percentile([(value, 1) for value in values], share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) - 1e-6
    assert sum(value < found for value in values) < share * len(values) + 1e-6


@given(st.lists(st.integers(0, 10**6), min_size=3))
def test_the_median_of_an_odd_number_is_the_middle_one(values: list[int]) -> None:
    odd = values if len(values) % 2 else values[1:]
    assert percentile([(value, 1) for value in odd], 0.5) == statistics.median(odd)


def test_rates_and_ratios_survive_nothing() -> None:
    assert rate(100, 4.0) == 25
    assert rate(100, 0.0) == 0
    assert ratio(3.0, 4.0) == 0.75
    assert ratio(3.0, 0.0) is None
    assert loss(1000, 960) == pytest.approx(0.04)
    assert loss(1000, 1100) == pytest.approx(-0.1)
    assert loss(0, 10) == 0


def test_the_rate_is_of_what_the_database_has_in_the_time_until_the_last_answer() -> None:
    one = measured("orders", told=5_000, found=4_000, seconds=2.0)
    assert one.per_second == 2_000
    assert one.problems() == ["orders: the callers were told of 5,000, the database has 4,000"]


def test_more_in_the_database_than_the_callers_know_of_is_a_problem_too() -> None:
    assert len(measured("orders", told=100, found=101).problems()) == 1
    assert measured("orders").problems() == []


def test_failures_and_doing_nothing_are_problems() -> None:
    failed = measured("orders", failed=Counter({"OUT_OF_STOCK": 3, "UNKNOWN": 1}))
    assert failed.problems() == ["orders: 4 failed (3 OUT_OF_STOCK, 1 UNKNOWN)"]
    assert measured("orders", told=0, found=0).problems() == ["orders: nothing was done"]


def test_processor_time_is_shared_out_among_what_the_database_has() -> None:
    said = measured("orders", told=1_000, found=1_000).to_json()
    assert said["cpu_us_per_item"] == {"payment": 1000.0, "load": 500.0, "total": 1500.0}
    assert said["cores_busy"] == 0.75
    assert said["cores_busy_of_others"] == 0.5


def test_the_headline_has_the_ratio_to_plain_rows() -> None:
    figures = headline([measured("floor", told=8_000, found=8_000), measured("orders", told=400, found=400)])
    assert figures == {
        "floor_rows_per_s": 4_000.0,
        "orders_per_s": 200.0,
        "orders_p50_ms": 20.0,
        "orders_p95_ms": 20.0,
        "orders_p99_ms": 20.0,
        "orders_per_floor_row": 0.05,
    }


def test_an_idle_caller_has_latencies_and_no_rate() -> None:
    assert set(headline([measured("idle_order")])) == {
        "idle_order_p50_ms",
        "idle_order_p95_ms",
        "idle_order_p99_ms",
    }


def test_orders_in_single_calls_are_compared_with_bare_calls() -> None:
    calls = replace(measured("floor_calls", told=4_000, found=0), in_database=None)
    figures = headline([calls, measured("orders_64_callers", told=400, found=400)])
    assert figures["floor_calls_per_s"] == 2_000.0
    assert figures["orders_64_callers_per_floor_call"] == 0.1
    assert calls.problems() == []
    assert calls.to_json()["succeeded_in_database"] is None


def test_without_a_floor_there_is_no_ratio() -> None:
    assert headline([measured("orders")])["orders_per_floor_row"] is None


def test_bars_know_which_way_is_up() -> None:
    assert Bar("x", 100).met(100)
    assert not Bar("x", 100).met(99.9)
    assert Bar("x", 100, at_most=True).met(100)
    assert not Bar("x", 100, at_most=True).met(100.1)


def test_only_what_was_measured_is_held_against_a_bar() -> None:
    assert bars({"orders_per_s": 3_000.0, "orders_p95_ms": 600.0, "orders_p50_ms": None}) == [
        {"figure": "orders_per_s", "at_least": 2_500, "is": 3_000.0, "met": True},
        {"figure": "orders_p95_ms", "at_most": 500, "is": 600.0, "met": False},
    ]


def test_a_busy_machine_is_named_as_one() -> None:
    machine = {"cores": 2, "cpu": "a", "filesystem": "ext4", "python": "3", "load_average_before": 0.1}
    assert any("other programs" in line for line in lines([measured("orders")], {}, machine))


def test_the_seconds_are_shared_out_to_the_last() -> None:
    for total in (2.0, 60.0, 3_600.0):
        durations = split(total, all_phases())
        assert sum(d.seconds + d.warm_up_seconds for d in durations.values()) == pytest.approx(total)
        assert all(d.warm_up_seconds <= 1.0 and d.warm_up_seconds <= d.seconds for d in durations.values())


def test_phases_are_chosen_by_name_and_run_in_their_own_order() -> None:
    assert [phase.name for phase in choose(all_phases(), ["orders", "floor"])] == ["floor", "orders"]
    assert choose(all_phases(), []) == all_phases()
    refunded = ["authorizations", "captures", "refunds"]
    assert [phase.name for phase in choose(all_phases(), ["refunds"])] == refunded, "there must be something"
    with pytest.raises(ValueError, match="no phase 'order'; there are floor, floor_calls, idle_order"):
        choose(all_phases(), ["floor", "order"])


def test_a_task_and_a_tally_survive_the_way_between_the_processes() -> None:
    task = Task(
        what=What.ORDERS,
        target="127.0.0.1:1",
        callers=2,
        batch_size=3,
        channels=1,
        pause_seconds=0.0,
        warm_up_seconds=0.5,
        seconds=2.0,
        merchants=("a",),
        warm_up_merchants=("b",),
        currencies={"a": "USD", "b": "EUR"},
        first_number=7,
    )
    assert Task.from_json(task.to_json()) == task
    tally = Tally(
        succeeded=3, failed=Counter(X=1), repeated=Counter(Y=2), calls=4, samples=[(5, 3)], seconds=1.5
    )
    assert Tally.from_json(tally.to_json()) == tally


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("fsync", "off"),
        ("full_page_writes", "off"),
        ("synchronous_commit", "off"),
        ("synchronous_commit", "local"),
        ("synchronous_commit", "remote_write"),
    ],
)
def test_a_server_that_may_lose_a_commit_is_refused(name: str, value: str) -> None:
    check_durable("payment", SAFE, [])
    with pytest.raises(NotDurableError, match=f"{name} is {value} for payment"):
        check_durable("payment", SAFE | {name: value}, [])


def test_a_table_without_a_log_is_refused() -> None:
    with pytest.raises(NotDurableError, match="outbox of payment is UNLOGGED"):
        check_durable("payment", SAFE, ["outbox"])


def test_the_mesh_gets_knobs_but_neither_stores_nor_tracing_of_the_user() -> None:
    inherited = {
        "PAYMESH_POSTGRES_DSN": "postgresql://elsewhere",
        "PAYMESH_PAYMENT_DATABASE_DSN": "postgresql://elsewhere",
        "PAYMESH_VALKEY_URL": "redis://elsewhere",
        "PAYMESH_FRAUD_VALKEY_URL": "redis://elsewhere",
        "PAYMESH_TRACE_FILE": "spans",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://elsewhere",
        "PAYMESH_PAYMENT_DATABASE_POOL_SIZE": "20",
        "PAYMESH_PAYMENT_PROCESSOR_KEY": "secret",
        "PATH": "/bin",
    }
    environment = environment_of_subject(inherited)
    assert set(environment) == {"PAYMESH_PAYMENT_DATABASE_POOL_SIZE", "PAYMESH_PAYMENT_PROCESSOR_KEY", "PATH"}
    assert knobs(environment) == {"PAYMESH_PAYMENT_DATABASE_POOL_SIZE": "20"}
    traced = environment_of_subject(inherited, trace_endpoint="http://sink", trace_ratio=0.01)
    assert traced["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://sink"
    assert traced["OTEL_TRACES_SAMPLER_ARG"] == "0.01"


def drawn(count: int) -> list[orchestrator_pb2.PlaceOrderRequest]:
    buyers = Buyers(("m1", "m2", "m3"), {"m1": "USD", "m2": "EUR", "m3": "GBP"}, 20_000_000)
    orders = [orchestrator_pb2.PlaceOrderRequest() for _ in range(count)]
    keys = {buyers.fill_order(order) for order in orders}
    assert len(keys) == count
    return orders


def test_every_order_is_a_valid_one_of_somebody_else() -> None:
    orders = drawn(2_000)
    for order in orders:
        parse_order(order)
    for trait in ("card.token", "customer.customer_id", "customer.email", "customer.ip_address"):
        message, field = trait.split(".")
        assert len({getattr(getattr(order, message), field) for order in orders}) == len(orders), trait
    assert {order.merchant_id for order in orders} == {"m1", "m2", "m3"}
    assert {order.amount.currency for order in orders if order.merchant_id == "m2"} == {"EUR"}
    assert {len(order.lines) for order in orders} == {1, 2, 3}


def test_few_products_sell_often_and_most_rarely() -> None:
    sold = Counter(line.sku for order in drawn(5_000) for line in order.lines)
    assert sold.most_common(1)[0][0] == SKUS[0]
    assert sold[SKUS[0]] > 10 * sold[SKUS[50]]
    assert len(sold) > 150


def test_the_same_numbers_draw_the_same_orders() -> None:
    assert drawn(50) == drawn(50)


def test_every_authorization_is_valid_and_has_an_order_of_its_own() -> None:
    buyers = Buyers(("m1",), {"m1": "USD"}, 5)
    requests = [payment_pb2.AuthorizePaymentRequest() for _ in range(100)]
    for request in requests:
        buyers.fill_authorization(request)
        try:
            authorize_wish(request)
        except Invalid as error:
            pytest.fail(str(error))
    assert len({request.order_id for request in requests}) == 100


def test_addresses_do_not_repeat() -> None:
    numbers = [0, 255, 256, 65_535, 65_536, 2**24 - 1, 2**24, 140_000_000]
    assert len({ip_address_of(number) for number in numbers}) == len(numbers)
    assert ip_address_of(2**24 + 1) == "11.0.0.1"
