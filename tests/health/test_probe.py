from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gevent
import msgspec
import pytest

from lb import __version__
from lb.health.probe import HEAD_LIMIT, Outcome, Prober, pools_tls, target
from lb.model import Backend, HealthPolicy
from lb.settings import PoolConfig, UpstreamTls
from tests.health.backends import OK, Act, Scripted, answer, free_port, full_backlog, read_request
from tests.support.certificates import Authority, Pair


@pytest.fixture
def prober() -> Prober:
    return Prober()


def ask(url: str, **policy: Any) -> Outcome:
    return Prober().probe(target(Backend("b", url), HealthPolicy(**{"timeout": 5.0, **policy})))


def served(act: Act, **policy: Any) -> Outcome:
    with Scripted(act) as backend:
        return ask(backend.url, **policy)


def test_an_answer_in_the_range_is_a_success() -> None:
    outcome = served(answer(OK))
    assert outcome.ok
    assert outcome.reason == "status 200"
    assert 0 < outcome.seconds < 5


@pytest.mark.parametrize(
    ("status", "expected", "ok"),
    [("200", "200-399", True), ("301", "200-399", True), ("301", "200-299", False), ("500", "200-399", False),
     ("401", "200-299,401", True), ("101", "200-399", False)],
)  # fmt: skip
def test_the_range_decides(status: str, expected: str, ok: bool) -> None:
    outcome = served(answer(f"HTTP/1.1 {status} x\r\n\r\n".encode()), status=expected)
    assert outcome.ok is ok
    assert outcome.reason.startswith(f"status {status}")
    if not ok:
        assert expected in outcome.reason


def test_the_request_is_what_a_server_expects() -> None:
    seen = []

    def act(sock: socket.socket) -> None:
        seen.append(read_request(sock))
        sock.sendall(OK)

    with Scripted(act) as backend:
        assert ask(backend.url, path="/health?deep=1").ok
    head = seen[0].decode().split("\r\n")
    assert head[0] == "GET /health?deep=1 HTTP/1.1"
    assert set(head[1:-2]) == {
        f"Host: 127.0.0.1:{backend.port}",
        f"User-Agent: lb-health/{__version__}",
        "Accept: */*",
        "Connection: close",
    }


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.0 200 OK\r\n\r\n",
        b"HTTP/1.1 200\r\nA: b\r\n\r\n",
        b"HTTP/1.1 200 OK\nA: b\n\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"x" * (HEAD_LIMIT - 200) + b"\r\n\r\n" + b"body" * 100,
    ],
)
def test_unusual_answers_that_are_fine(data: bytes) -> None:
    assert served(answer(data)).ok


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "closed unanswered"),
        (b"SSH-2.0-OpenSSH\r\n", "not HTTP/1: b'SSH-2.0-OpenSSH\\r\\n'"),
        (b"\x00\xff" * 400, "not HTTP/1"),
        (b"HTTP/2.0 200 OK\r\n\r\n", "not HTTP/1"),
        (b"HTTP/1.1 2000 OK\r\n\r\n", "not HTTP/1"),
        (b"HTTP/1.1 OK\r\n\r\n", "not HTTP/1"),
        (b"HTTP/1.1 200 OK\r\nA: b\r\n", "closed after 23 bytes, before the end of the head"),
        (b"HTTP/1.1 200 OK\r\nA: " + b"x" * (2 * HEAD_LIMIT), "longer than 16384 bytes"),
        (b"HTTP/1.1 200 " + b"x" * (2 * HEAD_LIMIT), "longer than 16384 bytes"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" * 2000, "longer than 16384 bytes"),
    ],
)
def test_garbage_fails_with_its_reason(data: bytes, reason: str) -> None:
    outcome = served(answer(data))
    assert not outcome.ok
    assert not outcome.own_fault
    assert reason in outcome.reason


