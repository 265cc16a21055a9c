"""Addresses: which IP addresses a download may reach.

Owns the special ranges and what hides inside an address. Input: a host name or an IP address; output: addresses, or whether one is public.
Raises FetchError when a name cannot be resolved in time.

The ranges are those of the IANA special-purpose registries (https://www.iana.org/assignments/iana-ipv4-special-registry,
https://www.iana.org/assignments/iana-ipv6-special-registry): every one of them is refused, also those that are said to be globally reachable, for none holds
media. Of IPv6 only what IANA has given out (2000::/3) and the NAT64 prefix are reached.
"""

from __future__ import annotations

import ipaddress
import socket
import threading
import time

from pipelines.shards.errors import FetchError

SPECIAL_V4 = tuple(
    ipaddress.IPv4Network(text)
    for text in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.31.196.0/24"),
        *("192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24"),
        *("224.0.0.0/4", "240.0.0.0/4"),
    )
)
PUBLIC_V6 = ipaddress.IPv6Network("2000::/3")
SPECIAL_V6 = tuple(ipaddress.IPv6Network(text) for text in ("2001::/23", "2001:db8::/32", "2620:4f:8000::/48", "3fff::/20"))
"""Inside PUBLIC_V6. The first holds Teredo, ORCHID and the benchmarking range."""
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
ISATAP = (0x00005EFE, 0x02005EFE)
"""Third quarter of an address whose last one is an IPv4 address (RFC 5214)."""


def is_public(address: str) -> bool:
    """True when an IP address, and any IPv4 address inside it (mapped, 6to4, NAT64, ISATAP), is outside of all special ranges."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv4Address):
        return not any(ip in network for network in SPECIAL_V4)
    last = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
    if ip.ipv4_mapped is not None or ip in NAT64:
        return is_public(str(last))
    if ip not in PUBLIC_V6 or any(ip in network for network in SPECIAL_V6):
        return False
    inner = [ip.sixtofour] if ip.sixtofour is not None else []
    if int(ip) >> 32 & 0xFFFFFFFF in ISATAP:
        inner.append(last)
    return all(is_public(str(v4)) for v4 in inner)


def resolve(host: str, port: int, deadline: float) -> list[str]:
    """Addresses in the resolver's order. The system resolver has no time limit of its own, so it runs in a thread. Raises FetchError: timeout, dns."""
    found: list[list[str] | Exception] = []

    def ask() -> None:
        try:
            found.append([str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)])
        except (OSError, ValueError, OverflowError) as error:  # ValueError: a name that no encoding of names takes
            found.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(max(0.0, deadline - time.monotonic()))
    if not found:
        raise FetchError("timeout", f"no answer about the name {host[:80]} in time")
    if isinstance(found[0], Exception) or not found[0]:
        raise FetchError("dns", f"the name {host[:80]!r} cannot be resolved")
    return found[0]
