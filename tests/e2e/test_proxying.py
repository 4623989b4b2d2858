"""Requests through a running balancer, with its own worker and with gunicorn's threads."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator

import pytest

from tests.e2e.conftest import Site
from tests.support.backends import (
    Peer,
    Script,
    answer_of,
    chunked,
    close_unanswered,
    cut,
    head_of,
    in_steps,
    ok,
    once,
    reset_unanswered,
    serve,
    stall,
)
from tests.support.clients import Answer, request

pytestmark = pytest.mark.xdist_group("site")

SIZE = 8 << 20


@pytest.fixture
def site(any_site: Site) -> Iterator[Site]:
    any_site.reset()
    yield any_site
    any_site.check()


def call(
    site: Site,
    method: str = "GET",
    target: str = "/",
    body: bytes | None = None,
    *fields: str,
    host: str = "t.example",
) -> Answer:
    """One request on a connection of its own."""
    more = () if body is None else (f"Content-Length: {len(body)}",)
    with site.client() as client:
        client.send(request(method, target, *more, *fields, host=host) + (body or b""))
        return client.read_answer(method)


# Methods and targets.


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_methods(site: Site, method: str) -> None:
    body = b"body" if method in ("POST", "PUT", "PATCH") else None
    answer = call(site, method, "/path", body)
    assert (answer.status, answer.body, answer.complete) == (200, b"ok", True)
    (seen,) = site.one.requests
    assert (seen.method, seen.target, seen.body) == (method, "/path", body or b"")


def test_head(site: Site) -> None:
    site.serve(serve(head_of(200, "Content-Length: 1000", "X-A: 1")))
    answer = call(site, "HEAD")
    assert (answer.status, answer.values("Content-Length"), answer.values("X-A")) == (200, ["1000"], ["1"])
    assert site.one.requests[0].method == "HEAD"


@pytest.mark.parametrize("status", [200, 201, 204, 301, 304, 404, 418, 500, 503])
def test_statuses_go_through(site: Site, status: int) -> None:
    bodiless = status in (204, 304)
    site.serve(serve(head_of(status) if bodiless else answer_of(status, b"body", "Location: /x")))
    answer = call(site)
    assert (answer.status, answer.body) == (status, b"" if bodiless else b"body")
    assert answer.head.startswith(b"HTTP/1.1 %d Some Words\r\n" % status)


@pytest.mark.parametrize(
    "target",
    [
        "/",
        "/a/../b/./c",
        "//double//",
        "/%2f%2F%00%zz",
        "/a;b=c?d=e&f=%20+",
        "/?",
        "/?a?b",
        "/%C3%BC",
        "/a=b,c'(d)*!~$@:",
    ],
)
def test_the_target_goes_on_byte_for_byte(site: Site, target: str) -> None:
    assert call(site, target=target).status == 200
    assert site.one.requests[0].target == target


# Bodies.


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_large_upload(site: Site, framing: str) -> None:
    content = os.urandom(1 << 20) * 8
    site.serve(serve(lambda request: ok(hashlib.sha256(request.body).hexdigest().encode())))
    with site.client() as client:
        if framing == "length":
            client.send(request("POST", "/", f"Content-Length: {SIZE}") + content)
        else:
            pieces = [content[at : at + 77_777] for at in range(0, SIZE, 77_777)]
            client.send(request("POST", "/", "Transfer-Encoding: chunked") + chunked(*pieces))
        answer = client.read_answer()
    assert answer.body.decode() == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("framing", ["length", "chunked", "until the end"])
def test_a_large_download(site: Site, framing: str) -> None:
    content = os.urandom(1 << 20) * 8
    pieces = [content[at : at + 77_777] for at in range(0, SIZE, 77_777)]
    answers = {
        "length": ok(content),
        "chunked": head_of(200, "Transfer-Encoding: chunked") + chunked(*pieces),
        "until the end": head_of(200) + content,
    }
    site.serve(once(answers[framing]))
    answer = call(site)
    assert answer.complete
    assert hashlib.sha256(answer.body).digest() == hashlib.sha256(content).digest()


def test_an_answer_arrives_as_it_is_written(site: Site) -> None:
    """Its first byte is passed on while the backend still thinks about the rest."""
    site.serve(
        in_steps(head_of(200, "Transfer-Encoding: chunked"), b"3\r\none\r\n", b"3\r\ntwo\r\n", b"0\r\n\r\n")
    )
    with site.client() as client:
        client.send(request("GET", "/"))
        site.one.may_go_on.release()
        if site.worker == "gevent":  # gunicorn's own workers send the head with the first piece
            assert client.read_head().startswith(b"HTTP/1.1 200 ")
        site.one.may_go_on.release()
        if site.worker != "gevent":
            assert client.read_head().startswith(b"HTTP/1.1 200 ")
        assert client.read_some() == b"3\r\none\r\n"
        site.one.may_go_on.release()
        assert client.read_some() == b"3\r\ntwo\r\n"
        site.one.may_go_on.release()
        assert client.read_some() == b"0\r\n\r\n"


def test_an_upload_arrives_as_it_is_sent(site: Site) -> None:
    got: list[bytes] = []

    def script(peer: Peer) -> None:
        assert peer.read_head() is not None
        for size in (3, 4):
            got.append(peer.read(size))
            peer.backend.may_go_on.release()
        peer.send(ok())

    if site.worker == "gthread":
        return  # gunicorn's own workers read in blocks
    site.serve(script)
    with site.client() as client:
        client.send(request("POST", "/", "Content-Length: 7") + b"one")
        assert site.one.may_go_on.acquire(timeout=10)
        client.send(b"more")
        assert client.read_answer().status == 200
    assert got == [b"one", b"more"]


@pytest.mark.parametrize("target", ["odd", "ftp://t.example/", "http:///"])
def test_a_target_that_is_none(site: Site, target: str) -> None:
    with site.client() as client:
        client.send(request("GET", target))
        answer = client.read_answer()
    assert answer.status == 400


def test_expect_continue(site: Site) -> None:
    """A client may wait for this before it sends its body: the backend is asked, nobody else can know."""

    def script(peer: Peer) -> None:
        head = peer.read_head()
        assert head is not None
        expected = head.values("Expect")
        if expected:
            peer.send(b"HTTP/1.1 100 Continue\r\nX-From: backend\r\nContent-Length: 5\r\n\r\n")
        assert peer.read(4) == b"body"
        peer.send(ok(",".join(expected).encode()))

    site.serve(script)
    with site.client() as client:
        client.send(request("POST", "/", "Content-Length: 4", "Expect: 100-continue"))
        go_on = client.read_head()
        assert go_on.startswith(b"HTTP/1.1 100 Continue\r\n")
        client.send(b"body")
        answer = client.read_answer()
        assert (answer.status, answer.interim) == (200, [])
    if site.worker == "gevent":  # gunicorn answers by itself
        assert go_on == b"HTTP/1.1 100 Continue\r\nX-From: backend\r\n\r\n"
        assert answer.body == b"100-continue"


def test_a_backend_that_does_not_want_the_body(own_site: Site) -> None:
    """Under gunicorn's own workers it is not asked: gunicorn asks for the body by itself."""
    site = own_site
    site.reset()

    def script(peer: Peer) -> None:
        assert peer.read_head() is not None
        peer.send(answer_of(413, b"no"))

    site.serve(script)
    with site.client() as client:
        client.send(request("POST", "/", "Content-Length: 4", "Expect: 100-continue"))
        answer = client.read_answer()
        assert (answer.status, answer.body, answer.interim) == (413, b"no", [])
        assert client.at_end()