def test_refused() -> None:
    outcome = ask(f"http://127.0.0.1:{free_port()}")
    assert outcome == Outcome(False, "connection refused, connecting", outcome.seconds)
    assert outcome.seconds < 1


def reset(sock: socket.socket) -> None:
    read_request(sock)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def test_reset() -> None:
    outcome = served(reset)
    assert not outcome.ok
    assert outcome.reason == "connection reset, waiting for the answer"


def silent(sock: socket.socket) -> None:
    while sock.recv(65536):
        pass


def trickle(sock: socket.socket) -> None:
    read_request(sock)
    sock.sendall(b"HTTP/1.1 200 OK\r\n")
    while True:
        sock.sendall(b"X")
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("act", "doing"), [(silent, "waiting for the answer"), (trickle, "reading the head of the answer")]
)
def test_the_timeout_is_for_the_whole_probe(act: Act, doing: str) -> None:
    outcome = served(act, timeout=0.3)
    assert not outcome.ok
    assert outcome.reason.startswith(f"timeout after 0.3 s, {doing}")
    assert 0.29 < outcome.seconds < 1.5


def test_the_timeout_is_for_connecting_too() -> None:
    with full_backlog() as port:
        outcome = ask(f"http://127.0.0.1:{port}", timeout=0.3)
    assert outcome.reason == "timeout after 0.3 s, connecting"


def test_tcp_only_connects() -> None:
    seen = []

    def act(sock: socket.socket) -> None:
        seen.append(sock.recv(100))

    with Scripted(act) as backend:
        assert ask(backend.url, type="tcp")[:2] == (True, "connected")
        deadline = time.monotonic() + 5
        while not seen and time.monotonic() < deadline:
            time.sleep(0.01)
    assert seen == [b""]
    assert not ask(f"http://127.0.0.1:{free_port()}", type="tcp").ok
    with full_backlog() as port:
        assert not ask(f"http://127.0.0.1:{port}", type="tcp", timeout=0.2).ok


def test_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "b.sock"
    url = f"http+unix://{str(path).replace('/', '%2F')}"
    assert ask(url).reason == "no such socket, connecting"
    seen = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        pending = gevent.get_hub().threadpool.spawn(listener.accept)
        outcome = gevent.spawn(ask, url)
        accepted = pending.get(timeout=5)
        assert accepted
        sock = accepted[0]
        with sock:
            seen.append(read_request(sock))
            sock.sendall(OK)
        assert outcome.get(timeout=5)[0]
    assert b"\r\nHost: localhost\r\n" in seen[0]


@pytest.fixture
def tls(server_pair: Pair) -> Iterator[Scripted]:
    with Scripted(answer(OK), tls=server_pair.server()) as backend:
        yield backend


@pytest.fixture
def strict(authority: Authority) -> Iterator[Scripted]:
    """For clients with a certificate of that authority; its own is for another name than it has."""
    pair = authority.issue("elsewhere", "DNS:elsewhere.example")
    with Scripted(answer(OK), tls=pair.server(authority.ca)) as backend:
        yield backend


def test_https_answers_whatever_its_certificate(tls: Scripted) -> None:
    assert ask(tls.url).ok
    tls.act = answer(b"HTTP/1.1 503 Busy\r\n\r\n")
    assert ask(tls.url).reason == "status 503, expected 200-399"


def ask_as(url: str, settings: UpstreamTls) -> Outcome:
    """Probe with the TLS settings of a pool."""
    how = pools_tls({"p": PoolConfig(tls=settings)})["p"]
    return Prober().probe(target(Backend("b", url), HealthPolicy(timeout=5.0), how))


