"""Addresses of this installation's own connections: public ones, and those that the operator's settings name."""

from __future__ import annotations

import pytest

from interlock.base.errors import InvalidSpec
from interlock.base.outbound import AddressRefused, Outbound

PRIVATE = ("vllm.internal", "10.1.0.0/16", "192.168.7.9", "fd12::/64")


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("api.openai.com", "104.18.7.192"),
        ("api.openai.com", "2606:4700::6812:7c0"),
        ("127.0.0.1", "127.0.0.1"),
        ("10.9.9.9", "10.9.9.9"),  # written in the setting itself
        ("localhost", "127.0.0.1"),
        ("localhost", "::1"),
        ("vllm.internal", "10.200.0.1"),
        ("VLLM.internal.", "10.200.0.1"),
        ("gpu.example", "10.1.255.1"),
        ("gpu.example", "::ffff:10.1.255.1"),
        ("gpu.example", "192.168.7.9"),
        ("gpu.example", "fd12::5"),
    ],
)
def test_may_be_reached(host: str, address: str) -> None:
    Outbound(PRIVATE).vet(host, address)


@pytest.mark.parametrize(
    ("host", "address"),
    [
        *(("x.example", one) for one in ("127.0.0.1", "10.2.0.1", "192.168.7.8", "172.16.0.1", "100.64.0.1", "0.0.0.0", "::1")),
        *(("x.example", one) for one in ("fc00::1", "fd13::1", "fec0::1", "::ffff:127.0.0.1", "64:ff9b::10.0.0.1")),
        ("x.example", "2002:7f00:1::"),
        ("localhost", "10.0.0.1"),
        ("vllm.internal.evil.example", "10.200.0.1"),
        *((one, one) for one in ("169.254.169.254", "fe80::1", "::ffff:169.254.169.254", "fd00:ec2::254", "168.63.129.16")),
        ("vllm.internal", "169.254.169.254"),
    ],
)  # fmt: skip
def test_may_not_be_reached(host: str, address: str) -> None:
    with pytest.raises(AddressRefused):
        Outbound(PRIVATE).vet(host, address)


@pytest.mark.parametrize("entry", ["", "10.0.0.0/99", "*.internal", "http://vllm.internal"])
def test_an_entry_that_means_nothing_is_refused(entry: str) -> None:
    with pytest.raises(InvalidSpec, match=r"network\.private"):
        Outbound([entry])