def test_an_unknown_expectation(site: Site) -> None:
    if site.worker == "gevent":
        answer = call(site, "POST", "/", b"x", "Expect: 200-ok")
        assert answer.status == 417
        assert site.one.requests == []


@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_interim_answers(site: Site, version: str) -> None:
    """They are for clients that know them; what is for one hop only is not in them."""
    hints = b"HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\nConnection: X-Gone\r\nX-Gone: 1\r\n\r\n"
    site.serve(once(hints + b"HTTP/1.1 102 Processing\r\n\r\n" + ok(b"done")))
    with site.client() as client:
        client.send(request("GET", "/", version=version))
        answer = client.read_answer()
        assert answer.body == b"done"
        if site.worker == "gevent":
            assert answer.interim == (
                [
                    b"HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\n\r\n",
                    b"HTTP/1.1 102 Processing\r\n\r\n",
                ]
                if version == "1.1"
                else []
            )


# Connections.


def test_a_client_keeps_its_connection(site: Site) -> None:
    with site.client() as client:
        for number in range(5):
            answer = client.get(f"/{number}")
            assert (answer.status, answer.values("Connection")) in ((200, []), (200, ["keep-alive"]))
        client.call("POST", "/5", b"body")
        client.call("POST", "/6", b"")
        assert client.get("/7").status == 200
    assert [seen.target for seen in site.one.requests] == [f"/{number}" for number in range(8)]


