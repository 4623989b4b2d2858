"""Which addresses may be registered."""

from __future__ import annotations

import pytest

from lb.control.networks import NotAllowed, NotFound, check
from lb.settings import PRIVATE_NETWORKS


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "127.255.0.9", "10.0.0.1", "172.31.255.255", "192.168.1.1", "localhost", "127.1"),
        *("[::1]", "[fd12::5]", "[fe80::1]", "[::ffff:10.0.0.1]"),
    ],
)
def test_private_by_default(host: str) -> None:
    check(f"http://{host}:80", PRIVATE_NETWORKS)


@pytest.mark.parametrize(
    "host",
    [
        *(
            "169.254.169.254",
            "0.0.0.0",
            "172.32.0.1",
            "8.8.8.8",
            "192.0.2.1",
            "2852039166",
            "0xa9.254.169.254",
        ),
        *("[2001:db8::1]", "[::]", "[::ffff:169.254.169.254]", "[ff02::1]"),
    ],
)
def test_nothing_else(host: str) -> None:
    with pytest.raises(NotAllowed, match="allowed_backends"):
        check(f"http://{host}:80", PRIVATE_NETWORKS)


def test_other_networks() -> None:
    check("https://192.0.2.7:443", ("192.0.2.0/24",))
    with pytest.raises(NotAllowed, match=r"127\.0\.0\.1 is in none"):
        check("http://127.0.0.1:80", ("192.0.2.0/24",))
    with pytest.raises(NotAllowed):
        check("http://127.0.0.1:80", ())


def test_every_address_of_a_name() -> None:
    """localhost has at least one, and it is said which name has it."""
    with pytest.raises(NotAllowed, match="one of the addresses of localhost, is in none"):
        check("http://localhost:80", ("192.0.2.0/24",))


@pytest.mark.parametrize("host", ["nothing.invalid", "a..b", "x" * 70 + ".example"])
def test_names_without_an_address(host: str) -> None:
    with pytest.raises(NotFound):
        check(f"http://{host}:80", PRIVATE_NETWORKS)


def test_no_sockets() -> None:
    with pytest.raises(NotAllowed, match="configuration"):
        check("http+unix://%2Frun%2Fdocker.sock", ("0.0.0.0/0", "::/0"))
