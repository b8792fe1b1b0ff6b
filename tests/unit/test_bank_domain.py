"""What the bank decides, without a database: cards, tokens, faults, and the answers to repeats and voids."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, date, datetime
from itertools import cycle
from pathlib import Path

import pytest

from sandbox.bank import domain, tokenization
from sandbox.bank.cards import CARDS, Card, card_of
from sandbox.bank.domain import AuthorizeWish, KeyedVoid, Kind, Operation, Result, State, VoidWish
from sandbox.bank.faults import CERTAIN_PPM, FAULTS_MAX, UNLIMITED, Fault, FaultKind, Faults, Target
from sandbox.bank.tokenization import CardNumber, brand_of, passes_luhn, tokenize
from services.kit.errors import Invalid

AT = datetime(2030, 5, 17, 12, 0, tzinfo=UTC)
TODAY = AT.date()
SECRET = b"secret"


def _authorized(
    token: str = "tok_visa", *, operation_id: str = "auth_1", key: str = "k1", fingerprint: bytes = b"f"
) -> Operation:
    wish = AuthorizeWish("m", 1_000, "GBP", token, "order 1", card_of(token))
    return domain.authorize(wish, operation_id, key, fingerprint, AT)


def _void(authorization_id: str, key: str) -> KeyedVoid:
    return KeyedVoid(VoidWish("m", authorization_id), key, authorization_id.encode())


def _fault(kind: FaultKind = FaultKind.ERROR, **changes: object) -> Fault:
    fields: dict[str, object] = {
        "fault_id": "flt_1",
        "kind": kind,
        "target": None,
        "probability_ppm": CERTAIN_PPM,
        "strikes_left": UNLIMITED,
        "delay_ms": 0,
        "merchant_id": "",
    }
    return Fault(**(fields | changes))  # type: ignore[arg-type]


def _dice(*throws: float) -> Callable[[], float]:
    return cycle(throws).__next__


def test_an_approval_has_a_code_of_six_capital_letters_and_digits() -> None:
    codes = {_authorized().auth_code for _ in range(300)}
    assert len(codes) > 290
    assert all(re.fullmatch(r"[A-Z0-9]{6}", code) for code in codes)
    assert {character for code in codes for character in code} == set("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789")


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.token)
def test_every_test_card_has_a_valid_number_that_gives_its_token(card: Card) -> None:
    cvc = "1234" if brand_of(card.number) == "amex" else "123"
    token = tokenize(CardNumber(card.number, 12, TODAY.year, cvc), TODAY, SECRET)
    assert token.token == card.token
    assert (token.bin, token.last4) == (card.number[:6], card.number[-4:])
    assert card_of(token.token) is card


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        ("tok_visa", ""),
        ("tok_visa_" + "x" * 64, ""),
        ("tok_visa_customer-7_B", ""),
        ("tok_insufficient_funds", "INSUFFICIENT_FUNDS"),
        ("tok_insufficient_funds_7", "INSUFFICIENT_FUNDS"),
        ("tok_velocity_exceeded_7", "VELOCITY_EXCEEDED"),
        ("tok_4_0123456789abcdef0123456789abcdef", ""),
        ("tok_visa_" + "x" * 65, "INVALID_CARD"),
        ("tok_visa_", "INVALID_CARD"),
        ("tok_visa_ü", "INVALID_CARD"),
        ("tok_visa\n", "INVALID_CARD"),
        ("tok_visax", "INVALID_CARD"),
        ("xtok_visa", "INVALID_CARD"),
        ("tok_4_0123456789ABCDEF0123456789abcdef", "INVALID_CARD"),
        ("4242424242424242", "INVALID_CARD"),
    ],
)
def test_a_token_decides_whether_the_bank_approves(token: str, reason: str) -> None:
    made = _authorized(token)
    assert made.decline_reason == reason
    assert made.result is (Result.DECLINED if reason else Result.APPROVED)
    assert bool(re.fullmatch("[A-Z0-9]{6}", made.auth_code)) is not bool(reason)


def test_a_suffix_keeps_the_delay_of_a_slow_card() -> None:
    assert card_of("tok_slow").delay_ms == card_of("tok_slow_17").delay_ms == 2_000
    assert card_of("tok_visa_slow").delay_ms == 0


def test_other_cards_get_a_stable_token_that_does_not_show_the_number() -> None:
    card = CardNumber("4000056655665556", 1, 2031, "123")
    token = tokenize(card, TODAY, SECRET)
    assert token == tokenize(CardNumber("4000056655665556", 2, 2032, "999"), TODAY, SECRET)
    assert token.token != tokenize(card, TODAY, b"another").token
    assert re.fullmatch("tok_4_[0-9a-f]{32}", token.token)
    assert "056655665556" not in token.token
    assert not card_of(token.token).decline_reason
    assert "4000056655665556" not in repr(card)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"number": ""}, "number"),
        ({"number": "4242424242424241"}, "number"),
        ({"number": "4242 4242 4242 4242"}, "number"),
        ({"number": "٤٢٤٢٤٢٤٢٤٢٤٢٤٢٤٢"}, "number"),
        ({"number": "0" * 20}, "number"),
        ({"expiry_month": 0}, "expiry_month"),
        ({"expiry_month": 13}, "expiry_month"),
        ({"expiry_month": 4, "expiry_year": 2030}, "expiry_month"),
        ({"expiry_year": 2029}, "expiry_year"),
        ({"expiry_year": 31}, "expiry_year"),
        ({"expiry_year": 2051}, "expiry_year"),
        ({"cvc": ""}, "cvc"),
        ({"cvc": "1234"}, "cvc"),
        ({"cvc": "12a"}, "cvc"),
    ],
)
def test_a_mistyped_card_is_refused_without_repeating_it(changes: dict[str, object], field: str) -> None:
    fields: dict[str, object] = {
        "number": "4242424242424242",
        "expiry_month": 6,
        "expiry_year": 2031,
        "cvc": "123",
    }
    card = CardNumber(**(fields | changes))  # type: ignore[arg-type]
    with pytest.raises(Invalid) as caught:
        tokenize(card, TODAY, SECRET)
    assert [violation.field for violation in caught.value.violations] == [field]
    assert not card.number or card.number not in str(caught.value)
    assert not card.cvc or card.cvc not in str(caught.value)


def test_a_card_is_good_until_the_end_of_its_month() -> None:
    card = CardNumber("4242424242424242", 5, 2030, "123")
    assert tokenize(card, date(2030, 5, 31), SECRET).token == "tok_visa"
    with pytest.raises(Invalid):
        tokenize(card, date(2030, 6, 1), SECRET)


def test_luhn_catches_every_single_mistyped_digit() -> None:
    number = "4242424242424242"
    assert passes_luhn(number)
    wrong = [number[:i] + d + number[i + 1 :] for i in range(16) for d in "0123456789" if d != number[i]]
    assert len(wrong) == 144
    assert not any(passes_luhn(n) for n in wrong)


@pytest.mark.parametrize(
    ("number", "brand"),
    [
        ("4", "visa"),
        ("51", "mastercard"),
        ("2720", "mastercard"),
        ("2721", "unknown"),
        ("37", "amex"),
        ("6011", "discover"),
        ("305", "diners"),
        ("3528", "jcb"),
        ("62", "unionpay"),
        ("9", "unknown"),
        ("", "unknown"),
    ],
)
def test_the_first_digits_tell_the_brand(number: str, brand: str) -> None:
    assert brand_of(number) == brand


def test_a_repeat_gets_the_first_result_and_another_request_is_refused() -> None:
    made = _authorized(fingerprint=b"same")
    assert domain.repeat_refusal(made, Kind.AUTHORIZE, "k1", b"same") is None
    for kind, fingerprint in ((Kind.AUTHORIZE, b"other"), (Kind.VOID, b"same")):
        refusal = domain.repeat_refusal(made, kind, "k1", fingerprint)
        assert refusal is not None
        assert refusal.reason == "IDEMPOTENCY_KEY_REUSED"


def test_a_late_authorization_is_refused_whatever_it_says() -> None:
    never = domain.cancelled("m", "k1", AT)
    assert domain.authorization(never).state is State.CANCELLED
    refusal = domain.repeat_refusal(never, Kind.AUTHORIZE, "k1", b"anything")
    assert refusal is not None
    assert refusal.reason == "CANCELLED_BEFORE_ARRIVAL"


def test_voids_of_one_set_are_decided_in_order_and_one_takes_effect() -> None:
    approved = _authorized(operation_id="auth_1")
    declined = _authorized("tok_declined", operation_id="auth_2", key="k2")
    holds = domain.holds_of([approved, declined], [])
    asked = [
        _void("auth_1", "v1"),
        _void("auth_1", "v2"),
        _void("auth_2", "v3"),
        _void("auth_3", "v4"),
        _void("auth_1", "v1"),
        _void("auth_1", "v5"),
    ]
    made = domain.void_in_order(asked, {("m", "v5"): approved}, holds, AT)
    assert {key: operation.result for (_, key), operation in made.items()} == {
        "v1": Result.VOIDED,
        "v2": Result.ALREADY_VOIDED,
        "v3": Result.REFUSED,
    }
    assert [(o.undoes, o.amount_minor, o.currency) for o in made.values()] == [
        ("auth_1", 1_000, "GBP"),
        ("auth_1", 1_000, "GBP"),
        ("auth_2", 1_000, "GBP"),
    ]


def test_a_void_of_what_was_let_go_before_changes_nothing() -> None:
    holds = domain.holds_of([_authorized()], [])
    domain.void_in_order([_void("auth_1", "v0")], {}, holds, AT)
    made = domain.void_in_order([_void("auth_1", "v1")], {}, holds, AT)
    assert [operation.result for operation in made.values()] == [Result.ALREADY_VOIDED]


def _move(
    kind: Kind,
    holds: dict[tuple[str, str], domain.Hold],
    *amounts: int,
    authorization_id: str = "auth_1",
    currency: str = "GBP",
    final: bool = False,
) -> list[str]:
    """What a set of captures, refunds or increments of one authorization comes to, in order: result or reason."""
    wishes = [domain.MoveWish("m", authorization_id, amount, currency, final) for amount in amounts]
    asked = [domain.KeyedMove(wish, f"m{n}", b"f", f"op_{n}") for n, wish in enumerate(wishes)]
    made = domain.move_in_order(kind, asked, {}, holds, AT)
    return [operation.decline_reason or operation.result.value for operation in made.values()]


def test_captures_of_one_set_are_decided_in_order_and_never_exceed_the_hold() -> None:
    holds = domain.holds_of([_authorized()], [])
    assert _move(Kind.CAPTURE, holds, 400, 700, 600, 1) == [
        "CAPTURED",
        "CAPTURE_EXCEEDS_HOLD",
        "CAPTURED",
        "CAPTURE_EXCEEDS_HOLD",
    ]
    hold = holds[("m", "auth_1")]
    assert (hold.captured_minor, hold.held_minor, hold.state) == (1_000, 0, State.CAPTURED)
    assert [o.result for o in domain.void_in_order([_void("auth_1", "v1")], {}, holds, AT).values()] == [
        Result.REFUSED
    ]


def test_a_final_capture_lets_go_of_the_rest() -> None:
    holds = domain.holds_of([_authorized()], [])
    assert _move(Kind.CAPTURE, holds, 400, final=True) == ["CAPTURED"]
    assert (holds[("m", "auth_1")].held_minor, holds[("m", "auth_1")].state) == (0, State.CAPTURED)
    assert _move(Kind.CAPTURE, holds, 1) == ["CAPTURE_EXCEEDS_HOLD"]


def test_refunds_never_exceed_what_was_captured_whatever_is_held() -> None:
    holds = domain.holds_of([_authorized()], [])
    assert _move(Kind.REFUND, holds, 1) == ["REFUND_EXCEEDS_CAPTURED"]
    assert _move(Kind.CAPTURE, holds, 600) == ["CAPTURED"]
    assert _move(Kind.REFUND, holds, 601, 600, 1) == [
        "REFUND_EXCEEDS_CAPTURED",
        "REFUNDED",
        "REFUND_EXCEEDS_CAPTURED",
    ]
    voids = domain.void_in_order([_void("auth_1", "v1")], {}, holds, AT)
    assert [(o.result, o.amount_minor) for o in voids.values()] == [(Result.VOIDED, 400)], "the rest"
    assert _move(Kind.CAPTURE, holds, 1) == ["AUTHORIZATION_VOIDED"]


def test_an_increment_holds_more_until_something_was_captured() -> None:
    holds = domain.holds_of([_authorized()], [])
    assert _move(Kind.INCREMENT, holds, 500) == ["INCREMENTED"]
    assert holds[("m", "auth_1")].held_minor == 1_500
    assert _move(Kind.CAPTURE, holds, 1_500) == ["CAPTURED"]
    assert _move(Kind.INCREMENT, holds, 1) == ["AUTHORIZATION_CAPTURED"]


@pytest.mark.parametrize("kind", [Kind.CAPTURE, Kind.REFUND, Kind.INCREMENT])
def test_what_never_held_anything_moves_nothing_and_currencies_do_not_mix(kind: Kind) -> None:
    holds = domain.holds_of([_authorized("tok_declined"), _authorized(operation_id="auth_2", key="k2")], [])
    assert _move(kind, holds, 1) == ["AUTHORIZATION_DECLINED"]
    assert _move(kind, holds, 1, authorization_id="auth_2", currency="EUR") == ["CURRENCY_MISMATCH"]
    assert _move(kind, holds, 1, authorization_id="auth_3") == [], "unknown: no operation"


def test_cards_may_refuse_what_comes_after_the_authorization() -> None:
    for token, kind, reason in (
        ("tok_no_increment", Kind.INCREMENT, "INSUFFICIENT_FUNDS"),
        ("tok_no_capture_7", Kind.CAPTURE, "CARD_CLOSED"),
    ):
        assert _move(kind, domain.holds_of([_authorized(token)], []), 1) == [reason]
    holds = domain.holds_of([_authorized("tok_no_refund")], [])
    assert _move(Kind.CAPTURE, holds, 2) == ["CAPTURED"]
    assert _move(Kind.REFUND, holds, 1) == ["ACCOUNT_CLOSED"]
    assert holds[("m", "auth_1")].refunded_minor == 0


def test_a_fault_strikes_its_target_and_its_merchant_only() -> None:
    faults = Faults(_dice(0.0))
    assert faults.strike(Target.VOID, "m") is None
    assert faults.arm(_fault(target=Target.VOID, merchant_id="m"))
    assert faults.strike(Target.AUTHORIZE, "m") is None
    assert faults.strike(Target.VOID, "other") is None
    assert faults.strike(Target.VOID, "m") is not None
    assert [fault.strikes for fault in faults.list_faults()] == [1]


def test_a_fault_disarms_itself_after_its_strikes() -> None:
    faults = Faults(_dice(0.0))
    faults.arm(_fault(strikes_left=2))
    assert [faults.strike(Target.VOID, "m") is not None for _ in range(3)] == [True, True, False]
    assert not faults.armed
    assert [(f.strikes, f.strikes_left) for f in faults.list_faults()] == [(2, 0)]
    faults.arm(_fault())
    assert faults.armed
    faults.clear()
    assert not faults.armed
    assert not faults.list_faults()


def test_chance_is_in_millionths() -> None:
    faults = Faults(_dice(0.000_001, 0.000_000_9))
    faults.arm(_fault(probability_ppm=1))
    assert [faults.strike(Target.VOID, "m") is not None for _ in range(4)] == [False, True, False, True]


def test_the_first_fault_that_strikes_wins_and_the_second_gets_its_turn() -> None:
    faults = Faults(_dice(0.9, 0.0))
    faults.arm(_fault(FaultKind.ERROR, probability_ppm=500_000))
    faults.arm(_fault(FaultKind.DELAY, delay_ms=5))
    struck = [faults.strike(Target.LOOKUP, "m") for _ in range(2)]
    assert [fault and fault.kind for fault in struck] == [FaultKind.DELAY, FaultKind.ERROR]


def test_a_refused_connection_concerns_calls_and_never_single_operations() -> None:
    faults = Faults(_dice(0.0))
    faults.arm(_fault(FaultKind.REFUSE_CONNECTION, merchant_id="m", strikes_left=1))
    assert faults.strike(Target.AUTHORIZE, "m") is None
    assert not faults.refuses(Target.AUTHORIZE, {"other"})
    assert faults.refuses(Target.AUTHORIZE, {"other", "m"})
    assert not faults.refuses(Target.AUTHORIZE, {"m"})


def test_the_list_of_faults_is_bounded_and_forgets_spent_ones_first() -> None:
    faults = Faults(_dice(0.0))
    faults.arm(_fault(fault_id="first"))
    faults.arm(_fault(fault_id="spent", strikes_left=1, target=Target.VOID, merchant_id="x"))
    for n in range(FAULTS_MAX - 2):
        assert faults.arm(_fault(fault_id=f"more {n}"))
    assert not faults.arm(_fault(fault_id="too many"))
    faults.list_faults()[1].strikes_left = 0
    assert faults.arm(_fault(fault_id="fits"))
    names = [fault.fault_id for fault in faults.list_faults()]
    assert (len(names), names[0], names[1], names[-1]) == (FAULTS_MAX, "first", "more 0", "fits")


def test_the_readme_lists_the_test_cards() -> None:
    text = (Path(tokenization.__file__).parent / "README.md").read_text("utf-8")
    listed = re.findall(r"^\| `(tok_\w+)` \| (\d+) \| (\w+)", text, re.MULTILINE)
    assert listed == [(card.token, card.number, card.decline_reason or "approved") for card in CARDS]
