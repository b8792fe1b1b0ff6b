"""What the edge decides: keys, cards, which problem an error is; and that a sealed number opens where it was sealed."""

from __future__ import annotations

from dataclasses import replace
from datetime import date

import pytest

from services.edge.domain import keys
from services.edge.domain.cards import Card, check, fingerprint
from services.edge.domain.keys import Access, Grant
from services.edge.domain.problems import TITLES, problem_of
from services.edge.vault import Vault
from services.kit import errors
from services.kit.checks import passes_luhn
from services.kit.errors import Bug, Invalid, PaymeshError, Violation
from services.kit.logs import MASK, mask

TODAY = date(2026, 11, 26)
CARD = Card("4242424242424242", 12, 2031, "123")
SECRET = "a secret of the tests, long enough to be one"


def test_a_key_says_whose_it_is_and_is_never_the_same() -> None:
    made = {keys.new_api_key("shop") for _ in range(100)}
    assert len(made) == 100
    assert {keys.merchant_in(key) for key in made} == {"shop"}


@pytest.mark.parametrize(
    "key",
    [
        "",
        "pmk",
        "pmk.shop.",
        "pmk..x",
        f"pmk.{'a' * 65}.{'b' * 43}",
        f"pmk.shop.{'b' * 42}",
        f"pmk.a b.{'b' * 43}",
    ],
)
def test_what_has_not_the_form_of_a_key_is_none(key: str) -> None:
    assert keys.merchant_in(key) is None


def test_a_hash_depends_on_the_key_and_on_the_secret() -> None:
    key = keys.new_api_key("shop")
    assert keys.hash_of(key, SECRET) == keys.hash_of(key, SECRET)
    assert keys.hash_of(key, SECRET) != keys.hash_of(keys.new_api_key("shop"), SECRET)
    assert keys.hash_of(key, SECRET) != keys.hash_of(key, SECRET + "!")


def test_a_grant_ends_when_somebody_has_said_so() -> None:
    grant = Grant("shop", "key_1", Access.FULL)
    assert grant.valid_at(10**15)
    assert replace(grant, valid_until_ms=100).valid_at(99)
    assert not replace(grant, valid_until_ms=100).valid_at(100)


@pytest.mark.parametrize(
    ("header", "token"),
    [
        ("Bearer abc", "abc"),
        ("bearer  abc ", "abc"),
        ("Basic abc", None),
        ("Bearer", None),
        ("Bearer ", None),
        ("", None),
    ],
)
def test_a_bearer_token_is_found(header: str, token: str | None) -> None:
    assert keys.bearer(header) == token


@pytest.mark.parametrize(
    ("header", "key"),
    [
        ("order-1", "order-1"),
        ('"order-1"', "order-1"),
        (' "order-1" ', "order-1"),
        (r'"a\"b\\c"', r'a"b\c'),
        ('a"b', 'a"b'),
        ('"', '"'),
        ("k" * 255, "k" * 255),
        ("k" * 256, None),
        ("", None),
        ('""', None),
        ('" a"', None),
        ("schlüssel", None),
        ("a\tb", None),
        (r'"a\b"', None),
        ('"a"b"', None),
    ],
)
def test_an_idempotency_key_may_be_quoted_or_bare(header: str, key: str | None) -> None:
    assert keys.idempotency_key(header) == key


def test_a_payment_without_an_order_has_one_of_its_own() -> None:
    assert keys.order_of_key("a") == keys.order_of_key("a") != keys.order_of_key("b")
    assert len(keys.order_of_key("k" * 255)) <= 64


@pytest.mark.parametrize(
    ("number", "right"),
    [
        ("4242424242424242", True),
        ("378282246310005", True),
        ("4242424242424241", False),
        ("4242424242424224", False),
    ],
)
def test_the_check_digit_is_checked(number: str, right: bool) -> None:
    assert passes_luhn(number) is right


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"number": "4242424242424241"}, "card.number"),
        ({"number": "4242 4242 4242 4242"}, "card.number"),
        ({"number": "٤٢٤٢٤٢٤٢٤٢٤٢٤٢٤٢"}, "card.number"),
        ({"number": "42424242424"}, "card.number"),
        ({"exp_month": 0}, "card.exp_month"),
        ({"exp_month": 13}, "card.exp_month"),
        ({"exp_year": 2025}, "card.exp_year"),
        ({"exp_month": 10, "exp_year": 2026}, "card.exp_month"),
        ({"exp_year": 2047}, "card.exp_year"),
        ({"cvc": "12"}, "card.cvc"),
        ({"cvc": "12a"}, "card.cvc"),
    ],
)
def test_a_card_that_cannot_be_is_refused_without_repeating_it(change: dict[str, object], field: str) -> None:
    with pytest.raises(Invalid) as raised:
        check(replace(CARD, **change), TODAY)  # type: ignore[arg-type]
    assert {violation.field for violation in raised.value.violations} == {field}
    assert CARD.number[:12] not in str(raised.value)


