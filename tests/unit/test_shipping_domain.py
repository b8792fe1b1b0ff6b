"""Shipments on paper: which countries are served, what may follow what, and that a set is decided as its
commands would be one by one. The oracle is a table of moves, written by hand, which knows no code."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from services.kit.errors import NotFound, Refused
from services.shipping import domain
from services.shipping.config import ShippingConfig
from services.shipping.domain import Address, Create, Shipment, State

MERCHANT = "mer_1"
HOME = Address("A. Buyer", ("1 High Street",), "York", "YO1 7HH", "GB")

MOVES = {
    ("cancel", State.CREATED): State.CANCELLED,
    ("cancel", State.CANCELLED): State.CANCELLED,
    ("cancel", State.DISPATCHED): "SHIPMENT_DISPATCHED",
    ("dispatch", State.CREATED): State.DISPATCHED,
    ("dispatch", State.CANCELLED): "SHIPMENT_CANCELLED",
    ("dispatch", State.DISPATCHED): State.DISPATCHED,
}
"""What each verb makes of each state: the next state, or the reason of the refusal."""

VERBS = {"cancel": domain.cancel, "dispatch": domain.dispatch}


def _shipment(shipment_id: str, state: State = State.CREATED) -> Shipment:
    return Shipment(MERCHANT, shipment_id, f"order of {shipment_id}", HOME, state, "PM1", 1)


def _wish(country: str) -> Create:
    return Create(MERCHANT, "o1", Address("A. Buyer", (), "", "", country))


def test_a_country_without_a_carrier_is_refused_by_name() -> None:
    refusal = domain.create(_wish("AQ"), frozenset({"AQ", "KP"}))
    assert isinstance(refusal, Refused)
    assert (refusal.reason, refusal.facts) == ("COUNTRY_NOT_SERVED", {"country": "AQ"})


def test_other_countries_are_served_and_with_no_rule_all_are() -> None:
    assert domain.create(_wish("GB"), frozenset({"AQ", "KP"})) is None
    assert domain.create(_wish("AQ"), frozenset()) is None


def test_a_new_shipment_is_created_for_the_order_at_the_address() -> None:
    shipment = domain.new_shipment(Create(MERCHANT, "o1", HOME), "shp_1", 5)
    tracking_number = domain.tracking_number("shp_1")
    assert shipment == Shipment(MERCHANT, "shp_1", "o1", HOME, State.CREATED, tracking_number, 5)


@given(st.text())
def test_a_tracking_number_has_its_form_and_stays_the_same(shipment_id: str) -> None:
    number = domain.tracking_number(shipment_id)
    assert re.fullmatch(r"PM[A-Z2-7]{12}", number)
    assert number == domain.tracking_number(shipment_id)


def test_ten_thousand_neighbouring_shipments_have_ten_thousand_tracking_numbers() -> None:
    assert len({domain.tracking_number(f"shp_{n:032x}") for n in range(10_000)}) == 10_000


def test_every_verb_has_a_row_for_every_state() -> None:
    assert set(MOVES) == {(verb, state) for verb in VERBS for state in State}


@pytest.mark.parametrize(("verb", "state"), MOVES)
def test_a_verb_makes_of_a_state_what_the_table_says(verb: str, state: State) -> None:
    before = _shipment("shp_1", state)
    decision = VERBS[verb](before)
    expected = MOVES[verb, state]
    if isinstance(expected, State):
        assert decision == _shipment("shp_1", expected)
    else:
        assert isinstance(decision, Refused)
        assert decision.reason == expected


IDS = [f"shp_{n}" for n in range(4)]


@given(
    known=st.dictionaries(st.sampled_from(IDS), st.sampled_from(State)),
    verb=st.sampled_from(sorted(VERBS)),
    asked=st.lists(st.sampled_from(IDS), max_size=12),
)
def test_a_set_is_decided_like_its_commands_one_by_one_and_each_change_is_reported_once(
    known: dict[str, State], verb: str, asked: list[str]
) -> None:
    shipments = {(MERCHANT, id_): _shipment(id_, state) for id_, state in known.items()}
    decisions, changed = domain.end(shipments, [(MERCHANT, id_) for id_ in asked], VERBS[verb])

    states: dict[str, State] = dict(known)
    for shipment_id, decision in zip(asked, decisions, strict=True):
        if shipment_id not in states:
            assert decision is None
            continue
        expected = MOVES[verb, states[shipment_id]]
        if isinstance(expected, State):
            assert decision == _shipment(shipment_id, expected)
            states[shipment_id] = expected
        else:
            assert isinstance(decision, Refused)
            assert decision.reason == expected

    assert {s.shipment_id: s.state for s in changed} == {i: s for i, s in states.items() if known[i] is not s}
    assert len(changed) == len({s.shipment_id for s in changed})
    # The command that is named in the announcement is the first, which made the change, and no repeat of it.
    assert all(decisions[asked.index(shipment.shipment_id)] is shipment for shipment in changed)


@given(st.lists(st.sampled_from(sorted(VERBS)), min_size=1, max_size=10))
def test_what_was_cancelled_never_leaves_and_what_has_left_is_never_cancelled(verbs: list[str]) -> None:
    shipment = _shipment("shp_1")
    for verb in verbs:
        decision = VERBS[verb](shipment)
        shipment = decision if isinstance(decision, Shipment) else shipment
    assert shipment.state is MOVES["cancel" if verbs[0] == "cancel" else "dispatch", State.CREATED]


def test_shipments_of_two_merchants_are_told_apart() -> None:
    decisions, changed = domain.end(
        {(MERCHANT, "shp_1"): _shipment("shp_1")}, [("mer_2", "shp_1")], domain.cancel
    )
    assert (decisions, changed) == ([None], [])


def test_nothing_booked_is_cancelled_and_names_nothing() -> None:
    shipment = domain.nothing_booked(MERCHANT)
    assert (shipment.merchant_id, shipment.shipment_id, shipment.order_id) == (MERCHANT, "", "")
    assert shipment.state is State.CANCELLED


def test_an_unknown_shipment_is_not_found() -> None:
    assert isinstance(domain.no_shipment("shp_9"), NotFound)
    assert domain.no_shipment("shp_9").reason == "UNKNOWN_SHIPMENT"


def _config(monkeypatch: pytest.MonkeyPatch, **settings: str) -> ShippingConfig:
    for name, value in {"listen": "127.0.0.1:0", "database_dsn": "dbname=x", **settings}.items():
        monkeypatch.setenv(f"PAYMESH_SHIPPING_{name.upper()}", value)
    return ShippingConfig(_env_prefix="PAYMESH_SHIPPING_")


@pytest.mark.parametrize(
    ("value", "countries"),
    [("AQ,KP", {"AQ", "KP"}), (" AQ , KP ", {"AQ", "KP"}), ("FR", {"FR"}), ("", set()), (" ", set())],
)
def test_unserved_countries_are_read_from_a_list_with_commas(
    monkeypatch: pytest.MonkeyPatch, value: str, countries: set[str]
) -> None:
    assert _config(monkeypatch, unserved_countries=value).unserved_countries == countries


def test_unserved_countries_have_a_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _config(monkeypatch).unserved_countries == {"AQ", "KP"}


@pytest.mark.parametrize("value", ["aq", "AQ,", "AQ;KP", "AQX", "A", '["AQ"]', "ÄQ"])
def test_what_is_no_country_code_is_a_mistake_in_the_configuration(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    with pytest.raises(ValidationError, match="not an ISO 3166-1 alpha-2 code") as error:
        _config(monkeypatch, unserved_countries=value)
    assert [mistake["loc"] for mistake in error.value.errors()] == [("unserved_countries",)]
