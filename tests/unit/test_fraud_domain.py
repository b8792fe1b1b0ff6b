"""What fraud concludes from what it is told, without Valkey or PostgreSQL: rules, lists, the rule file, the breaker."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.fraud.config import RULES_FILE, FraudConfig
from services.fraud.domain import (
    Decision,
    Listed,
    ListKind,
    Lists,
    Subject,
    assess,
    issuer_country,
    normal_ip,
)
from services.fraud.rule_file import RuleFileMistakes, read_rules
from services.fraud.rules import (
    CARDS_FROM_IP,
    COUNTERS,
    AmountRule,
    CardTestingRule,
    Measure,
    Rules,
    Trait,
    VelocityRule,
    Window,
    counter_place,
)
from services.kit.breaker import Breaker
from services.kit.money import AMOUNT_MINOR_MAX, Money

RULES = Rules(
    decline_above_milli=800,
    short_seconds=60,
    long_seconds=3_600,
    amounts=(AmountRule("amount_high", 10_000, 300), AmountRule("amount_extreme", 50_000, 1_000)),
    velocities=(
        VelocityRule("card_velocity_1m", Trait.CARD, Window.SHORT, Measure.COUNT, 10, 850),
        VelocityRule("customer_velocity_1h", Trait.CUSTOMER, Window.LONG, Measure.COUNT, 200, 450),
        VelocityRule("card_sum_1h", Trait.CARD, Window.LONG, Measure.SUM, 1_000, 500),
    ),
    card_testing=CardTestingRule(cards_above=20, window_seconds=600, small_units=10, score_milli=900),
    bin_country_score_milli=250,
    bin_countries={"40000082": "GB", "400000": "US"},
    degraded_amount_units=2_500,
    worth={"JPY": 150},
)
QUIET = [0] * COUNTERS
UNLISTED = Listed()


def _subject(
    amount_minor: int = 1_000, currency: str = "USD", *, card_bin: str = "", country: str = ""
) -> Subject:
    return Subject(
        Money(amount_minor, currency), "tok_1", card_bin, "cus_1", "ann@example.com", "203.0.113.7", country
    )


def _counted(**seen: int) -> list[int]:
    """Counters in which nothing stands but what is given, as card_short_count=11."""
    counters = list(QUIET)
    for name, number in seen.items():
        trait, window, measure = name.split("_")
        counters[counter_place(Trait(trait), Window(window), Measure(measure))] = number
    return counters


def _fired(subject: Subject, counters: list[int] | None = QUIET) -> list[str]:
    return [rule.rule for rule in assess(RULES, subject, counters, UNLISTED).fired]


def test_an_ordinary_payment_is_approved_with_nothing_to_say() -> None:
    verdict = assess(RULES, _subject(), QUIET, UNLISTED)
    assert (verdict.decision, verdict.score_milli, verdict.fired, verdict.degraded) == (
        Decision.APPROVE,
        0,
        (),
        False,
    )


def test_a_limit_fires_above_it_and_not_at_it() -> None:
    assert _fired(_subject(1_000_000)) == []
    assert _fired(_subject(1_000_001)) == ["amount_high"]
    assert _fired(_subject(), _counted(card_short_count=10)) == []
    assert _fired(_subject(), _counted(card_short_count=11)) == ["card_velocity_1m"]
    assert _fired(_subject(), _counted(card_long_sum=100_000)) == []
    assert _fired(_subject(), _counted(card_long_sum=100_001)) == ["card_sum_1h"]


def test_a_counter_is_only_seen_by_the_rules_of_its_trait_window_and_measure() -> None:
    assert _fired(_subject(), _counted(card_long_count=11, email_short_count=11, ip_short_count=11)) == []


def test_scores_add_up_to_at_most_one_with_the_heaviest_rule_first() -> None:
    verdict = assess(
        RULES, _subject(1_000_001), _counted(card_short_count=11, customer_long_count=201), UNLISTED
    )
    assert [(rule.rule, rule.score_milli) for rule in verdict.fired] == [
        ("card_velocity_1m", 850),
        ("customer_velocity_1h", 450),
        ("amount_high", 300),
    ]
    assert verdict.score_milli == 1_000


def test_a_score_at_the_threshold_approves_and_one_above_it_declines() -> None:
    at = replace(RULES, amounts=(AmountRule("a", 1, 800),))
    above = replace(RULES, amounts=(AmountRule("a", 1, 801),))
    assert assess(at, _subject(), QUIET, UNLISTED).decision is Decision.APPROVE
    assert assess(above, _subject(), QUIET, UNLISTED).decision is Decision.DECLINE


def test_limits_follow_the_worth_and_the_decimals_of_the_currency() -> None:
    assert _fired(_subject(150 * 10_000, "JPY")) == []
    assert _fired(_subject(150 * 10_000 + 1, "JPY")) == ["amount_high"]
    assert _fired(_subject(10_000_000, "KWD")) == []
    assert _fired(_subject(10_000_001, "KWD")) == ["amount_high"]
    assert _fired(_subject(1, "JPY"), _counted(card_long_sum=150_001)) == ["card_sum_1h"]


def test_the_explanation_tells_a_person_what_was_seen_and_what_is_usual() -> None:
    (count,) = assess(RULES, _subject(), _counted(card_short_count=11), UNLISTED).fired
    assert count.explanation == "11 payments with this card within 60 s, more than 10"
    (total,) = assess(RULES, _subject(), _counted(card_long_sum=123_456), UNLISTED).fired
    assert total.explanation == "1234.56 USD paid with this card within 3600 s, more than 1000.00 USD"


def test_many_cards_from_one_address_are_card_testing() -> None:
    counters = list(QUIET)
    counters[CARDS_FROM_IP] = 20
    assert _fired(_subject(), counters) == []
    counters[CARDS_FROM_IP] = 21
    verdict = assess(RULES, _subject(), counters, UNLISTED)
    assert verdict.decision is Decision.DECLINE
    assert [rule.rule for rule in verdict.fired] == ["card_testing"]


def test_only_small_payments_are_of_the_size_of_card_testers() -> None:
    assert RULES.small(Money(1_000, "USD"))
    assert not RULES.small(Money(1_001, "USD"))
    assert RULES.small(Money(1_500, "JPY"))


def test_a_card_from_another_country_than_the_billing_address_is_a_sign() -> None:
    assert _fired(_subject(card_bin="40000082", country="FR")) == ["bin_country"]
    assert _fired(_subject(card_bin="40000082", country="GB")) == []
    assert _fired(_subject(card_bin="40000082")) == []
    assert _fired(_subject(card_bin="55555555", country="FR")) == []


def test_the_longest_known_prefix_of_a_card_names_its_country() -> None:
    assert issuer_country(RULES.bin_countries, "40000082") == "GB"
    assert issuer_country(RULES.bin_countries, "40000083") == "US"
    assert issuer_country(RULES.bin_countries, "400000") == "US"
    assert issuer_country(RULES.bin_countries, "5555555") == ""


def test_a_block_list_declines_whatever_else_is_known() -> None:
    for counters in (QUIET, None):
        verdict = assess(RULES, _subject(), counters, Listed(blocked=Trait.EMAIL, allowed=Trait.CARD))
        assert (verdict.decision, verdict.score_milli) == (Decision.DECLINE, 1_000)
        assert [rule.explanation for rule in verdict.fired] == ["the email address is on the block list"]


def test_an_allow_list_approves_what_the_rules_would_decline() -> None:
    subject = _subject(9_000_000)
    assert assess(RULES, subject, QUIET, UNLISTED).decision is Decision.DECLINE
    for counters in (_counted(card_short_count=11), None):
        verdict = assess(RULES, subject, counters, Listed(allowed=Trait.CARD))
        assert (verdict.decision, verdict.score_milli) == (Decision.APPROVE, 0)
        assert [rule.rule for rule in verdict.fired] == ["allow_list"]
        assert verdict.degraded is (counters is None)


def test_without_counters_the_verdict_is_degraded_and_has_a_limit_of_its_own() -> None:
    small = assess(RULES, _subject(250_000), None, UNLISTED)
    assert (small.decision, small.degraded, small.fired) == (Decision.APPROVE, True, ())
    large = assess(RULES, _subject(250_001), None, UNLISTED)
    assert (large.decision, large.score_milli, large.degraded) == (Decision.DECLINE, 1_000, True)
    assert [rule.rule for rule in large.fired] == ["degraded_amount"]
    assert assess(RULES, _subject(250_001), QUIET, UNLISTED).decision is Decision.APPROVE


def test_without_counters_the_other_rules_still_hold() -> None:
    verdict = assess(RULES, _subject(1_000_001, card_bin="40000082", country="FR"), None, UNLISTED)
    assert {rule.rule for rule in verdict.fired} == {"degraded_amount", "amount_high", "bin_country"}


@given(
    st.integers(1, AMOUNT_MINOR_MAX),
    st.one_of(st.none(), st.lists(st.integers(0, 10**15), min_size=COUNTERS, max_size=COUNTERS)),
    st.sampled_from(["", "40000082", "400000"]),
    st.sampled_from(["", "GB", "FR"]),
    st.sampled_from(["USD", "JPY", "KWD"]),
)
def test_every_verdict_agrees_with_its_own_score_and_rules(
    amount: int, counters: list[int] | None, card_bin: str, country: str, currency: str
) -> None:
    verdict = assess(
        RULES, _subject(amount, currency, card_bin=card_bin, country=country), counters, UNLISTED
    )
    weights = [rule.score_milli for rule in verdict.fired]
    assert verdict.score_milli == min(1_000, sum(weights))
    assert weights == sorted(weights, reverse=True)
    assert (verdict.decision is Decision.DECLINE) == (verdict.score_milli > 800)
    assert verdict.degraded is (counters is None)


# Around the limits of the rules above, so that about half of the examples are on either side.
NEAR_LIMITS = st.sampled_from(
    [0, 1, 9, 10, 11, 20, 21, 199, 200, 201, 99_999, 100_000, 100_001, 150_000, 150_001]
)


@given(
    st.sampled_from([1, 999_999, 1_000_000, 1_000_001, 1_500_000, 1_500_001, 5_000_001, 7_500_001]),
    st.lists(NEAR_LIMITS, min_size=COUNTERS, max_size=COUNTERS),
    st.sampled_from(["USD", "JPY"]),
    st.sets(st.integers(0, 2)),
)
def test_the_rules_that_fire_are_those_whose_limit_is_passed(
    amount: int, counters: list[int], currency: str, kept: set[int]
) -> None:
    """Rule by rule, from what the rules say; the domain itself looks at all of them at once first."""
    rules = replace(RULES, velocities=tuple(RULES.velocities[n] for n in sorted(kept)))
    unit = 100 if currency == "USD" else 150
    expected = {rule.name for rule in rules.amounts if amount > rule.above_units * unit}
    for rule in rules.velocities:
        seen = counters[counter_place(rule.trait, rule.window, rule.measure)]
        if seen > rule.above * (unit if rule.measure is Measure.SUM else 1):
            expected.add(rule.name)
    if counters[CARDS_FROM_IP] > 20:
        expected.add("card_testing")
    verdict = assess(rules, _subject(amount, currency), counters, UNLISTED)
    assert {rule.rule for rule in verdict.fired} == expected


def test_every_counter_has_a_place_of_its_own() -> None:
    places = {counter_place(t, w, m) for t in Trait for w in Window for m in Measure}
    assert places == set(range(COUNTERS)) - {CARDS_FROM_IP}


def test_an_address_has_one_form_and_an_ipv6_customer_has_a_network() -> None:
    assert normal_ip("203.0.113.7") == ("203.0.113.7", "203.0.113.7")
    assert normal_ip("::ffff:203.0.113.7") == ("203.0.113.7", "203.0.113.7")
    assert normal_ip("2001:DB8:0:0::7") == ("2001:db8::7", "2001:db8::/64")
    assert normal_ip("2001:db8::ffff:0:0:8")[1] == "2001:db8::/64"


@pytest.mark.parametrize(
    "text", ["1.2.3", "01.2.3.4", "1.2.3.4 ", "1.2.3.4\x00", "fe80::1%eth0", "host", "::1/64", "x" * 99]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - whatever it says
        normal_ip(text)


def test_lists_know_a_merchants_values_by_kind_and_trait() -> None:
    lists = Lists()
    lists.replace(
        "m1", [(ListKind.BLOCK, Trait.IP, "203.0.113.7"), (ListKind.ALLOW, Trait.CUSTOMER, "cus_1")]
    )
    lists.replace(
        "m2", [(ListKind.BLOCK, Trait.CUSTOMER, "tok_1"), (ListKind.BLOCK, Trait.EMAIL, "bob@example.com")]
    )
    assert lists.find("m1", _subject()) == Listed(blocked=Trait.IP, allowed=Trait.CUSTOMER)
    assert lists.find("m2", _subject()) == UNLISTED
    assert lists.find("m3", _subject()) == UNLISTED
    lists.replace("m1", [])
    assert lists.find("m1", _subject()) == UNLISTED


def test_a_list_entry_for_nothing_does_not_name_payments_that_say_nothing() -> None:
    lists = Lists()
    lists.replace("m1", [(ListKind.BLOCK, Trait.EMAIL, "")])
    assert lists.find("m1", _subject()._replace(email="")) == UNLISTED


def test_an_open_breaker_admits_one_probe_per_interval_until_one_succeeds() -> None:
    breaker = Breaker(failures_max=3, probe_seconds=1.0)
    for _ in range(3):
        assert breaker.admits(10.0)
        breaker.failed(10.0)
    assert breaker.open
    assert [breaker.admits(at) for at in (10.0, 10.9, 11.0, 11.1, 11.9, 12.0)] == [
        False,
        False,
        True,
        False,
        False,
        True,
    ]
    breaker.failed(12.1)
    assert not breaker.admits(13.0)
    assert breaker.admits(13.2)
    breaker.succeeded()
    assert not breaker.open
    assert breaker.admits(13.2)


def test_failures_that_are_not_in_a_row_leave_the_breaker_closed() -> None:
    breaker = Breaker(failures_max=2, probe_seconds=1.0)
    for _ in range(5):
        breaker.failed(0.0)
        breaker.succeeded()
    assert breaker.admits(0.0)


def test_the_rule_file_that_comes_with_fraud_can_be_used() -> None:
    rules = read_rules(RULES_FILE, FraudConfig.model_fields["window_members_max"].default)
    assert assess(rules, _subject(999_999), [1] * COUNTERS, UNLISTED).decision is Decision.APPROVE
    assert assess(rules, _subject(5_000_001), [1] * COUNTERS, UNLISTED).decision is Decision.DECLINE


def test_one_trait_above_its_hourly_count_never_escapes_by_being_forgotten() -> None:
    """A window forgets beyond one more than the largest count, so each trait with sums must have an hourly count."""
    rules = read_rules(RULES_FILE, 1_000)
    summed = {rule.trait for rule in rules.velocities if rule.measure is Measure.SUM}
    hourly = {r.trait for r in rules.velocities if r.measure is Measure.COUNT and r.window is Window.LONG}
    assert summed <= hourly


def test_every_mistake_in_a_rule_file_is_reported_at_once(tmp_path: Path) -> None:
    text = RULES_FILE.read_text()
    for old, new in {
        "decline_above_milli = 800": "decline_above_milli = 1000",
        "short_seconds = 60": "short_seconds = 3600",
        "above_units = 10_000": 'above_units = "much"',
        '[velocity.card_velocity_1m]\ntrait = "card"': '[velocity.card_velocity_1m]\ntrait = "shoe"',
        "count_above = 60\n": "count_above = 60\nsum_above_units = 5\n",
        "count_above = 600": "count_above = 1000",
        "[velocity.email_velocity_1h]": "[velocity.amount_high]",
        "[velocity.ip_velocity_1m]": "[velocity.block_list]",
        "[velocity.card_sum_1m]": "[velocity.Card-Sum]",
        "small_units = 10": "small_units = -1\nlarge_units = 1",
        "amount_above_units = 2_500": "amount_above_units = 2.5",
        '"40000003" = "AU"': '"4000" = "AU"',
        '"40000004" = "AT"': '"40000004" = "Austria"',
        "ARS = 1_000": "XYZ = 1_000",
        "BRL = 5": "BRL = 0",
    }.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    path = tmp_path / "rules.toml"
    path.write_text(text)
    with pytest.raises(RuleFileMistakes) as caught:
        read_rules(path, 1_000)
    reported = [mistake.split(": ")[0] for mistake in caught.value.mistakes]
    assert sorted(reported) == sorted(
        [
            "decline_above_milli",
            "windows",
            "amount.amount_high.above_units",
            "velocity.card_velocity_1m.trait",
            "velocity.card_velocity_1h",
            "velocity.ip_velocity_1h.count_above",
            "velocity.amount_high",
            "velocity.block_list",
            "velocity.Card-Sum",
            "card_testing.small_units",
            "card_testing.large_units",
            "degraded.amount_above_units",
            "bin_country.countries.4000",
            "bin_country.countries.40000004",
            "worth.XYZ",
            "worth.BRL",
        ]
    )


@pytest.mark.parametrize("content", [b"", b"= 1", b"\xff", None])
def test_a_rule_file_that_cannot_be_read_is_a_mistake_too(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "rules.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RuleFileMistakes, match=r"rules\.toml"):
        read_rules(path, 1_000)
