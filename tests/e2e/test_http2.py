"""HTTP/2 for clients, through the whole system: what backends see of it, and what clients get."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import ssl
import subprocess
import threading
from collections.abc import Iterator

import httpx
import pytest
from h2.errors import ErrorCodes

from tests.e2e.test_memory import MOST_MIB, SIZE, growth
from tests.support.backends import (
    Backend,
    Peer,
    Request,
    answer_of,
    chunked,
    cut,
    head_of,
    in_steps,
    ok,
    once,
    serve,
    stall,
)
from tests.support.certificates import Authority, Pair
from tests.support.clients import Client as OneClient
from tests.support.http2 import Client
from tests.support.need import need_binary
from tests.support.processes import Balancer, System
from tests.support.run import eventually


def _digest(seen: Request) -> bytes:
    return ok(hashlib.sha256(seen.body).hexdigest().encode())


@pytest.fixture
def backend() -> Iterator[Backend]:
    with Backend(serve(_digest)) as made:
        yield made


@pytest.fixture
def balancer(system: System, backend: Backend, server_pair: Pair) -> Balancer:
    """One worker before one backend, whose connections are not kept."""
    return system.balancer(backends=backend.url, env=server_pair.env() | {"LB_UPSTREAM_MAX_IDLE": "0"})


@pytest.fixture
def client(balancer: Balancer, http2_trust: ssl.SSLContext) -> Iterator[Client]:
    with Client(balancer.port, http2_trust) as made:
        yield made


def test_what_a_backend_is_sent(balancer: Balancer, backend: Backend, client: Client) -> None:
    answer = client.get(
        "/%2Fa//b?c=d", ("cookie", "a=1"), ("x-one", "1"), ("cookie", "b=2"), ("te", "trailers")
    )
    assert answer.status == 200
    (seen,) = backend.requests
    assert seen.head.startswith(b"GET /%2Fa//b?c=d HTTP/1.1\r\nhost: t.example\r\n")
    assert seen.values("cookie") == ["a=1; b=2"]
    assert seen.values("via") == ["2.0 lb"]
    assert seen.values("x-forwarded-proto") == ["https"]
    assert seen.values("x-forwarded-host") == ["t.example"]
    assert not {name.lower() for name in seen.names} & {
        "te",
        "connection",
        "transfer-encoding",
        "content-length",
    }
    balancer.idle()
    entry = balancer.logged("/%2Fa//b?c=d")
    assert (entry["status"], entry["host"], entry["method"]) == (200, "t.example", "GET")


def test_bodies_both_ways(balancer: Balancer, backend: Backend, client: Client) -> None:
    """With a length and without: then it is chunked to the backend."""
    content = os.urandom(1 << 20)
    wanted = hashlib.sha256(content).hexdigest().encode()
    for fields in [[("content-length", str(len(content)))], []]:
        number = client.start("POST", "/up", *fields, end=False)
        client.upload(number, content)
        assert client.answer(number).body == wanted
    measured, streamed = backend.requests
    assert (measured.values("content-length"), measured.values("transfer-encoding")) == ([str(1 << 20)], [])
    assert (streamed.values("content-length"), streamed.values("transfer-encoding")) == ([], ["chunked"])
    backend.script = once(ok(content))
    answer = client.get("/down")
    assert (answer.body, answer.values("content-length")) == (content, [str(len(content))])
    backend.script = once(head_of(200, "Transfer-Encoding: chunked", "Date: then") + chunked(content, b"end"))
    answer = client.get("/down")
    assert (answer.body, answer.fields) == (content + b"end", [("date", "then")])
    balancer.idle()


def test_trailers_and_interim_answers(balancer: Balancer, backend: Backend, client: Client) -> None:
    raw = chunked(b"abc")[:-2] + b"X-Sum: 6\r\nContent-Length: 9\r\n\r\n"
    hints = head_of(103, "Link: </style>")
    backend.script = once(hints + head_of(200, "Transfer-Encoding: chunked", "Trailer: X-Sum") + raw)
    number = client.start("POST", "/", end=False)
    client.data(number, b"body")
    client.send_frame(client.headers([("x-sum", "4"), ("authorization", "no")], number=number)[1])
    answer = client.answer(number)
    assert answer.interim == [(103, [("link", "</style>")])]
    assert (answer.body, answer.trailers) == (b"abc", [("x-sum", "6")])
    assert backend.requests[0].raw_body.endswith(b"0\r\nx-sum: 4\r\n\r\n")


def test_the_backend_says_whether_to_go_on(balancer: Balancer, backend: Backend, client: Client) -> None:
    def script(peer: Peer) -> None:
        request = peer.read_head()
        assert request is not None
        assert request.values("expect") == ["100-continue"]
        peer.send(head_of(100))
        assert peer.read(4) == b"body"
        peer.send(ok())

    backend.script = script
    number = client.start("POST", "/", ("expect", "100-continue"), ("content-length", "4"), end=False)
    client.until(lambda: client.answers[number].interim, "100")
    client.data(number, b"body", end=True)
    assert client.answer(number).status == 200


def test_answers_without_content(balancer: Balancer, backend: Backend, client: Client) -> None:
    backend.script = once(head_of(200, "Content-Length: 77"))
    answer = client.answer(client.start("HEAD"))
    assert (answer.status, answer.frames, answer.values("content-length")) == (200, 0, ["77"])
    for status in (204, 304):
        backend.script = once(head_of(status))
        answer = client.get()
        assert (answer.status, answer.frames) == (status, 0)


def test_what_is_refused(
    system: System, backend: Backend, server_pair: Pair, http2_trust: ssl.SSLContext
) -> None:
    balancer = system.balancer(backends=backend.url, env=server_pair.env() | {"LB_LIMIT_BODY": "1000"})
    with Client(balancer.port, http2_trust) as client:
        assert client.get("/", ("host", "other.example")).status == 400
        assert client.get("/", host="a b").status == 400
        assert client.get("/", ("x", "y" * 9000)).status == 431
        assert client.get("/", ("transfer-encoding", "chunked")).reset == ErrorCodes.PROTOCOL_ERROR
        number, frame = client.headers([(":method", "CONNECT"), (":authority", "a:1")])
        client.send_frame(frame)
        assert client.answer(number).status == 400
        assert client.get("/" + "x" * 9000).status == 414
        for fields in [[("content-length", "1001")], []]:
            number = client.start("POST", "/", *fields, end=False)
            client.data(number, bytes(1001))
            client.until(lambda number=number: client.answers[number].over, "an answer")  # type: ignore[misc]
            assert client.answers[number].status == 413
    assert backend.requests == []
    balancer.idle()


def test_an_early_answer(balancer: Balancer, backend: Backend, client: Client) -> None:
    """It comes while the upload waits; what was asked of it is told without an error."""

    def script(peer: Peer) -> None:
        assert peer.read_head() is not None
        peer.read(6)
        peer.send(answer_of(403, b"no"))
        peer.wait_closed()

    backend.script = script
    number = client.start("POST", "/early", end=False)
    client.data(number, b"x")
    client.until(lambda: client.answers[number].reset is not None, "the reset")
    answer = client.answers[number]
    assert (answer.status, answer.body, answer.ended, answer.reset) == (403, b"no", True, 0)
    assert backend.closed.acquire(timeout=20)
    balancer.idle()


def test_a_broken_answer_never_looks_whole(balancer: Balancer, backend: Backend, client: Client) -> None:
    for head in ("Content-Length: 9", "Transfer-Encoding: chunked"):
        backend.script = cut(head_of(200, head) + b"4\r\nhalf\r\n"[: 5 if head[0] == "C" else None])
        number = client.start("GET", f"/{head[0]}")
        client.until(lambda number=number: client.answers[number].body, "the first half")  # type: ignore[misc]
        backend.may_go_on.release()
        answer = client.answer(number)
        assert (answer.status, answer.ended, answer.reset) == (200, False, ErrorCodes.INTERNAL_ERROR)
    balancer.idle()
    for target in ("/C", "/T"):
        assert balancer.logged(target)["code"] == "upstream_closed"


@pytest.mark.parametrize("where", ["waiting", "download", "upload"])
@pytest.mark.parametrize("how", ["reset", "closed"])
def test_who_gives_up_frees_the_backend(
    balancer: Balancer, backend: Backend, http2_trust: ssl.SSLContext, where: str, how: str
) -> None:
    def script(peer: Peer) -> None:
        assert peer.read_head() is not None
        if where == "download":
            with contextlib.suppress(ConnectionError):
                peer.send(head_of(200) + bytes(10_000_000))
        peer.wait_closed()

    backend.script = script
    with Client(balancer.port, http2_trust, hold=True) as client:
        number = client.start("POST", "/it", end=where != "upload")
        if where == "download":
            client.until(lambda: client.answers[number].body, "content")
        eventually(lambda: balancer.view.in_flight() == 1, "the claim")
        if how == "reset":
            client.reset(number)
        else:
            client.close()
        assert backend.closed.acquire(timeout=20)
        balancer.idle()
    assert balancer.logged("/it")["code"] == "client_gone"


def test_streamed_answers_come_at_once(balancer: Balancer, backend: Backend, client: Client) -> None:
    pieces = [b"data: 1\n\n", b"data: 2\n\n", b"data: 3\n\n"]
    backend.script = in_steps(head_of(200, "Content-Type: text/event-stream"), *pieces)
    number = client.start("GET", "/events")
    for count in range(4):
        backend.may_go_on.release()
        client.until(
            lambda count=count: (
                client.answers[number].status and client.answers[number].body == b"".join(pieces[:count])
            ),  # type: ignore[misc]
            "a piece",
        )
    assert client.answer(number).ended


def test_a_slow_backend_throttles_one_upload_only(
    system: System, server_pair: Pair, http2_trust: ssl.SSLContext
) -> None:
    """Its client is stopped by the stream's window, before much of it was sent."""
    go_on = threading.Event()

    def script(peer: Peer) -> None:
        request = peer.read_head()
        assert request is not None
        if request.target == "/slow":
            assert go_on.wait(20)
        peer.send(ok(peer.digest(int(request.values("content-length")[0])).encode()))

    content = os.urandom(32 << 20)
    with Backend(script) as backend:
        balancer = system.balancer(
            backends=backend.url, env=server_pair.env() | {"LB_UPSTREAM_MAX_IDLE": "0"}
        )
        with Client(balancer.port, http2_trust) as client:
            slow = client.start("POST", "/slow", ("content-length", str(len(content))), end=False)
            sent = 0
            while True:
                client.settle()
                room = client.room(slow)
                if not room:
                    break
                client.upload(slow, content[sent : sent + room], end=False)
                sent += room
            assert sent < 16 << 20
            for _ in range(3):
                other = client.start("POST", "/fast", ("content-length", str(2 << 20)), end=False)
                client.upload(other, content[: 2 << 20])
                assert client.answer(other).status == 200
            go_on.set()
            client.upload(slow, content[sent:])
            assert client.answer(slow).body.decode() == hashlib.sha256(content).hexdigest()
        balancer.idle()


