"""TLS at the front: the same path behind it, certificates that change, clients that misbehave."""

from __future__ import annotations

import contextlib
import hashlib
import os
import resource
import shutil
import signal
import socket
import ssl
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from lb.certificates import harden
from tests.e2e.test_idle import private_kib
from tests.e2e.test_upgrade import UPGRADE, switching
from tests.support.backends import Backend, Request, chunked, cut, head_of, in_turn, ok, once, serve
from tests.support.certificates import Authority, Pair
from tests.support.clients import Client, Load, request
from tests.support.processes import Balancer, System
from tests.support.run import eventually

CONNECTIONS = 1000
MOST_KIB = 32.0
"""What an idle connection may cost; most of it is OpenSSL's."""


@pytest.fixture(scope="session")
def trust(authority: Authority) -> ssl.SSLContext:
    """What a client needs; it takes no cut stream for one that ended."""
    return harden(authority.trust())


@pytest.fixture
def backend() -> Iterator[Backend]:
    with Backend(serve(_digest)) as made:
        yield made


def _digest(seen: Request) -> bytes:
    return ok(hashlib.sha256(seen.body).hexdigest().encode())


def start(system: System, worker: str = "gevent", **how: object) -> Balancer:
    """One that serves; under gthread its control side speaks TLS, too."""
    balancer = system.balancer(worker=worker, wait=False, **how)
    balancer.process.until(lambda: "shared state in use" in balancer.process.err, "the worker to serve")
    return balancer


@pytest.mark.parametrize("worker", ["gevent", "gthread"])
@pytest.mark.parametrize("how", ["settings", "flags"])
def test_requests_and_answers(
    system: System, backend: Backend, server_pair: Pair, trust: ssl.SSLContext, worker: str, how: str
) -> None:
    content = os.urandom(1 << 20)
    flags = ("--certfile", str(server_pair.certificate), "--keyfile", str(server_pair.key))
    balancer = start(
        system,
        worker,
        backends=backend.url,
        env=server_pair.env() if how == "settings" else {},
        options=flags if how == "flags" else (),
    )
    with Client(balancer.port, tls=trust) as client:
        assert client.get("/secret").body.decode() == hashlib.sha256(b"").hexdigest()
        answer = client.call("POST", "/up", content)
        assert answer.body.decode() == hashlib.sha256(content).hexdigest()
        backend.hang_up()
        backend.script = once(head_of(200, "Transfer-Encoding: chunked") + chunked(content, b"end"))
        assert client.get("/down").body == content + b"end"
        backend.hang_up()
        backend.script = serve(ok(content))
        answer = client.get("/measured")
        assert (answer.body, answer.complete) == (content, True)
    first = backend.requests[0]
    assert first.target == "/secret"
    assert first.values("X-Forwarded-Proto") == ["https"]
    assert first.values("X-Forwarded-Port") == [str(balancer.port)]
    if worker == "gevent":
        assert balancer.readyz()["status"] == "ready"
    balancer.idle()
    assert balancer.logged("/up")["status"] == 200
    assert balancer.stop() == 0


def test_requests_behind_each_other(
    system: System, backend: Backend, server_pair: Pair, trust: ssl.SSLContext
) -> None:
    """In one record, in several, and with records that end anywhere."""
    balancer = system.balancer(backends=backend.url, env=server_pair.env())
    targets = [f"/{n}" for n in range(20)]
    whole = b"".join(request("GET", target) for target in targets)
    backend.script = serve(lambda seen: ok(seen.target.encode()))
    for size in (len(whole), 100, 7):
        with Client(balancer.port, tls=trust) as client:
            for at in range(0, len(whole), size):
                client.send(whole[at : at + size])
            assert [client.read_answer().body.decode() for _ in targets] == targets


def test_clients_that_do_not_speak_it(system: System, backend: Backend, server_pair: Pair) -> None:
    """Plain HTTP, noise, the end in the middle of the handshake: nothing is logged but at debug."""
    balancer = system.balancer(backends=backend.url, env=server_pair.env())
    before = balancer.process.err
    with Client(balancer.port) as client:
        answer = client.get("/")
        assert answer.status == 400
        assert answer.complete
        assert client.at_end()
    for data in (os.urandom(300), b"\x16\x03\x01\x02\x00\x01\x00", b""):
        with Client(balancer.port) as client:
            client.send(data)
            client.sock.shutdown(socket.SHUT_WR)
            with contextlib.suppress(ConnectionError):
                while client.sock.recv(4096):
                    pass
    assert balancer.process.err == before
    assert backend.requests == []
    assert balancer.log == []


