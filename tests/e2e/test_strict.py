"""Clients of this project's own worker that are slow, early, late or gone. What a message may look like is in
`tests/http/corpus`."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from tests.e2e.conftest import Site
from tests.support.backends import Peer, chunked, cut, head_of, ok, serve, stall
from tests.support.clients import Answer, Client, request

pytestmark = pytest.mark.xdist_group("strict")


@pytest.fixture
def site(own_site: Site) -> Iterator[Site]:
    own_site.reset()
    yield own_site
    own_site.check()


def refused(site: Site, data: bytes) -> Answer:
    """The answer to something that is no request, after which the connection is closed."""
    with site.client() as client:
        client.send(data)
        answer = client.read_answer()
        assert answer.values("Connection") == ["close"]
        assert len(answer.values("X-Request-Id")) == 1
        assert client.at_end()
    assert not [b for b in site.backends() if b.requests], "it reached a backend"
    return answer


HOST = b"Host: t.example\r\n"


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET /" + b"a" * 9_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", 414),
        (b"GET /" + b"a" * 100_000, 431),
        (b"GET / HTTP/1.1\r\n" + HOST + b"A: " + b"a" * 9_000 + b"\r\n\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + HOST + b"A: b\r\n" * 101 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\n" + HOST + b"A: b\r\n" * 20_000, 431),
    ],
)
def test_too_large(site: Site, data: bytes, status: int) -> None:
    assert refused(site, data).status == status


def test_large_but_not_too_large(site: Site) -> None:
    with site.client() as client:
        assert client.get("/" + "a" * 8_000).status == 200
        assert client.get("/", *[f"X-{number}: {'a' * 500}" for number in range(95)]).status == 200
    assert len(site.one.requests[1].names) >= 96


def test_a_refusal_is_logged(site: Site) -> None:
    number = refused(site, b"nonsense\r\n\r\n").values("X-Request-Id")[0]
    deadline = time.monotonic() + 10
    while not (found := [entry for entry in site.balancer.log if entry["id"] == number]):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert (found[0]["status"], found[0]["code"]) == (400, "bad_request")


# What is unusual, and right.


def test_an_empty_line_before_a_request(site: Site) -> None:
    """Some clients send one after a body (RFC 9112, section 2.2); it is not part of the request."""
    with site.client() as client:
        client.send(b"\r\n" + request("GET", "/a") + b"\r\n" + request("GET", "/b"))
        assert [client.read_answer().status, client.read_answer().status] == [200, 200]
    assert [seen.head[:6] for seen in site.one.requests] == [b"GET /a", b"GET /b"]


def test_bytes_that_are_no_ascii(site: Site) -> None:
    with site.client() as client:
        client.send("GET /ü\xff HTTP/1.1\r\nHost: t.example\r\nX-A: ü\xff\r\n\r\n".encode("latin-1"))
        assert client.read_answer().status == 200
    seen = site.one.requests[0]
    assert (seen.target, seen.values("X-A")) == ("/ü\xff", ["ü\xff"])
    assert site.balancer.logged("/ü\xff")["status"] == 200


def test_http_1_0_does_not_take_a_broken_answer_for_the_whole(site: Site) -> None:
    """Its body ends with the connection, so that only a reset says that something is missing."""
    site.serve(cut(head_of(200, "Transfer-Encoding: chunked") + b"5\r\nhello\r\n"))
    with site.client() as client:
        client.send(request("GET", "/", version="1.0"))
        assert client.read_head().startswith(b"HTTP/1.1 200 ")
        assert client.read_some() == b"hello"
        site.one.may_go_on.release()
        with pytest.raises(ConnectionResetError):
            client.read_some()


def test_http_1_0_keep_alive(site: Site) -> None:
    with site.client() as client:
        for _ in range(2):
            client.send(request("GET", "/", "Connection: keep-alive", version="1.0"))
            answer = client.read_answer()
            assert (answer.status, answer.values("Connection")) == (200, ["keep-alive"])


def test_a_request_that_arrives_in_bytes(site: Site) -> None:
    data = request("POST", "/", "Transfer-Encoding: chunked") + chunked(b"hello")
    with site.client() as client:
        for at in range(len(data)):
            client.send(data[at : at + 1])
            if at % 10 == 0:
                time.sleep(0.001)  # now and then a turn of the loop
        assert client.read_answer().status == 200
    assert site.one.requests[0].body == b"hello"


# Pipelining.


def test_pipelined_requests_are_answered_in_order(site: Site) -> None:
    site.one.script = serve(lambda seen: ok(seen.target.encode() + b":" + seen.body))
    with site.client() as client:
        client.send(
            request("GET", "/1")
            + request("POST", "/2", "Content-Length: 3")
            + b"two"
            + request("POST", "/3", "Transfer-Encoding: chunked")
            + chunked(b"th", b"ree")
            + request("HEAD", "/4")
            + request("GET", "/5", "Connection: close")
            + request("GET", "/6")
        )
        bodies = [client.read_answer("HEAD" if number == 4 else "GET").body for number in range(1, 6)]
        assert bodies == [b"/1:", b"/2:two", b"/3:three", b"", b"/5:"]
        assert client.at_end()
    assert [seen.target for seen in site.one.requests] == ["/1", "/2", "/3", "/4", "/5"]


def test_a_pipelined_request_that_is_cut_in_two(site: Site) -> None:
    with site.client() as client:
        second = request("GET", "/2")
        client.send(request("GET", "/1") + second[:10])
        assert client.read_answer().status == 200
        client.send(second[10:])
        assert client.read_answer().status == 200


def test_what_is_pipelined_waits_for_a_slow_answer(site: Site) -> None:
    def script(peer: Peer) -> None:
        while (seen := peer.read_request()) is not None:
            if seen.target == "/slow":
                peer.backend.may_go_on.acquire(timeout=10)
            peer.send(ok(seen.target.encode()))

    site.serve(script)
    with site.client() as client:
        client.send(request("GET", "/slow"))
        client.send(request("GET", "/next"))
        site.one.may_go_on.release()
        assert [client.read_answer().body, client.read_answer().body] == [b"/slow", b"/next"]


# Uploads that are answered early.


@pytest.mark.parametrize("pause", [True, False])
def test_an_early_answer_to_an_upload(site: Site, pause: bool) -> None:
    """The client has it before he has sent the rest, whether he goes on sending or waits."""

    def script(peer: Peer) -> None:
        if peer.read_head() is not None:
            peer.send(head_of(413, "Content-Length: 3") + b"big")
            peer.wait_closed()

    site.serve(script)
    with site.client() as client:
        client.send(request("POST", "/", "Content-Length: 1000000000"))
        stop = threading.Event()

        def feed() -> None:
            try:
                while not stop.is_set():
                    client.sock.sendall(b"x" * 10_000)
            except OSError:
                pass

        feeder = threading.Thread(target=feed, daemon=True)
        if not pause:
            feeder.start()
        else:
            client.send(b"x" * 10)
        began = time.monotonic()
        answer = client.read_answer()
        assert (answer.status, answer.body, answer.values("Connection")) == (413, b"big", ["close"])
        assert time.monotonic() - began < 2
        stop.set()
        if not pause:
            feeder.join(10)
    assert site.one.closed.acquire(timeout=10)


def test_an_error_before_the_upload_is_over(site: Site) -> None:
    with site.client() as client:
        client.send(request("POST", "/", "Content-Length: 1000000", host="none.example") + b"x" * 1000)
        answer = client.read_answer()
        assert (answer.status, answer.values("Connection")) == (503, ["close"])


# Clients that are slow or go away.


@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_client_that_leaves_while_its_backend_thinks_frees_the_claim(site: Site, how: str) -> None:
    site.serve(stall)
    with site.client() as client:
        client.send(request("GET", f"/gone/{how}"))
        deadline = time.monotonic() + 10
        while not site.one.requests:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert site.balancer.view.in_flight() == 1
        client.close() if how == "close" else client.reset()
        assert site.one.closed.acquire(timeout=5), "the backend still works for nobody"
    site.balancer.idle()
    assert site.balancer.logged(f"/gone/{how}")["code"] == "client_gone"


def test_a_client_that_leaves_before_his_upload_began(site: Site) -> None:
    """`100 Continue` finds nobody there: not the backend's fault."""
    with site.client() as client:
        client.send(request("POST", "/left", "Content-Length: 100000", "Expect: 100-continue"))
        client.reset()
    # Whoever looks first is told of a reset by the kernel; to the next one it is an end.
    assert site.balancer.logged("/left")["code"] in ("client_gone", "incomplete_body")


