"""Webhooks, the pure part: where they may be sent, who is told of what, how long it is tried, how it is signed."""

from __future__ import annotations

import base64
import ipaddress
import re
import socket
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook, WebhookVerificationError

from services.edge.domain import webhooks
from services.edge.domain.addresses import check_url, may_be_sent_to, networks, place_of
from services.edge.domain.webhooks import (
    DeliveryState,
    EndpointState,
    Failure,
    GivenUp,
    Outcome,
    Policy,
    check_events,
    new_secret,
    signatures,
    wants,
)
from services.kit.errors import Invalid

REFUSED = Outcome(Failure.STATUS, 500, "", 1)
DELIVERED = Outcome(None, 204, "", 1)
HOUR_MS = 3_600_000
MIGRATION = Path(__file__).parents[2] / "services/edge/migrations/0002_webhooks.sql"


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.255.255.254", "0.0.0.0", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1",
        "169.254.169.254", "100.64.0.1", "192.0.0.1", "192.0.2.1", "198.18.0.1", "203.0.113.9", "224.0.0.1",
        "239.1.2.3", "240.0.0.1", "255.255.255.255",
        "::", "::1", "fe80::1", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1", "2001:db8::1", "100::1",
        "::ffff:127.0.0.1", "::ffff:10.1.2.3", "::ffff:169.254.169.254",  # mapped
        "::127.0.0.1", "::a00:1",  # compatible
        "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1",  # NAT64
        "2002:7f00:1::", "2002:a9fe:a9fe::1",  # 6to4
        "2001:0:4136:e378:8000:63bf:3fff:fdd2",  # Teredo
    ],
)  # fmt: skip
def test_nothing_is_sent_into_a_network_that_is_not_public(address: str) -> None:
    assert not may_be_sent_to(ipaddress.ip_address(address), True, ())


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.216.34", "2606:4700::1111", "64:ff9b::101:101"])
def test_to_the_public_it_is_sent_encrypted(address: str) -> None:
    assert may_be_sent_to(ipaddress.ip_address(address), True, ())
    assert not may_be_sent_to(ipaddress.ip_address(address), False, ())
    assert not may_be_sent_to(ipaddress.ip_address(address), False, networks("127.0.0.0/8"))


def test_what_is_allowed_is_allowed_in_every_form_and_nothing_beside_it() -> None:
    allowed = networks("127.0.0.0/8, fd00:1::/32")
    for address in ("127.0.0.1", "::ffff:127.0.0.1", "fd00:1::9"):
        assert may_be_sent_to(ipaddress.ip_address(address), False, allowed), address
    for address in ("10.0.0.1", "::1", "fd00:2::9", "::ffff:10.0.0.1"):
        assert not may_be_sent_to(ipaddress.ip_address(address), True, allowed), address


@given(st.ip_addresses(v=4))
def test_an_address_may_not_do_in_disguise_what_it_may_not_openly(address: ipaddress.IPv4Address) -> None:
    openly = may_be_sent_to(address, True, ())
    number = int(address)
    for disguise in (0xFFFF << 32 | number, 0x64FF9B << 96 | number, 0x2002 << 112 | number << 80):
        assert openly or not may_be_sent_to(ipaddress.IPv6Address(disguise), True, ())


@pytest.mark.parametrize(
    "url",
    [
        "", "shop.example", "ftp://shop.example/", "javascript:alert(1)", "//shop.example/", "https://", "https:///x",
        "https://user@shop.example/", "https://user:secret@shop.example/", "https://shop.example/#top",
        "https://shop.example:0/", "https://shop.example:65536/", "https://shop.example:x/", "https://shop.example/ a",
        "https://shop.example/\r\nX: y", "https://shop.example\\@evil.example/", "https://[::1", "https://sho\0p.example/",
        "https://ex\u00e4mple.de/", "HTTPS://shop.example/", "https://shop.example/" + "x" * 2_048,
        "http://shop.example/",
        "https://127.0.0.1/", "https://[::1]/", "https://[::ffff:10.0.0.1]:8443/", "https://169.254.169.254/latest",
    ],
)  # fmt: skip
def test_a_url_that_nothing_can_be_sent_to_is_refused_at_once(url: str) -> None:
    with pytest.raises(Invalid) as caught:
        check_url(url, ())
    assert [violation.field for violation in caught.value.violations] == ["url"]


def test_a_url_leads_to_a_place() -> None:
    check_url("https://shop.example/hooks?a=1&b=%20", ())
    assert place_of("https://shop.example") == ("shop.example", 443, True)
    assert place_of("https://shop.example:8443/x") == ("shop.example", 8443, True)
    assert place_of("https://[2606:4700::1111]/") == ("2606:4700::1111", 443, True)
    check_url("http://127.0.0.1:9000/", networks("127.0.0.0/8"))
    with pytest.raises(Invalid):
        check_url("http://10.0.0.1/", networks("127.0.0.0/8"))


def test_numbers_that_are_addresses_in_disguise_are_seen_when_they_are_looked_up() -> None:
    """Not when the URL is checked: what counts is where the resolver says that they lead."""
    for host in ("2130706433", "0x7f.1", "0177.0.0.1"):
        check_url(f"https://{host}/", ())
        (found, *_) = socket.getaddrinfo(host, 443, type=socket.SOCK_STREAM)
        assert not may_be_sent_to(ipaddress.ip_address(str(found[4][0])), True, ())