def test_the_tls_settings_of_a_pool_hold_for_probes(
    tls: Scripted, strict: Scripted, authority: Authority
) -> None:
    ours = authority.issue("prober")
    ca, certificate, key = str(authority.ca), str(ours.certificate), str(ours.key)
    assert ask_as(tls.url, UpstreamTls(ca=ca)).ok
    assert ask_as(tls.url, UpstreamTls(verify=False)).ok
    refused = ask_as(tls.url, UpstreamTls(server_name="other.example"))
    assert not refused.ok
    assert refused.reason.startswith("its certificate is not accepted: ")
    assert not ask(strict.url).ok
    shown = UpstreamTls(ca=ca, certificate=certificate, key=key)
    assert "IP address mismatch" in ask_as(strict.url, shown).reason
    assert ask_as(strict.url, msgspec.structs.replace(shown, server_name="elsewhere.example")).ok
    assert ask_as(strict.url, msgspec.structs.replace(shown, verify=False)).ok


def test_pools_without_tls_settings_are_probed_without_verifying() -> None:
    assert pools_tls({"p": PoolConfig()}) == {}


def test_plain_text_on_an_https_backend_fails() -> None:
    with Scripted(lambda sock: sock.sendall(OK)) as backend:
        outcome = ask(f"https://127.0.0.1:{backend.port}")
    assert not outcome.ok
    assert "TLS" in outcome.reason


def test_a_handshake_that_never_ends_runs_into_the_timeout() -> None:
    with Scripted(silent) as backend:
        outcome = ask(f"https://127.0.0.1:{backend.port}", timeout=0.3)
    assert outcome.reason == "timeout after 0.3 s, in the TLS handshake"


def test_a_name_without_an_address_fails() -> None:
    outcome = ask("http://no-such-host.invalid:80")
    assert not outcome.ok
    assert outcome.reason.startswith("no-such-host.invalid")


def test_a_name_is_looked_up(prober: Prober) -> None:
    with Scripted() as backend:
        assert prober.probe(target(Backend("b", f"http://localhost:{backend.port}"), HealthPolicy())).ok


def test_being_out_of_file_descriptors_is_nobodys_fault_but_ours(prober: Prober) -> None:
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    to = target(Backend("b", "http://127.0.0.1:1"), HealthPolicy())
    prober.probe(to)
    with socket.socket() as last:
        number = last.fileno()
    resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))
    try:
        outcome = prober.probe(to)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert outcome.own_fault
    assert not outcome.ok


def test_a_slow_backend_does_not_hold_up_the_others(prober: Prober) -> None:
    with Scripted(silent) as slow, Scripted() as quick:
        policy = HealthPolicy(timeout=1.0)
        stuck = [gevent.spawn(prober.probe, target(Backend("s", slow.url), policy)) for _ in range(50)]
        gevent.sleep(0)
        started = time.monotonic()
        assert prober.probe(target(Backend("q", quick.url), policy)).ok
        assert time.monotonic() - started < 0.8
        gevent.joinall(stuck)
        assert not any(one.get().ok for one in stuck)


def test_sockets_are_closed_when_a_probe_is_killed(prober: Prober) -> None:
    with Scripted(silent) as backend:
        running = gevent.spawn(prober.probe, target(Backend("s", backend.url), HealthPolicy(timeout=30)))
        deadline = time.monotonic() + 5
        while not backend.requests and time.monotonic() < deadline:
            gevent.sleep(0.01)
        running.kill()
        assert running.ready()
        deadline = time.monotonic() + 5
        while backend._open and time.monotonic() < deadline:
            gevent.sleep(0.01)
        assert not backend._open


@pytest.mark.parametrize("url", ["ftp://h:1", "http://", "http://h:99999", "nonsense"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ValueError):
        target(Backend("b", url), HealthPolicy())


def test_default_ports_and_ipv6_in_the_host_field() -> None:
    assert b"Host: a.example\r\n" in target(Backend("b", "http://a.example:80"), HealthPolicy()).request
    assert b"Host: a.example\r\n" in target(Backend("b", "https://a.example"), HealthPolicy()).request
    assert b"Host: [::1]:81\r\n" in target(Backend("b", "http://[::1]:81"), HealthPolicy()).request