@pytest.mark.slow
def test_large_bodies_are_never_held(system: System, server_pair: Pair, http2_trust: ssl.SSLContext) -> None:
    demo = system.program("demo", "lb.demo", "--name", "b1", "--port", "0")
    demo.until(lambda: demo.out.endswith("\n"), "the backend")
    balancer = system.balancer(backends=demo.out.strip().partition(": ")[2], env=server_pair.env())
    (pid,) = balancer.worker_pids
    with Client(balancer.port, http2_trust) as client:
        for _ in range(50):
            client.get("/status/200")

        def both_ways() -> None:
            number, got = client.start("GET", f"/bytes?n={SIZE}"), 0
            answer = client.answers[number]
            while not answer.over:
                client.read()
                got, answer.body = got + len(answer.body), b""
            assert (got, answer.ended) == (SIZE, True)
            number = client.start("POST", "/", ("content-length", str(SIZE)), end=False)
            block = bytes(1 << 20)
            for left in range((SIZE >> 20) - 1, -1, -1):
                client.upload(number, block, end=not left)
            assert json.loads(client.answer(number).body)["length"] == SIZE

        assert growth(pid, both_ways).peak < MOST_MIB


# How a balancer goes.


def test_term_lets_streams_finish(balancer: Balancer, backend: Backend, client: Client) -> None:
    backend.script = in_steps(ok(b"late"))
    number = client.start("GET", "/held")
    eventually(lambda: backend.requests, "the request")
    balancer.send(signal.SIGTERM)
    client.until(lambda: client.goaway, "GOAWAY")
    backend.may_go_on.release()
    assert client.answer(number).body == b"late"
    last = client.until_closed()
    assert last is not None
    assert (last.error_code, last.last_stream_id) == (0, number)
    assert balancer.process.wait() == 0


