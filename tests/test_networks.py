"""Which addresses are in which networks."""

from __future__ import annotations

import pytest

from lb.networks import Networks

SOME = Networks(["10.0.0.0/8", "192.0.2.7/32", "fd00::/8"])


@pytest.mark.parametrize("address", ["10.1.2.3", "192.0.2.7", "::ffff:10.0.0.1", "fd12::5", "fd12::5%eth0"])
def test_in_one_of_them(address: str) -> None:
    assert SOME.have(address)
    assert SOME.have(address)  # from memory


@pytest.mark.parametrize("address", ["11.0.0.1", "192.0.2.8", "::ffff:11.0.0.1", "fe80::1", "", "nonsense"])
def test_in_none(address: str) -> None:
    assert not SOME.have(address)


def test_no_networks_have_nobody() -> None:
    nobody = Networks([])
    assert nobody.empty
    assert not SOME.empty
    assert not nobody.have("10.1.2.3")
