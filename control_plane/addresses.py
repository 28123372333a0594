"""Where a webhook may be sent: which URLs can be registered, and which addresses may be connected to.

A URL is somebody's wish, and this service stands where its users may not: beside databases, and beside the metadata
services of clouds, which hand out credentials. So a name is resolved once, every address that it has must be public,
and the connection goes to an address that was looked at (worker/posting.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from urllib.parse import urlsplit

from control_plane.errors import InvalidRequest

Address = IPv4Address | IPv6Address

LONGEST_URL = 2048
# Printable ASCII without spaces and backslashes: parsers differ over all else.
_URL = re.compile(r"[!-\[\]-~]+")
_HOST = re.compile(r"[a-z0-9_]([a-z0-9._-]*[a-z0-9_])?\.?")
NAT64 = IPv6Network("64:ff9b::/96")
PROTOCOLS = IPv4Network("192.0.0.0/24")
"""For protocols, and Oracle's metadata service; Python 3.11 knows only parts of it as private."""
AZURE = IPv4Address("168.63.129.16")
"""Azure's metadata service, which has a public address."""


@dataclass(frozen=True)
class Target:
    """A URL in its parts."""

    secure: bool
    host: str
    port: int
    path: str
    """With the query."""


def read_url(url: str, *, allow_http: bool, allow_private: bool) -> Target:
    """Raises InvalidRequest for a URL that no webhook could be sent to; says nothing yet of where a name leads."""
    if len(url) > LONGEST_URL or not _URL.fullmatch(url):
        raise _refused(f"must be an absolute URL of at most {LONGEST_URL} printable ASCII characters, without spaces")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise _refused(f"is no URL: {error}") from None
    if parts.scheme != "https" and not (allow_http and parts.scheme == "http"):
        also = "" if allow_http else "; the operator may allow http with DPO_WEBHOOK_ALLOW_HTTP=true"
        raise _refused(f"must begin with https://{also}")
    if "@" in parts.netloc:
        raise _refused("may not hold a user or a password; deliveries are signed instead")
    if parts.fragment:
        raise _refused("may not have a fragment (#…): it is never sent")
    host = parts.hostname or ""
    address = _literal(host)
    if address is None and not _HOST.fullmatch(host):
        raise _refused("must name a host (an international name in its xn--… form)")
    if not allow_private:
        local = host.rstrip(".") == "localhost" or host.rstrip(".").endswith(".localhost")
        refusal = f"{host} is this server itself" if local else why_not(address) if address is not None else None
        if refusal is not None:
            raise _refused(f"may not lead there: {refusal}; {ALLOW_PRIVATE}")
    secure = parts.scheme == "https"
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(secure, host, port or (443 if secure else 80), path)


ALLOW_PRIVATE = "the operator may allow it with DPO_WEBHOOK_ALLOW_PRIVATE=true"


def why_not(address: Address) -> str | None:
    """What keeps webhooks from this address, in words; None for a public one."""
    hides_another = site_local = False
    if isinstance(address, IPv6Address):
        if address in NAT64:
            return why_not(IPv4Address(int(address) & 0xFFFFFFFF))
        hides_another = any(it is not None for it in (address.ipv4_mapped, address.sixtofour, address.teredo))
        site_local = address.is_site_local
    kinds = {
        "hides an IPv4 address in an IPv6 one": hides_another,
        "is a loopback address": address.is_loopback,
        "is a link-local address, as clouds' metadata services have": address.is_link_local,
        "is a multicast address": address.is_multicast,
        "is no host's address": address.is_unspecified,
        "is a private address": address.is_private or site_local,
        "is a cloud's metadata service": address == AZURE,
        "is not a public address": not address.is_global or address.is_reserved or address in PROTOCOLS,
    }
    return next((f"{address} {kind}" for kind, so in kinds.items() if so), None)


def _literal(host: str) -> Address | None:
    try:
        return ip_address(host)
    except ValueError:
        return None


def _refused(why: str) -> InvalidRequest:
    return InvalidRequest(f"`url` {why}.", param="url", code="invalid_url")