def test_an_endpoint_is_told_what_it_has_asked_for() -> None:
    assert wants((), "payment.captured")
    assert wants(("payment.*",), "payment.captured")
    assert wants(("order.placed", "payment.captured"), "payment.captured")
    assert not wants(("order.*", "payment.refunded"), "payment.captured")
    assert check_events(["payment.captured", "order.*", "payment.captured"]) == (
        "order.*",
        "payment.captured",
    )
    for wrong in (["payment"], ["*"], ["payment.capture"], ["stock.*"], ["order.placed"] * 51):
        with pytest.raises(Invalid):
            check_events(wrong)


def test_waits_grow_and_end_with_the_time() -> None:
    policy = Policy()
    until_ms = 72 * HOUR_MS
    at_ms, failures, waits = 0, 0, []
    while (then := policy.after(REFUSED, failures := failures + 1, at_ms, until_ms, 0.0)).wait_ms:
        waits.append(then.wait_ms)
        at_ms += then.wait_ms
    assert at_ms == until_ms, "the last attempt is made at the very end"
    assert (then.state, then.reason) == (DeliveryState.GIVEN_UP, GivenUp.RETRIES_EXHAUSTED)
    assert waits[:4] == [2_500, 10_000, 40_000, 160_000]
    assert sorted(waits[:-1]) == waits[:-1]
    assert max(waits) == 3 * HOUR_MS
    assert 15 <= len(waits) <= 40


@given(st.integers(1, 1_000), st.integers(0, 80 * HOUR_MS), st.floats(0, 1, exclude_max=True))
def test_a_delivery_is_never_left_without_a_next_step(failures: int, at_ms: int, jitter: float) -> None:
    then = Policy().after(REFUSED, failures, at_ms, 72 * HOUR_MS, jitter)
    if then.state is DeliveryState.PENDING:
        assert 0 < then.wait_ms <= 6 * HOUR_MS
        assert at_ms + then.wait_ms <= 72 * HOUR_MS
        assert then.wait_ms >= min(2_500, 72 * HOUR_MS - at_ms)
    else:
        assert at_ms >= 72 * HOUR_MS
    assert Policy().after(DELIVERED, failures, at_ms, 0).state is DeliveryState.DELIVERED


def test_a_receiver_is_left_alone_as_long_as_it_asks_and_no_longer_than_six_hours() -> None:
    asks = REFUSED._replace(retry_after_ms=60_000)
    assert Policy().after(asks, 1, 0, 72 * HOUR_MS).wait_ms == 60_000
    asks = REFUSED._replace(retry_after_ms=90 * HOUR_MS)
    assert Policy().after(asks, 1, 0, 72 * HOUR_MS).wait_ms == 6 * HOUR_MS


def test_an_endpoint_is_disabled_when_it_is_gone_or_has_failed_for_days() -> None:
    policy, at_ms = Policy(), 100 * HOUR_MS
    exhausted = policy.after(REFUSED, 20, at_ms, at_ms)
    again = policy.after(REFUSED, 2, at_ms, at_ms + HOUR_MS)
    assert policy.why_disabled(REFUSED._replace(status=410), again, None, at_ms)
    assert policy.why_disabled(REFUSED, exhausted, at_ms - 71 * HOUR_MS, at_ms)
    assert not policy.why_disabled(REFUSED, exhausted, at_ms - 50 * HOUR_MS, at_ms), "it was well meanwhile"
    assert not policy.why_disabled(REFUSED, exhausted, None, at_ms)
    assert not policy.why_disabled(REFUSED, again, at_ms - 71 * HOUR_MS, at_ms)


def test_the_library_of_receivers_takes_each_signature_and_no_other() -> None:
    old, new, other = new_secret(), new_secret(), new_secret()
    assert len(base64.b64decode(new.removeprefix("whsec_"))) == 32
    body = '{"type":"payment.captured","note":"für 5 €"}'.encode()
    at = int(datetime.now(UTC).timestamp())
    headers = {
        "webhook-id": "evt_1",
        "webhook-timestamp": str(at),
        "webhook-signature": signatures("evt_1", at, body, [new, old]),
    }
    for secret in (old, new):
        assert Webhook(secret).verify(body.decode(), headers) == {
            "type": "payment.captured",
            "note": "für 5 €",
        }
    for secret, changed in (
        (other, headers),
        (new, {**headers, "webhook-id": "evt_2"}),
        (new, {**headers, "webhook-timestamp": str(at - 1)}),
    ):
        with pytest.raises(WebhookVerificationError):
            Webhook(secret).verify(body.decode(), changed)
    with pytest.raises(WebhookVerificationError):
        Webhook(new).verify(body.decode() + " ", headers)


def test_states_are_the_same_words_in_the_database() -> None:
    text = MIGRATION.read_text(encoding="utf-8")
    for constraint, states in (
        ("known_endpoint_state", EndpointState),
        ("known_delivery_state", DeliveryState),
    ):
        found = re.search(rf"{constraint} CHECK \(state IN \(([^)]*)\)\)", text)
        assert found is not None
        assert set(re.findall(r"'(\w+)'", found[1])) == {str(state) for state in states}
    assert webhooks.GROUPS == ("order.*", "payment.*")
