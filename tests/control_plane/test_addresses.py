"""Where webhooks may go."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from control_plane.addresses import read_url, why_not
from control_plane.errors import InvalidRequest


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.1.2.3",
        "0.0.0.0",  # noqa: S104 - nothing is bound to it
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "100.100.100.200",  # Alibaba's metadata service
        "169.254.169.254",  # the others'
        "168.63.129.16",  # Azure's
        "192.0.0.192",  # Oracle's
        "198.18.0.1",
        "224.0.0.1",
        "239.255.255.250",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "fe80::1",
        "fec0::1",
        "fd00:ec2::254",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:8.8.8.8",
        "::127.0.0.1",
        "2002:7f00:1::",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::1",
        "2001:db8::1",
    ],
)
def test_refused(address: str) -> None:
    reason = why_not(ip_address(address))
    assert reason is not None and ("address" in reason or "metadata" in reason)


@pytest.mark.parametrize("address", ["8.8.8.8", "93.184.216.34", "172.32.0.1", "2606:4700::1111", "64:ff9b::808:808"])
def test_public(address: str) -> None:
    assert why_not(ip_address(address)) is None


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://hooks.example/x", "https://; the operator may allow http with DPO_WEBHOOK_ALLOW_HTTP"),
        ("ftp://hooks.example/x", "https://"),
        ("file:///etc/passwd", "https://"),
        ("gopher://127.0.0.1:6379/_x", "https://"),
        ("//hooks.example/x", "https://"),
        ("hooks.example", "https://"),
        ("https://", "must name a host"),
        ("https://user:pass@hooks.example/", "user or a password"),
        ("https://hooks.example@127.0.0.1/", "user or a password"),
        ("https://hooks.example/#x", "fragment"),
        ("https://hooks.example:99999/", "is no URL"),
        ("https://hooks.example:x/", "is no URL"),
        ("https://hooks.example/a b", "printable ASCII"),
        ("https://hooks.example/\r\nHost: x", "printable ASCII"),
        ("https://hooks.example\\@127.0.0.1/", "printable ASCII"),
        ("https://bücher.example/", "printable ASCII"),
        ("https://hooks.example/" + "x" * 2048, "2048"),
        ("https://localhost/", "this server itself"),
        ("https://a.localhost./", "this server itself"),
        ("https://127.0.0.1/", "loopback"),
        ("https://[::1]:8443/", "loopback"),
        ("https://[::ffff:10.0.0.1]/", "hides an IPv4"),
        ("https://169.254.169.254/latest/meta-data/", "metadata"),
        ("https://[fe80::1%25eth0]/", "link-local"),
        ("https://exa%6dple.com/", "must name a host"),
    ],
)
def test_refused_urls(url: str, words: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read_url(url, allow_http=False, allow_private=False)
    assert words in refused.value.message
    assert (refused.value.param, refused.value.code) == ("url", "invalid_url")


def test_urls_in_their_parts() -> None:
    target = read_url("https://Hooks.Example:8443/a/b?c=d", allow_http=False, allow_private=False)
    assert (target.secure, target.host, target.port, target.path) == (True, "hooks.example", 8443, "/a/b?c=d")
    target = read_url("http://[::1]", allow_http=True, allow_private=True)
    assert (target.secure, target.host, target.port, target.path) == (False, "::1", 80, "/")