def test_a_reload_under_load_fails_no_request(
    balancer: Balancer, backend: Backend, http2_trust: ssl.SSLContext
) -> None:
    """Clients that go on until they are told to open no more streams here, then connect anew."""
    stopping = threading.Event()
    failures: list[str] = []
    connections = [0]
    done = [0]

    def run() -> None:
        try:
            while not stopping.is_set():
                with Client(balancer.port, http2_trust) as client:
                    connections[0] += 1
                    while client.goaway is None and not stopping.is_set():
                        numbers = [client.start("GET", "/x") for _ in range(5)]
                        for number in numbers:
                            answer = client.answer(number)
                            done[0] += 1
                            if answer.status != 200 or not answer.ended:
                                failures.append(repr(answer))
        except Exception as exc:
            failures.append(repr(exc))

    threads = [threading.Thread(target=run, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(2):
        before, old = done[0], connections[0]
        eventually(lambda before=before: done[0] > before + 50, "requests")  # type: ignore[misc]
        balancer.send(signal.SIGHUP)
        eventually(lambda old=old: connections[0] >= old + 3, "all to connect anew")  # type: ignore[misc]
    stopping.set()
    for thread in threads:
        thread.join(20)
    assert failures == []


# Who speaks it.


@pytest.mark.parametrize(
    ("worker", "wanted", "spoken"),
    [("gevent", "true", "h2"), ("gevent", "false", "http/1.1"), ("gthread", "true", "http/1.1")],
)
def test_what_is_offered(
    system: System,
    backend: Backend,
    server_pair: Pair,
    authority: Authority,
    worker: str,
    wanted: str,
    spoken: str,
) -> None:
    context = authority.trust()
    context.set_alpn_protocols(["h2", "http/1.1"])
    balancer = system.balancer(
        backends=backend.url, worker=worker, env=server_pair.env() | {"LB_HTTP2": wanted}, wait=False
    )
    balancer.process.until(lambda: "shared state in use" in balancer.process.err, "the worker to serve")
    with OneClient(balancer.port, tls=context) as client:
        assert isinstance(client.sock, ssl.SSLSocket)
        assert client.sock.selected_alpn_protocol() == spoken
        if spoken == "http/1.1":
            assert client.get("/").status == 200


def test_httpx(balancer: Balancer, backend: Backend, authority: Authority) -> None:
    content = os.urandom(3_000_000)
    with httpx.Client(http2=True, verify=authority.trust()) as client:
        url = f"https://localhost:{balancer.port}"
        for _ in range(3):
            answer = client.post(f"{url}/up", content=content)
            assert (answer.http_version, answer.status_code) == ("HTTP/2", 200)
            assert answer.text == hashlib.sha256(content).hexdigest()
        backend.script = once(ok(content, "Set-Cookie: a=b", "Set-Cookie: c=d"))
        answer = client.get(f"{url}/down")
        assert answer.content == content
        assert answer.headers.get_list("set-cookie") == ["a=b", "c=d"]


def test_curl(balancer: Balancer, backend: Backend, authority: Authority) -> None:
    command = [
        need_binary("curl", "curl"),
        "-sS",
        "--http2",
        "--cacert",
        str(authority.ca),
        "--max-time",
        "20",
    ]
    url = f"https://localhost:{balancer.port}/"
    backend.script = once(ok(b"hello"))
    done = subprocess.run(
        [*command, "-w", " %{http_version} %{http_code}", url], capture_output=True, check=True
    )
    assert done.stdout == b"hello 2 200"
    backend.script = serve(_digest)
    content = os.urandom(2_000_000)
    done = subprocess.run([*command, "-T", "-", url], input=content, capture_output=True, check=True)
    assert done.stdout.decode() == hashlib.sha256(content).hexdigest()
    backend.script = stall
    done = subprocess.run([*command, "--max-time", "1", url], capture_output=True)
    assert done.returncode == 28
    balancer.idle()


def test_h2load(system: System, backend: Backend, server_pair: Pair) -> None:
    h2load = need_binary("h2load", "nghttp2-client")
    backend.script = serve()
    balancer = system.balancer(backends=backend.url, env=server_pair.env())
    command = [h2load, "-n", "2000", "-c", "5", "-m", "50", f"https://127.0.0.1:{balancer.port}/"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=50)
    assert re.search(r"2000 succeeded, 0 failed, 0 errored", done.stdout), done.stdout
    assert re.search(r"status codes: 2000 2xx", done.stdout), done.stdout
    balancer.idle()