def test_connections_to_a_backend_are_kept(site: Site) -> None:
    for number in range(10):
        body = b"body" if number % 2 else None
        assert call(site, "POST" if body else "GET", "/", body, host="kept.example").status == 200
    assert len(site.kept.requests) == 10
    assert site.kept.connections == 1


def test_a_client_that_says_close(site: Site) -> None:
    with site.client() as client:
        answer = client.get("/", "Connection: close")
        assert (answer.status, answer.values("Connection")) == (200, ["close"])
        assert client.at_end()


def test_http_1_0(site: Site) -> None:
    with site.client() as client:
        client.send(request("GET", "/", version="1.0"))
        answer = client.read_answer()
        assert (answer.status, answer.body) == (200, b"ok")
        assert client.at_end()
    assert site.one.requests[0].head.startswith(b"GET / HTTP/1.1\r\n")


def test_http_1_0_gets_no_chunks(site: Site) -> None:
    site.serve(once(head_of(200, "Transfer-Encoding: chunked") + chunked(b"hel", b"lo")))
    with site.client() as client:
        client.send(request("GET", "/", version="1.0"))
        answer = client.read_answer()
        assert (answer.values("Transfer-Encoding"), answer.body) == ([], b"hello")
        assert client.at_end()


def test_an_answer_without_length_is_chunked(site: Site) -> None:
    site.serve(once(head_of(200) + b"hello"))
    with site.client() as client:
        answer = client.get("/")
        assert (answer.values("Transfer-Encoding"), answer.body) == (["chunked"], b"hello")
        assert client.get("/").body == b"hello"


# Fields.


def test_fields_for_one_hop_end_here(site: Site) -> None:
    gone = (
        "Connection: X-Gone, close",
        "X-Gone: 1",
        "Keep-Alive: 5",
        "TE: trailers",
        "Proxy-Connection: close",
    )
    fields = (*gone, "Upgrade: h2c", "Trailer: X", "X-Stays: 1")
    site.serve(once(ok(b"", "X-Back: 1", *gone, "Trailer: X", "Upgrade: h2c")))
    answer = call(site, "GET", "/", None, *fields)
    seen = site.one.requests[0]
    assert seen.values("X-Stays") == ["1"]
    lost = {"x-gone", "keep-alive", "te", "proxy-connection", "upgrade"}
    assert not lost & {name.lower() for name in seen.names}
    assert not lost & set(answer.names)
    assert answer.values("X-Back") == ["1"]
    if site.worker == "gevent":  # gunicorn looks for nothing but the word alone
        assert answer.values("Connection") == ["close"]  # ours, because the client asked for it


def test_the_client_cannot_say_who_he_is(site: Site) -> None:
    forged = (
        "X-Forwarded-For: 6.6.6.6",
        "X-Forwarded-Proto: https",
        "X-Forwarded-Host: evil",
        "X-Forwarded-Port: 1",
    )
    call(site, "GET", "/", None, *forged, "X-Real-IP: 6.6.6.6", "X-Request-Id: forged")
    seen = site.one.requests[0]
    assert seen.values("X-Forwarded-For") == ["127.0.0.1"]
    assert seen.values("X-Real-Ip") == []
    assert seen.values("X-Forwarded-Proto") == ["http"]
    assert seen.values("X-Forwarded-Host") == ["t.example"]
    assert seen.values("X-Forwarded-Port") == [str(site.port)]
    (number,) = seen.values("X-Request-Id")
    assert number != "forged"
    assert seen.values("Host") == ["t.example"]
    assert seen.values("Via") == ["1.1 lb"]


def test_repeated_answer_fields_keep_their_order(site: Site) -> None:
    cookies = [f"Set-Cookie: {name}={number}; Path=/" for number, name in enumerate("cab")]
    site.serve(serve(ok(b"", *cookies, "X-Last: 1")))
    answer = call(site)
    assert answer.values("Set-Cookie") == ["c=0; Path=/", "a=1; Path=/", "b=2; Path=/"]