def test_a_slow_handshake_is_no_way_to_stay(
    system: System, backend: Backend, server_pair: Pair, trust: ssl.SSLContext
) -> None:
    env = server_pair.env() | {"LB_CLIENT_HEADER_TIMEOUT": "0.7", "LB_CLIENT_KEEPALIVE": "20"}
    balancer = system.balancer(backends=backend.url, env=env)
    with (
        Client(balancer.port) as silent,
        Client(balancer.port) as slow,
        Client(balancer.port, tls=trust) as mute,
    ):
        began = time.monotonic()
        slow.send(b"\x16\x03\x01\x02\x00\x01\x00")
        assert silent.at_end()
        assert slow.at_end()
        assert mute.at_end()
        assert 0.5 < time.monotonic() - began < 5


@pytest.mark.parametrize(("least", "most", "taken"), [("1.2", 1, False), ("1.2", 2, True), ("1.3", 2, False)])
def test_old_versions_are_refused(
    system: System,
    backend: Backend,
    server_pair: Pair,
    authority: Authority,
    least: str,
    most: int,
    taken: bool,
) -> None:
    balancer = system.balancer(backends=backend.url, env=server_pair.env() | {"LB_TLS_MIN_VERSION": least})
    context = authority.trust()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.set_ciphers("DEFAULT:@SECLEVEL=0")
        context.minimum_version = ssl.TLSVersion.TLSv1_1
        context.maximum_version = {1: ssl.TLSVersion.TLSv1_1, 2: ssl.TLSVersion.TLSv1_2}[most]
    if taken:
        with Client(balancer.port, tls=context) as client:
            assert client.get("/").status == 200
        return
    with pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"):
        Client(balancer.port, tls=context)