def test_a_body_that_pauses_too_long(site: Site) -> None:
    with site.client() as client:
        client.send(request("POST", "/pause", "Content-Length: 10") + b"x")
        began = time.monotonic()
        answer = client.read_answer()
        assert (answer.status, answer.values("Connection")) == (408, ["close"])
        assert 2.5 < time.monotonic() - began < 8
    assert site.balancer.logged("/pause")["code"] == "client_timeout"


def test_a_client_that_reads_slowly_gets_everything(site: Site) -> None:
    content = b"0123456789" * 200_000
    site.serve(serve(ok(content)))
    with Client(site.port) as client:
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        client.send(request("GET", "/"))
        got = bytearray()
        while len(got) < len(content):
            got += client.sock.recv(20_000)
            if len(got) % 7 == 0:
                time.sleep(0.005)  # slower than the backend
        assert bytes(got).endswith(content[-1000:])


def test_a_client_that_does_not_read_is_given_up(site: Site) -> None:
    """And with it the claim: `client.idle` is how long it may pause."""
    site.serve(serve(head_of(200, "Content-Length: 50000000") + b"x" * 50_000_000))
    with site.client() as client:
        client.send(request("GET", "/deaf"))
        client.read_head()
        site.balancer.idle()
    assert site.balancer.logged("/deaf")["status"] == 200


def test_control_is_strict_and_private_too(site: Site) -> None:
    with Client(site.balancer.control) as client:
        assert json.loads(client.get("/healthz").body) == {"status": "ok"}
        client.send(request("GET", "/nothing", host="localhost"))
        assert client.read_answer().status == 404
        assert client.call("POST", "/healthz", b"x").status == 405
        client.send(b"nonsense\r\n\r\n")
        assert client.read_answer().status == 400
        assert client.at_end()
    with Client(site.balancer.control) as client:
        client.send(request("GET", "/v1/pools", host="localhost"))
        pools = json.loads(client.read_answer().body)["pools"]
        assert pools["two"]["backends"][0]["state"] == "unknown"