def test_an_answer_has_one_date_and_one_server(site: Site) -> None:
    site.serve(serve(ok(b"", "Date: Mon, 01 Jan 2024 00:00:00 GMT", "Server: backend")))
    answer = call(site)
    assert len(answer.values("Date")) == 1
    assert len(answer.values("Server")) == 1
    if site.worker == "gevent":
        assert answer.values("Server") == ["backend"]
    answer = call(site, host="none.example")
    assert len(answer.values("Date")) == 1


def test_the_log_tells_of_each_request(site: Site) -> None:
    call(site, target="/log?me=1")
    entry = site.balancer.logged("/log?me=1")
    assert (entry["status"], entry["method"], entry["bytes"], entry["pool"]) == (200, "GET", 2, "default")
    assert (entry["backend"], entry["client"], entry["host"]) == (site.one.id, "127.0.0.1", "t.example")
    assert entry["id"] == site.one.requests[0].values("X-Request-Id")[0]


# When it cannot be done.


def problem(answer: Answer) -> dict[str, object]:
    found: dict[str, object] = json.loads(answer.body)
    return found


@pytest.mark.parametrize(
    ("host", "status", "code"),
    [
        ("none.example", 503, "no_backend"),
        ("refused.example", 502, "connect_failed"),
        ("deaf.example", 504, "connect_timeout"),
        ("nowhere.example", 404, "no_route"),
    ],
)
def test_errors(site: Site, host: str, status: int, code: str) -> None:
    plain = call(site, host=host, target=f"/{host}")
    assert plain.status == status
    assert plain.values("Content-Type") == ["text/plain; charset=utf-8"]
    assert code in plain.body.decode()
    (number,) = plain.values("X-Request-Id")
    assert (plain.values("Retry-After") != []) == (status == 503)
    entry = site.balancer.logged(f"/{host}")
    assert (entry["status"], entry["code"], entry["id"]) == (status, code, number)
    told = call(site, "GET", "/", None, "Accept: application/json", host=host)
    assert (told.status, told.values("Content-Type")) == (status, ["application/problem+json"])
    (number,) = told.values("X-Request-Id")
    body = problem(told)
    assert (body["status"], body["code"], body["request_id"]) == (status, code, number)
    assert call(site, "HEAD", host=host).status == status