def test_a_good_card_passes_in_its_last_month_too() -> None:
    check(CARD, TODAY)
    check(replace(CARD, exp_month=11, exp_year=2026), TODAY)


def test_a_card_does_not_show_itself() -> None:
    assert "4242" not in repr(CARD)
    assert "123" not in repr(CARD)


def test_a_fingerprint_tells_the_same_number_at_the_same_merchant_only() -> None:
    secret = SECRET.encode()
    one = fingerprint("shop", CARD.number, secret)
    assert one == fingerprint("shop", CARD.number, secret)
    assert one != fingerprint("shop", "4000000000000002", secret)
    assert one != fingerprint("other", CARD.number, secret)
    assert one != fingerprint("shop", CARD.number, b"another")


def test_a_sealed_number_opens_for_its_card_only() -> None:
    vault = Vault(SECRET)
    sealed = vault.seal(CARD.number, "shop", "card_1")
    assert CARD.number.encode() not in sealed.text + sealed.key
    assert vault.open(sealed, "shop", "card_1") == CARD.number
    assert vault.seal(CARD.number, "shop", "card_1") != sealed
    for merchant, card in (("shop", "card_2"), ("other", "card_1")):
        with pytest.raises(Bug, match="VAULT_BROKEN"):
            vault.open(sealed, merchant, card)
    changed = replace(sealed, text=sealed.text[:-1] + bytes([sealed.text[-1] ^ 1]))
    with pytest.raises(Bug, match="VAULT_BROKEN"):
        vault.open(changed, "shop", "card_1")


def test_a_vault_with_a_new_key_opens_what_the_old_one_has_sealed() -> None:
    sealed = Vault(SECRET).seal(CARD.number, "shop", "card_1")
    renewed = Vault("a new secret of the tests, also long enough", (SECRET,))
    assert renewed.open(sealed, "shop", "card_1") == CARD.number
    assert renewed.seal(CARD.number, "shop", "card_1").vault_key_id != sealed.vault_key_id
    with pytest.raises(Bug, match="VAULT_KEY_UNKNOWN"):
        Vault("a new secret of the tests, also long enough").open(sealed, "shop", "card_1")


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (Invalid([Violation("amount.amount_minor", "is 0")]), 400, "invalid_request"),
        (errors.Refused("CAPTURE_EXCEEDS_HOLD", "no"), 422, "capture_exceeds_hold"),
        (errors.key_reused("k"), 422, "idempotency_key_reused"),
        (errors.NotFound("UNKNOWN_PAYMENT", "no"), 404, "not_found"),
        (errors.Retryable("DATABASE_UNAVAILABLE", "no"), 503, "unavailable"),
        (errors.Overloaded("OVERLOADED", "no"), 503, "unavailable"),
        (errors.InProgress("OUTCOME_UNKNOWN", "wait", retry_after_ms=1_200), 409, "in_progress"),
        (errors.Unknown("UNAVAILABLE", "who knows"), 504, "outcome_unknown"),
        (Bug("INTERNAL", "oh"), 500, "internal"),
    ],
)
def test_every_kind_of_error_is_one_problem(error: PaymeshError, status: int, code: str) -> None:
    found = problem_of(error)
    assert (found.status, found.code) == (status, code)
    assert found.body["title"] == TITLES[status]
    assert ("Retry-After" in found.all_headers) is (status in {409, 503, 504})


def test_a_problem_speaks_of_the_fields_of_the_api_and_of_whole_seconds() -> None:
    wrong = problem_of(
        Invalid([Violation("amount.amount_minor", "is 0"), Violation("card.token", "is required")])
    )
    assert [name for name, _ in wrong.errors] == ["amount", "card.token"]
    assert (
        problem_of(errors.InProgress("IN_PROGRESS", "wait", retry_after_ms=1_200)).all_headers["Retry-After"]
        == "2"
    )


def test_a_log_line_never_shows_a_card_number() -> None:
    assert mask("card 4242424242424242 failed") == f"card {MASK} failed"
    assert mask('{"n": "378282246310005"}') == '{"n": "' + MASK + '"}'
    for harmless in (
        "1796310222888",
        "4242424242424241",
        "pay_01a2186244277183b44e188c46c1d6c5",
        "5555555555554444x",
    ):
        assert mask(harmless) == harmless
