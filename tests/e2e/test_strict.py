"""What clients may send to this project's own worker: exactly one reading of it, or a refusal and the end."""

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

MALFORMED = {
    "no version": b"GET /\r\n\r\n",
    "another protocol": b"GET / FTP/1.1\r\n" + HOST + b"\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "no target": b"GET  HTTP/1.1\r\n" + HOST + b"\r\n",
    "a space in the target": b"GET /a b HTTP/1.1\r\n" + HOST + b"\r\n",
    "a relative target": b"GET path HTTP/1.1\r\n" + HOST + b"\r\n",
    "CONNECT": b"CONNECT t.example:443 HTTP/1.1\r\n" + HOST + b"\r\n",
    "an absolute target without host": b"GET http:///path HTTP/1.1\r\n" + HOST + b"\r\n",
    "an absolute target with a user": b"GET http://u:p@t.example/ HTTP/1.1\r\n" + HOST + b"\r\n",
    "a method with a control character": b"G\x01T / HTTP/1.1\r\n" + HOST + b"\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\n" + HOST + b"Host: evil\r\n\r\n",
    "the same host twice": b"GET / HTTP/1.1\r\n" + HOST + HOST + b"\r\n",
    "a space before the colon": b"GET / HTTP/1.1\r\n" + HOST + b"A : b\r\n\r\n",
    "a space before the name": b"GET / HTTP/1.1\r\n A: b\r\n" + HOST + b"\r\n",
    "no colon": b"GET / HTTP/1.1\r\n" + HOST + b"nothing\r\n\r\n",
    "no name": b"GET / HTTP/1.1\r\n" + HOST + b": b\r\n\r\n",
    "line folding": b"GET / HTTP/1.1\r\n" + HOST + b"A: b\r\n c\r\n\r\n",
    "NUL in a value": b"GET / HTTP/1.1\r\n" + HOST + b"A: \0\r\n\r\n",
    "CR in a value": b"GET / HTTP/1.1\r\n" + HOST + b"A: a\rb\r\n\r\n",
    "bare LF after the request line": b"GET / HTTP/1.1\n" + HOST + b"\r\n",
    "bare LF after a field": b"GET / HTTP/1.1\r\nHost: t.example\nA: b\r\n\r\n",
    "bare LF at the end": b"GET / HTTP/1.1\r\n" + HOST + b"\n",
    "bare LFs": b"GET / HTTP/1.1\nHost: t.example\n\n",
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed(site: Site, name: str) -> None:
    assert refused(site, MALFORMED[name]).status == 400


def test_a_later_minor_version_is_read_as_the_one_we_know(site: Site) -> None:
    """RFC 9110, section 2.5."""
    with site.client() as client:
        client.send(b"GET /x HTTP/1.2\r\n" + HOST + b"\r\n")
        assert client.read_answer().status == 200
    assert site.one.requests[0].head.startswith(b"GET /x HTTP/1.1\r\n")


def test_another_major_version(site: Site) -> None:
    assert refused(site, b"GET / HTTP/2.0\r\n" + HOST + b"\r\n").status == 505


FRAMING = {
    "length and coding": (b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", 400),
    "coding and length": (b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", 400),
    "two lengths": (b"Content-Length: 5\r\nContent-Length: 6\r\n", 400),
    "the same length twice": (b"Content-Length: 5\r\nContent-Length: 5\r\n", 400),
    "a list of lengths": (b"Content-Length: 5, 5\r\n", 400),
    "a signed length": (b"Content-Length: +5\r\n", 400),
    "a negative length": (b"Content-Length: -5\r\n", 400),
    "a length with words": (b"Content-Length: 5 bytes\r\n", 400),
    "an empty length": (b"Content-Length:\r\n", 400),
    "a huge length": (b"Content-Length: 99999999999999999999\r\n", 400),
    "two codings": (b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", 400),
    "an unknown coding": (b"Transfer-Encoding: gzip\r\n", 400),
    "a list of codings": (b"Transfer-Encoding: gzip, chunked\r\n", 501),
    "an obscure coding": (b"Transfer-Encoding: \x0bchunked\r\n", 400),
    "identity": (b"Transfer-Encoding: identity\r\n", 400),
}


@pytest.mark.parametrize("name", FRAMING)
def test_framing(site: Site, name: str) -> None:
    fields, status = FRAMING[name]
    data = (
        b"POST / HTTP/1.1\r\n"
        + HOST
        + fields
        + b"\r\n"
        + b"0\r\n\r\nGET /smuggled HTTP/1.1\r\n"
        + HOST
        + b"\r\n"
    )
    assert refused(site, data).status == status


def test_a_coding_in_http_1_0(site: Site) -> None:
    data = b"POST / HTTP/1.0\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    assert refused(site, data).status == 400


@pytest.mark.parametrize("name", ["Content_Length", "Transfer_Encoding", "X_Forwarded_For", "HOST_"])
def test_names_that_others_read_as_another_are_dropped(site: Site, name: str) -> None:
    with site.client() as client:
        assert client.get("/", f"{name}: 5", "X-Stays: 1").status == 200
    seen = site.one.requests[0]
    assert name not in seen.names
    assert seen.values("X-Stays") == ["1"]
    assert seen.values("X-Forwarded-For") == ["127.0.0.1"]


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


BAD_CHUNKS = [
    b"5\nhello\r\n0\r\n\r\n",
    b"x\r\n",
    b"-1\r\n",
    b"5\r\nhello0\r\n\r\n",
    b"5;\0\r\nhello\r\n0\r\n\r\n",
]


@pytest.mark.parametrize("when", ["at once", "later"])
@pytest.mark.parametrize("data", BAD_CHUNKS)
def test_bad_chunks(site: Site, data: bytes, when: str) -> None:
    """A backend must never take what there is of the body for the whole."""

    def script(peer: Peer) -> None:
        if peer.read_head() is not None:
            peer.backend.may_go_on.release()
            peer.wait_closed()

    site.serve(script)
    with site.client() as client:
        client.send(request("POST", "/", "Transfer-Encoding: chunked") + (data if when == "at once" else b""))
        if when == "later":
            assert site.one.may_go_on.acquire(timeout=10)
            client.send(data)
        answer = client.read_answer()
        assert (answer.status, answer.values("Connection")) == (400, ["close"])
        assert client.at_end()


# What is unusual, and right.


def test_an_empty_line_before_a_request(site: Site) -> None:
    """Some clients send one after a body (RFC 9112, section 2.2); it is not part of the request."""
    with site.client() as client:
        client.send(b"\r\n" + request("GET", "/a") + b"\r\n" + request("GET", "/b"))
        assert [client.read_answer().status, client.read_answer().status] == [200, 200]
    assert [seen.head[:6] for seen in site.one.requests] == [b"GET /a", b"GET /b"]


@pytest.mark.parametrize("target", ["http://t.example/path?q", "HTTP://t.example/path?q"])
def test_an_absolute_target(site: Site, target: str) -> None:
    """Its host counts, whatever the Host field says (RFC 9112, section 3.2.2)."""
    with site.client() as client:
        client.send(request("GET", target, host="evil.example"))
        assert client.read_answer().status == 200
    seen = site.one.requests[0]
    assert (seen.target, seen.values("Host"), seen.values("X-Forwarded-Host")) == (
        "/path?q",
        ["t.example"],
        ["t.example"],
    )


def test_an_absolute_target_without_path(site: Site) -> None:
    with site.client() as client:
        client.send(request("GET", "http://t.example?q"))
        assert client.read_answer().status == 200
    assert site.one.requests[0].target == "/?q"


def test_options_for_the_server(site: Site) -> None:
    with site.client() as client:
        client.send(request("OPTIONS", "*"))
        assert client.read_answer().status in (200, 404)


@pytest.mark.parametrize("method", ["get", "PROPFIND", "M-SEARCH", "X!#$%&'*+-.^_`|~9"])
def test_any_token_is_a_method(site: Site, method: str) -> None:
    with site.client() as client:
        client.send(request(method, "/"))
        assert client.read_answer().status == 200
    assert site.one.requests[0].method == method


def test_bytes_that_are_no_ascii(site: Site) -> None:
    with site.client() as client:
        client.send("GET /ü\xff HTTP/1.1\r\nHost: t.example\r\nX-A: ü\xff\r\n\r\n".encode("latin-1"))
        assert client.read_answer().status == 200
    seen = site.one.requests[0]
    assert (seen.target, seen.values("X-A")) == ("/ü\xff", ["ü\xff"])
    assert site.balancer.logged("/ü\xff")["status"] == 200


def test_http_1_0_with_its_host_in_the_target(site: Site) -> None:
    """Backends are spoken to in HTTP/1.1, which asks for a Host."""
    with site.client() as client:
        client.send(b"GET http://t.example/x HTTP/1.0\r\n\r\n")
        assert client.read_answer().status == 200
        assert client.at_end()
    assert site.one.requests[0].values("Host") == ["t.example"]


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
        assert client.get("/nothing").status == 404
        assert client.call("POST", "/healthz", b"x").status == 405
        client.send(b"nonsense\r\n\r\n")
        assert client.read_answer().status == 400
        assert client.at_end()
    with Client(site.balancer.control) as client:
        pools = json.loads(client.get("/v1/pools").body)["pools"]
        assert pools["two"]["backends"][0]["state"] == "unknown"