@pytest.mark.parametrize(
    ("script", "status", "code"),
    [
        (reset_unanswered, 502, "upstream_closed"),
        (close_unanswered, 502, "upstream_closed"),
        (once(b"\x16\x03\x01 what?\r\n\r\n"), 502, "bad_response"),
        (once(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"), 502, "bad_response"),
        (once(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n"), 502, "bad_response"),
        (stall, 504, "response_timeout"),
    ],
)
def test_bad_backends(site: Site, script: Script, status: int, code: str) -> None:
    site.brisk.script = script
    with site.client() as client:
        client.send(
            request("POST", "/", "Content-Length: 4", "Accept: application/json", host="brisk.example")
            + b"body"
        )
        answer = client.read_answer()
        assert (answer.status, problem(answer)["code"]) == (status, code)
        assert client.get("/").status == 200  # the client's connection is as good as before
    assert len(site.brisk.requests) == 1


def test_control_is_not_reached_through_the_data_port(site: Site) -> None:
    """The listener decides, never a path or a field."""
    answer = call(
        site, "GET", "/readyz", None, "X-Forwarded-Port: 8001", host=f"127.0.0.1:{site.balancer.control}"
    )
    assert answer.status == 404
    answer = call(site, "GET", "/healthz")
    assert answer.body == b"ok"
    assert site.one.requests[0].target == "/healthz"


# Another try.


@pytest.mark.parametrize("script", [reset_unanswered, close_unanswered])
def test_a_get_goes_to_another_backend(site: Site, script: Script) -> None:
    site.first.script = script
    targets = [f"/{script.__name__}/{number}" for number in range(4)]
    for target in targets:
        answer = call(site, target=target, host="two.example")
        assert (answer.status, answer.body) == (200, b"ok")
    assert [seen.target for seen in site.second.requests] == targets
    tried = [entry for entry in map(site.balancer.logged, targets) if "tried" in entry]
    assert {(*entry["tried"], entry["backend"], entry["status"]) for entry in tried} == {
        (site.first.id, site.second.id, 200)
    }


def test_a_put_is_sent_again_with_its_body(site: Site) -> None:
    site.first.script = reset_unanswered
    for _ in range(2):
        assert call(site, "PUT", "/", b"body", host="two.example").status == 200
    assert [seen.body for seen in site.second.requests] == [b"body", b"body"]


def test_a_post_is_never_sent_twice(site: Site) -> None:
    site.first.script = reset_unanswered
    statuses = [call(site, "POST", f"/{number}", b"body", host="two.example").status for number in range(4)]
    assert sorted(statuses) == [200, 200, 502, 502]
    sent = [seen.target for seen in (*site.first.requests, *site.second.requests)]
    assert sorted(sent) == ["/0", "/1", "/2", "/3"]


@pytest.mark.parametrize("framing", ["none", "length", "chunked"])
def test_a_post_goes_on_when_its_backend_refused(site: Site, framing: str) -> None:
    for _ in range(4):
        with site.client() as client:
            if framing == "chunked":
                client.send(
                    request("POST", "/", "Transfer-Encoding: chunked", host="mixed.example")
                    + chunked(b"body")
                )
                answer = client.read_answer()
            else:
                client.send(
                    request(
                        "POST",
                        "/",
                        *(["Content-Length: 4"] if framing == "length" else []),
                        host="mixed.example",
                    )
                )
                client.send(b"body" if framing == "length" else b"")
                answer = client.read_answer()
        assert answer.status == 200
    assert [seen.body for seen in site.good.requests] == [b"" if framing == "none" else b"body"] * 4


# Answers that break.


@pytest.mark.parametrize(
    ("head", "part"),
    [
        (head_of(200, "Content-Length: 1000"), b"x" * 10),
        (head_of(200, "Transfer-Encoding: chunked"), b"5\r\nhello\r\n"),
        (head_of(200), b"x" * 10),
    ],
)
def test_a_broken_answer_is_never_completed(site: Site, head: bytes, part: bytes) -> None:
    site.serve(cut(head + part))
    with site.client() as client:
        client.send(request("GET", "/broken"))
        assert client.read_head().startswith(b"HTTP/1.1 200 ")
        site.one.may_go_on.release()
        got = b""
        try:
            while data := client.read_some():
                got += data
            ended = "closed"
        except ConnectionError:
            ended = "reset"
        assert b"0\r\n\r\n" not in got
        assert ended == "reset" or len(got) < 1000
    site.serve(serve())
    assert call(site).status == 200


# Clients that go away.


def test_a_client_that_leaves_within_a_download_frees_the_claim(site: Site) -> None:
    def script(peer: Peer) -> None:
        if peer.read_request() is not None:
            peer.send(head_of(200, "Content-Length: 1000000000"))
            while True:  # until we are hung up on
                peer.send(b"x" * 100_000)

    site.serve(script)
    with site.client() as client:
        client.send(request("GET", "/endless"))
        client.read_head()
        assert site.balancer.view.in_flight() == 1
    site.balancer.idle()
    if site.worker == "gevent":
        assert site.balancer.logged("/endless")["code"] == "client_gone"


def test_a_client_that_leaves_within_an_upload_frees_the_claim(site: Site) -> None:
    def script(peer: Peer) -> None:
        if peer.read_head() is not None:
            peer.backend.may_go_on.release()
            peer.wait_closed()

    site.serve(script)
    with site.client() as client:
        client.send(request("POST", "/half", "Content-Length: 1000000") + b"x" * 200_000)
        assert site.one.may_go_on.acquire(timeout=10)
        assert site.balancer.view.in_flight() == 1
    assert site.one.closed.acquire(timeout=10), "the backend still waits for the rest"
    site.balancer.idle()


def test_many_clients_at_once(site: Site) -> None:
    """Each gets his own answer."""
    site.one.script = serve(lambda seen: ok(seen.target.encode() * 100))
    wrong: list[str] = []

    def client(number: int) -> None:
        with site.client() as connection:
            for turn in range(10):
                target = f"/{number}-{turn}"
                if connection.get(target).body != target.encode() * 100:
                    wrong.append(target)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert wrong == []
    assert len(site.one.requests) == 120


def test_two_backends_take_turns(site: Site) -> None:
    for number in range(20):
        assert call(site, target=f"/{number}", host="two.example").status == 200
    assert [len(site.first.requests), len(site.second.requests)] == [10, 10]
