"""Backends that speak TLS: whom to trust, who we are, and the same strictness as without."""

from __future__ import annotations

import hashlib
import os
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.test_upgrade import UPGRADE, switching
from tests.support.backends import Backend, Peer, chunked, head_of, ok, once, refusing, serve
from tests.support.certificates import Authority, Pair
from tests.support.clients import Client, get, request
from tests.support.processes import Balancer, System

KINDS = ["gevent", "gthread"]


@pytest.fixture
def backend(server_pair: Pair) -> Iterator[Backend]:
    with Backend(tls=server_pair.server()) as made:
        yield made


def start(
    system: System, authority: Authority, backends: str, worker: str = "gevent", **env: str
) -> Balancer:
    """A balancer that trusts the authority."""
    found = {"LB_UPSTREAM_TLS_CA": str(authority.ca), **{f"LB_UPSTREAM_TLS_{k}": v for k, v in env.items()}}
    return system.balancer(backends=backends, worker=worker, env=found)


@pytest.mark.parametrize("worker", KINDS)
def test_bodies_of_any_kind(system: System, authority: Authority, backend: Backend, worker: str) -> None:
    content = os.urandom(1 << 20)
    balancer = start(system, authority, backend.url, worker)
    with Client(balancer.port) as client:
        backend.script = serve(lambda seen: ok(hashlib.sha256(seen.body).hexdigest().encode()))
        assert client.call("POST", "/up", content).body.decode() == hashlib.sha256(content).hexdigest()
        assert client.call("POST", "/up", b"small").body.decode() == hashlib.sha256(b"small").hexdigest()
        assert backend.connections == 1
        assert [seen.values("Host") for seen in backend.requests] == [["t.example"]] * 2
        backend.hang_up()
        backend.script = serve(ok(content, "Set-Cookie: a", "Set-Cookie: b"))
        answer = client.get("/down")
        assert (answer.body, answer.complete) == (content, True)
        assert answer.values("Set-Cookie") == ["a", "b"]
        for whole in (
            head_of(200, "Transfer-Encoding: chunked") + chunked(content, b"end"),
            head_of(200) + content + b"end",  # ends with the connection, which TLS announces
        ):
            backend.hang_up()
            backend.script = once(whole)
            answer = client.get("/down")
            assert (answer.body, answer.complete) == (content + b"end", True)
    balancer.idle()


@pytest.mark.parametrize("worker", KINDS)
def test_a_body_that_was_cut_is_not_taken_for_whole(
    system: System, authority: Authority, backend: Backend, worker: str
) -> None:
    """Anybody on the way can end a connection; only the backend can say within TLS that it is over."""

    def script(peer: Peer) -> None:
        if peer.read_request() is not None:
            peer.send(head_of(200) + b"half of it")
            peer.sock.shutdown(2)

    backend.script = script
    balancer = start(system, authority, backend.url, worker)
    balancer.tracebacks = worker == "gthread"
    answer = get(balancer.port, "/cut")
    assert not (answer.complete and answer.values("Content-Length"))
    assert balancer.logged("/cut")["code"] == "upstream_closed"


@pytest.mark.parametrize("worker", KINDS)
@pytest.mark.parametrize("kind", ["bare LF", "folded", "two lengths"])
def test_what_is_not_one_message_is_refused(
    system: System, authority: Authority, backend: Backend, worker: str, kind: str
) -> None:
    backend.script = once(
        {
            "bare LF": b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
            "folded": head_of(200, "Content-Length: 2", "A: b", " c") + b"ok",
            "two lengths": head_of(200, "Content-Length: 2", "Content-Length: 3") + b"ok",
        }[kind]
    )
    balancer = start(system, authority, backend.url, worker)
    assert get(balancer.port, "/bad").status == 502
    assert balancer.logged("/bad")["code"] == "bad_response"


def test_interim_and_early_answers(system: System, authority: Authority, backend: Backend) -> None:
    def script(peer: Peer) -> None:
        while (head := peer.read_head()) is not None:
            peer.send(head_of(103, "Link: </a.css>"))
            peer.send(head_of(413, "Content-Length: 3", "Connection: close") + b"big")
            assert head.values("Content-Length") == ["10000000"]
            peer.wait_closed()
            return

    backend.script = script
    balancer = start(system, authority, backend.url)
    with Client(balancer.port) as client:
        client.send(request("POST", "/early", "Content-Length: 10000000") + bytes(1000))
        answer = client.read_answer()
        assert (answer.status, answer.body) == (413, b"big")
        assert [b"103" in head for head in answer.interim] == [True]


