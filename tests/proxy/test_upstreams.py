"""Requests for the backends of a pool: one upstream for each, the Host that the pool wants."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from lb.certificates import client_context
from lb.model import Backend
from lb.proxy.upstreams import Upstreams
from lb.settings import PoolConfig, UpstreamTls
from tests.support.backends import refusing

HEAD = b"GET /a HTTP/1.1\r\nhost: asked.example\r\nX: Host: y\r\n\r\n"
ONE, TWO = (Backend(id=f"127.0.0.1:{n}", url=f"http://127.0.0.1:{n}") for n in (9001, 9002))


def made(host: str = "") -> Upstreams:
    return Upstreams(replace(PoolConfig(), host=host), None, client_context(UpstreamTls(), "tls"))


def test_each_backend_has_one_upstream_until_it_leaves() -> None:
    upstreams = made()
    first = upstreams.request(ONE, "GET", "/a", HEAD, None)
    assert (first.url, first.head) == ("http://127.0.0.1:9001/a", HEAD)
    again, other = (upstreams.request(backend, "GET", "/b", HEAD, None) for backend in (ONE, TWO))
    assert again.upstream is first.upstream
    assert other.upstream is not first.upstream
    upstreams.keep_only({TWO.url})
    assert upstreams.request(TWO, "GET", "/a", HEAD, None).upstream is other.upstream
    assert upstreams.request(ONE, "GET", "/a", HEAD, None).upstream is not first.upstream
    upstreams.close()


def test_only_who_was_asked_is_knocked_at() -> None:
    with refusing() as url:
        upstreams, backend = made(), Backend(id="dead", url=url)
        assert upstreams.accepts(url, 1.0) is None
        upstreams.request(backend, "GET", "/a", HEAD, None)
        assert upstreams.accepts(url, 1.0) is False
        upstreams.keep_only(set())
        assert upstreams.accepts(url, 1.0) is None


@pytest.mark.parametrize(
    ("host", "line"),
    [("", b"host: asked.example"), ("own", b"Host: own"), ("backend", b"Host: 127.0.0.1:9001")],
)
def test_the_host_that_backends_see(host: str, line: bytes) -> None:
    sent = made(host).request(ONE, "GET", "/a", HEAD, None).head
    assert sent == b"GET /a HTTP/1.1\r\n%b\r\nX: Host: y\r\n\r\n" % line


def test_a_backend_of_a_socket_has_a_name_of_its_own() -> None:
    backend = Backend(id="s", url="http+unix://%2Frun%2Fs.sock")
    assert b"\r\nHost: localhost\r\n" in made("backend").request(backend, "GET", "/", HEAD, None).head
