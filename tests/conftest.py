"""Fixtures for all tests."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path

import pytest

from tests.support.certificates import Authority, Pair
from tests.support.run import UNDER_TEST

_WHERE = "import lb.app; print(lb.app.__file__)"


def pytest_report_header() -> str:
    """Which balancer tests start as a process."""
    done = subprocess.run(
        (UNDER_TEST, "-P", "-c", _WHERE), capture_output=True, text=True, cwd=Path(__file__).parent
    )
    found = done.stdout.strip() or done.stderr.strip()
    return f"balancers: {UNDER_TEST} with {found}"


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The authority of a test run's certificates."""
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="session")
def server_pair(authority: Authority) -> Pair:
    """What a server on 127.0.0.1, also called localhost and backend.example, shows."""
    return authority.issue("server", "IP:127.0.0.1", "DNS:localhost", "DNS:backend.example")


@pytest.fixture(scope="session")
def http2_server(server_pair: Pair) -> ssl.SSLContext:
    """The context of a server that offers HTTP/2."""
    context = server_pair.server()
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


@pytest.fixture(scope="session")
def http2_trust(authority: Authority) -> ssl.SSLContext:
    """The context of a client that speaks HTTP/2."""
    context = authority.trust()
    context.set_alpn_protocols(["h2"])
    return context