def test_other_protocols(system: System, authority: Authority, backend: Backend) -> None:
    backend.script = switching
    balancer = start(system, authority, backend.url)
    with Client(balancer.port) as client:
        client.send(request("GET", "/tunnel", *UPGRADE) + b"ahead")
        assert client.read_head().startswith(b"HTTP/1.1 101 ")
        assert client.read(10) == b"earlyahead"
        for size in (1, 1000, 1 << 20):
            data = os.urandom(size)
            client.send(data)
            assert client.read(size) == data
        client.sock.shutdown(1)
        assert client.read(3) == b"bye"
        assert client.at_end()
    balancer.idle()


@pytest.mark.parametrize("worker", KINDS)
def test_who_is_not_trusted_gets_nothing(
    system: System, authority: Authority, backend: Backend, worker: str, tmp_path: Path
) -> None:
    """Nothing was sent: another backend gets even a POST."""
    stranger = Authority(tmp_path).issue("stranger", "IP:127.0.0.1")
    with Backend(tls=stranger.server()) as bad, refusing() as dead:
        balancer = start(system, authority, bad.url, worker)
        answer = get(balancer.port, "/untrusted")
        assert answer.status == 502
        entry = balancer.logged("/untrusted")
        assert (entry["code"], entry["tried"]) == ("tls_failed", [bad.id])
        both = start(system, authority, f"{bad.url},{dead.replace('http:', 'https:')},{backend.url}", worker)
        with Client(both.port) as client:
            assert [client.call("POST", "/", b"body").status for _ in range(3)] == [200] * 3
        assert bad.requests == []
        assert len(backend.requests) == 3


@pytest.mark.parametrize("worker", KINDS)
def test_names_and_certificates_of_ours(system: System, authority: Authority, worker: str) -> None:
    pair = authority.issue("inner", "DNS:inner.example")
    ours = authority.issue("balancer")
    with Backend(tls=pair.server(authority.ca)) as backend:
        shown = {"CERTIFICATE": str(ours.certificate), "KEY": str(ours.key)}
        balancer = start(system, authority, backend.url, worker, SERVER_NAME="inner.example", **shown)
        assert get(balancer.port).status == 200
        assert backend.names == ["inner.example"]
        assert get(start(system, authority, backend.url, worker, **shown).port).status == 502
        nameless = start(system, authority, backend.url, worker, SERVER_NAME="inner.example")
        assert get(nameless.port).status == 502
        assert len(backend.requests) == 1


def test_probes_have_the_same_settings(system: System, authority: Authority) -> None:
    pair, ours = authority.issue("inner2", "DNS:inner.example"), authority.issue("balancer2")
    with Backend(tls=pair.server(authority.ca)) as backend:
        balancer = start(
            system,
            authority,
            backend.url,
            SERVER_NAME="inner.example",
            CERTIFICATE=str(ours.certificate),
            KEY=str(ours.key),
        )
        system.health(balancer).until(
            lambda: balancer.view.states() == {backend.id: "up"}, "the backend to be up"
        )


@pytest.mark.parametrize("name", ["CA", "CERTIFICATE"])
def test_files_that_cannot_be_used_end_the_start(
    system: System, authority: Authority, tmp_path: Path, name: str
) -> None:
    none = str(tmp_path / "none")
    env = {f"LB_UPSTREAM_TLS_{name}": none}
    if name == "CERTIFICATE":
        env["LB_UPSTREAM_TLS_KEY"] = none
    balancer = system.balancer(env=env, wait=False)
    balancer.ended_badly = True
    assert balancer.process.wait() == 1
    (line,) = [line for line in balancer.process.err.splitlines() if "[INFO]" not in line]
    assert line.startswith(f"lb: error: pools.default.tls.{name.lower()}: {none} cannot be read")


def test_tls_on_both_sides(system: System, authority: Authority, server_pair: Pair, backend: Backend) -> None:
    content = os.urandom(3 << 20)
    backend.script = serve(lambda seen: ok(seen.body))
    balancer = system.balancer(
        backends=backend.url, env=server_pair.env() | {"LB_UPSTREAM_TLS_CA": str(authority.ca)}
    )
    trust: ssl.SSLContext = authority.trust()
    with Client(balancer.port, tls=trust) as client:
        for _ in range(2):
            assert client.call("POST", "/echo", content).body == content
    assert backend.connections == 1