def shown(port: int) -> bytes | None:
    """The certificate that a new connection is shown."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with Client(port, tls=context) as client:
        assert isinstance(client.sock, ssl.SSLSocket)
        return client.sock.getpeercert(binary_form=True)


def der(pair: Pair) -> bytes:
    return ssl.PEM_cert_to_DER_cert(pair.certificate.read_text())


def test_a_reload_changes_the_certificate_and_a_bad_one_does_not(
    system: System, backend: Backend, authority: Authority, trust: ssl.SSLContext, tmp_path: Path
) -> None:
    first = authority.issue("first", "DNS:localhost")
    second = authority.issue("second", "DNS:localhost")
    used = Pair(tmp_path / "used.pem", tmp_path / "used.key")

    def put(pair: Pair) -> None:
        shutil.copy(pair.certificate, used.certificate)
        shutil.copy(pair.key, used.key)

    put(first)
    balancer = system.balancer(backends=backend.url, env=used.env())
    with Load([balancer.port], 4, tls=trust).running() as load:
        assert shown(balancer.port) == der(first)
        for content, words in [
            (second.key.read_bytes(), "is not the key"),
            (b"nothing", "no certificate and key in PEM"),
            (None, "cannot be read"),
        ]:
            if content is None:
                used.key.unlink()
            else:
                used.key.write_bytes(content)
            balancer.send(signal.SIGHUP)
            eventually(lambda words=words: words in balancer.process.err, "the fault to be said")  # type: ignore[misc]
        eventually(lambda: shown(balancer.port) == der(first), "an answer")
        put(second)
        balancer.send(signal.SIGHUP)
        eventually(lambda: shown(balancer.port) == der(second), "the new certificate")
        done = load.done
        eventually(lambda: load.done > done + 100, "the load to go on")
    assert load.failures == []
    assert balancer.process.err.count("the running configuration stays in force") == 3


@pytest.mark.parametrize("how", ["settings", "flags"])
def test_a_bad_certificate_ends_the_start(
    system: System, authority: Authority, server_pair: Pair, tmp_path: Path, how: str
) -> None:
    bad = Pair(server_pair.certificate, authority.encrypted(server_pair))
    flags = ("--certfile", str(bad.certificate), "--keyfile", str(bad.key))
    balancer = system.balancer(
        env=bad.env() if how == "settings" else {}, options=flags if how == "flags" else (), wait=False
    )
    balancer.ended_badly = True
    assert balancer.process.wait() == 1
    (line,) = [line for line in balancer.process.err.splitlines() if "lb: error: " in line]
    assert str(bad.key) in line
    assert "is encrypted" in line
    assert "Traceback" not in balancer.process.err


def test_other_protocols_within_it(
    system: System, backend: Backend, server_pair: Pair, trust: ssl.SSLContext
) -> None:
    """After a 101 the two connections are joined."""
    backend.script = switching
    balancer = system.balancer(backends=backend.url, env=server_pair.env())
    with Client(balancer.port, tls=trust) as client:
        client.send(request("GET", "/tunnel", *UPGRADE) + b"ahead")
        assert client.read_head().startswith(b"HTTP/1.1 101 ")
        assert client.read(10) == b"earlyahead"
        for size in (1, 1000, 1 << 20):
            data = os.urandom(size)
            client.send(data)
            assert client.read(size) == data
        assert isinstance(client.sock, ssl.SSLSocket)
        with contextlib.suppress(ssl.SSLError):  # ends one half; the other side has words left
            client.sock.unwrap()
    balancer.idle()
    entry = balancer.logged("/tunnel")
    assert entry["status"] == 101
    assert entry["bytes"] >= 5 + 5 + 1 + 1000 + (1 << 20)


def test_a_cut_body_is_not_taken_for_whole(
    system: System, backend: Backend, server_pair: Pair, trust: ssl.SSLContext
) -> None:
    """To a client of HTTP/1.0 a body ends with the connection."""
    whole = head_of(200, "Transfer-Encoding: chunked")
    backend.script = in_turn(cut(whole + b"4\r\nhalf\r\n"), once(whole + chunked(b"all")))
    balancer = system.balancer(backends=backend.url, env=server_pair.env() | {"LB_UPSTREAM_MAX_IDLE": "0"})
    with Client(balancer.port, tls=trust) as client:
        client.send(request("GET", "/cut", version="1.0"))
        assert client.read_head()
        assert client.read(4) == b"half"
        backend.may_go_on.release()
        with pytest.raises((ssl.SSLEOFError, ConnectionResetError)):
            client.read(1)
    with Client(balancer.port, tls=trust) as client:
        client.send(request("GET", "/whole", version="1.0"))
        answer = client.read_answer()
        assert (answer.body, answer.complete) == (b"all", True)


def test_a_proxy_protocol_header_comes_before_it(
    system: System, backend: Backend, server_pair: Pair, trust: ssl.SSLContext
) -> None:
    balancer = system.balancer(backends=backend.url, env=server_pair.env() | {"LB_PROXY_PROTOCOL": "true"})
    line = b"PROXY TCP4 192.0.2.7 192.0.2.1 4711 443\r\n"
    with Client(balancer.port, tls=trust, first=line) as client:
        assert client.get("/one").status == 200
        assert client.get("/two").status == 200
    assert balancer.logged("/two")["client"] == "192.0.2.7"
    # Header and handshake may come in one segment, and in pieces of any size.
    got, put = ssl.MemoryBIO(), ssl.MemoryBIO()
    hello = trust.wrap_bio(got, put, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        hello.do_handshake()
    data = line + put.read()
    for size in (len(data), 11):
        with Client(balancer.port) as client:
            for at in range(0, len(data), size):
                client.send(data[at : at + size])
            assert client.read(1) == b"\x16"


def test_idle_connections(system: System, backend: Backend, server_pair: Pair, trust: ssl.SSLContext) -> None:
    limit, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < CONNECTIONS + 500:
        pytest.skip(f"no more than {hard} descriptors may be open")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(limit, CONNECTIONS + 500), hard))
    made: list[Client] = []
    try:
        backend.script = serve(ok(b"x" * 2000))
        balancer = system.balancer(backends=backend.url, env=server_pair.env())
        (worker,) = balancer.worker_pids

        def open_ones(count: int) -> None:
            for _ in range(count):
                made.append(Client(balancer.port, tls=trust))
                assert made[-1].get("/idle", "Cookie: " + "c" * 500).status == 200

        open_ones(100)
        for client in made:
            client.close()
        made.clear()
        before = private_kib(worker)
        open_ones(CONNECTIONS)
        each = (private_kib(worker) - before) / CONNECTIONS
        print(f"an idle connection with TLS: {each:.1f} KiB")
        assert each <= MOST_KIB, f"{each:.1f} KiB each"
        for client in made[:: CONNECTIONS // 20]:
            assert client.get("/again").status == 200
    finally:
        for client in made:
            client.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
