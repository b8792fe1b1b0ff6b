"""Where a webhook may be sent: to the public internet, and nowhere into the network that we stand in ourselves.

A merchant chooses the URL, so whatever can be reached from here can be asked for by strangers: other services, a
cloud's metadata, a router. What counts is the address that is connected to, not the name: a name may lead to one
address when it is checked and to another when it is used. So the addresses are checked that the connection is then
made to.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

from services.kit.errors import Invalid

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

URL_LENGTH_MAX = 2_048
_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9_.-]+)(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<target>[/?][!-~]*)?",
)
"""No user and password, no fragment, no blanks; other scripts as they travel (xn--…, %C3%BC)."""
_PORTS = {"https": 443, "http": 80}

_TRANSLATED = ipaddress.IPv6Network("64:ff9b::/96")
"""The last 32 bits are the IPv4 address that a NAT64 gateway sends it to."""
_NOT_PUBLIC = tuple(
    map(
        ipaddress.ip_network,
        (
            # Python's own list of what is public has changed between its versions; these are never.
            "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
            "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24",
            "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
            "::/128", "::1/128", "64:ff9b:1::/48", "100::/64", "2001::/23", "2001:db8::/32", "3fff::/20", "5f00::/16",
            "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8",
        ),
    )
)  # fmt: skip


class Place(NamedTuple):
    """Where a URL leads."""

    host: str
    """A name, or an address without its brackets."""
    port: int
    encrypted: bool


def place_of(url: str) -> Place:
    """What a merchant's URL leads to. Raises Invalid for one that no webhook can be sent to."""
    found = _URL.fullmatch(url) if len(url) <= URL_LENGTH_MAX else None
    if found is None:
        raise Invalid.field(
            "url",
            f"must be an https:// URL of at most {URL_LENGTH_MAX:,} printable ASCII characters, without a user, "
            "a password or a fragment",
        )
    scheme = found["scheme"]
    port = int(found["port"] or _PORTS[scheme])
    if not 1 <= port <= 65_535 or "#" in (found["target"] or ""):
        raise Invalid.field("url", "must have a port from 1 to 65535, or none, and no fragment")
    return Place(found["host"].strip("[]"), port, scheme == "https")


def check_url(url: str, allowed: Sequence[Network]) -> None:
    """What can be said of a URL before its name is looked up. Raises Invalid."""
    place = place_of(url)
    if not place.encrypted and not allowed:
        raise Invalid.field("url", "must begin with https://")
    try:
        address = ipaddress.ip_address(place.host)
    except ValueError:
        return
    if not may_be_sent_to(address, place.encrypted, allowed):
        raise Invalid.field("url", f"{address} is not a public address, and webhooks are sent to no other")


def may_be_sent_to(address: Address, encrypted: bool, allowed: Sequence[Network]) -> bool:
    """Whether a webhook may be sent to an address. In `allowed` networks it may in any case, unencrypted, too."""
    hidden = _behind(address)
    if any(_lies_in(one, network) for network in allowed for one in (address, *hidden)):
        return True
    return encrypted and _is_public(address) and all(map(_is_public, hidden))


def networks(text: str) -> tuple[Network, ...]:
    """Networks with commas between them, "127.0.0.0/8,::1/128". Raises ValueError."""
    return tuple(ipaddress.ip_network(part.strip()) for part in text.split(",") if part.strip())


def _is_public(address: Address) -> bool:
    return (
        address.is_global
        and not address.is_multicast
        and not any(_lies_in(address, network) for network in _NOT_PUBLIC)
    )


def _lies_in(address: Address, network: Network) -> bool:
    return address.version == network.version and address in network


def _behind(address: Address) -> tuple[Address, ...]:
    """The IPv4 addresses that an IPv6 address stands for."""
    if isinstance(address, ipaddress.IPv4Address):
        return ()
    found: list[Address] = []
    if address.ipv4_mapped is not None:
        found.append(address.ipv4_mapped)
    if address.sixtofour is not None:
        found.append(address.sixtofour)
    if address.teredo is not None:
        found += address.teredo
    if address in _TRANSLATED or int(address) >> 32 == 0:  # NAT64, and the old "IPv4-compatible" form
        found.append(ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF))
    return tuple(found)
