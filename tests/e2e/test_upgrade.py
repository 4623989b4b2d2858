"""Connections that change their protocol: passed through, counted, ended in order."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections.abc import Iterator

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import ServerConnection
from websockets.asyncio.server import serve as serve_websockets
from websockets.protocol import State
from websockets.typing import Subprotocol

from tests.e2e.conftest import Site
from tests.support.backends import Peer, answer_of, once
from tests.support.clients import request
from tests.support.processes import System
from tests.support.run import eventually

UPGRADE = ("Connection: Upgrade", "Upgrade: echo")
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\nX-Back: 1\r\n\r\n"


@pytest.fixture
def site(own_site: Site) -> Iterator[Site]:
    own_site.reset()
    yield own_site
    own_site.check()


def switching(peer: Peer) -> None:
    """Change to a protocol that repeats what it is sent, until its other side ends."""
    head = peer.read_head()
    assert head is not None
    peer.backend.requests.append(head)
    peer.send(SWITCH + b"early")
    while data := peer._buffer or peer.sock.recv(65536):
        peer._buffer = b""
        peer.send(data)
    peer.send(b"bye")
    peer.close()


def test_bytes_pass_both_ways(site: Site) -> None:
    """Also those right behind the heads; each side's end is the other's; the claim lasts as long."""
    site.serve(switching)
    with site.client() as client:
        client.send(request("GET", "/tunnel", *UPGRADE) + b"ahead")
        head = client.read_head()
        assert head.startswith(b"HTTP/1.1 101 ")
        assert b"\r\nConnection: Upgrade\r\nUpgrade: echo\r\n" in head
        assert b"\r\nX-Back: 1\r\n" in head
        assert client.read(10) == b"earlyahead"
        assert site.balancer.view.in_flight() == 1
        for size in (1, 1000, 1 << 20):
            client.send(b"x" * size)
            assert client.read(size) == b"x" * size
        client.sock.shutdown(socket.SHUT_WR)
        assert client.read(3) == b"bye"
        assert client.at_end()
    seen = site.one.requests[0]
    assert seen.values("Connection") == ["Upgrade"]
    assert seen.values("Upgrade") == ["echo"]
    site.balancer.idle()
    entry = site.balancer.logged("/tunnel")
    assert (entry["status"], entry["bytes"]) == (101, 5 + 5 + 1 + 1000 + (1 << 20) + 3)
    assert "code" not in entry


def test_a_backend_that_stays_with_http(site: Site) -> None:
    site.serve(once(answer_of(403, b"no")))
    with site.client() as client:
        answer = client.call("GET", "/", None, *UPGRADE)
        assert (answer.status, answer.body) == (403, b"no")
        site.reset()
        assert client.call("GET", "/", None).status == 200


@pytest.mark.parametrize(
    "fields", [("Upgrade: echo",), ("Connection: Upgrade", "Upgrade: h2c"), ("Connection: Upgrade",)]
)
def test_what_is_no_upgrade(site: Site, fields: tuple[str, ...]) -> None:
    with site.client() as client:
        assert client.call("GET", "/", None, *fields).status == 200
    assert not {"upgrade", "connection"} & {name.lower() for name in site.one.requests[0].names}


def test_an_upgrade_nobody_asked_for(site: Site) -> None:
    site.serve(once(SWITCH))
    with site.client() as client:
        assert client.call("GET", "/", None).status == 502


class Sockets:
    """A server that repeats each message, and clients of it through the balancer."""

    def __init__(self, system: System, extra: str = "") -> None:
        self.system = system
        self.extra = extra

    async def __aenter__(self) -> Sockets:
        async def echo(connection: ServerConnection) -> None:
            async for message in connection:
                if message == "close":
                    await connection.close(4000, "as asked")
                    return
                await connection.send(message)

        protocols = [Subprotocol("chat")]
        self.server = await serve_websockets(echo, "127.0.0.1", 0, subprotocols=protocols)
        port = next(iter(self.server.sockets)).getsockname()[1]
        config = f'[pools.default]\nbackends = [{{url = "http://127.0.0.1:{port}"}}]\n{self.extra}'
        self.balancer = await asyncio.to_thread(lambda: self.system.balancer(config=config))
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.server.close()
        await self.server.wait_closed()

    def connect(self) -> connect:
        return connect(f"ws://127.0.0.1:{self.balancer.port}/ws", subprotocols=[Subprotocol("chat")])

    async def in_flight(self, count: int) -> None:
        view = self.balancer.view
        await asyncio.to_thread(lambda: eventually(lambda: view.in_flight() == count, f"{count} in flight"))


async def echoes(connection: ClientConnection, message: str | bytes) -> None:
    await connection.send(message)
    assert await asyncio.wait_for(connection.recv(), 20) == message


def test_websockets(system: System) -> None:
    async def run() -> None:
        async with Sockets(system) as sockets:
            many = await asyncio.gather(*[sockets.connect() for _ in range(50)])
            await sockets.in_flight(50)
            assert many[0].subprotocol == "chat"
            await asyncio.gather(*[echoes(one, "hello") for one in many])
            await echoes(many[0], bytes(1 << 20))
            await asyncio.wait_for(await many[1].ping(), 20)
            await many[2].send("close")
            await asyncio.wait_for(many[2].wait_closed(), 20)
            assert (many[2].close_code, many[2].close_reason) == (4000, "as asked")
            await asyncio.gather(*[one.close() for one in many])
            await sockets.in_flight(0)

    asyncio.run(run())


def test_an_idle_one_is_closed(system: System) -> None:
    async def run() -> None:
        async with Sockets(system, "timeouts = {tunnel = 0.5}") as sockets, sockets.connect() as one:
            await echoes(one, "hello")
            await asyncio.wait_for(one.wait_closed(), 20)
            await sockets.in_flight(0)

    asyncio.run(run())


def test_they_outlive_a_reload_for_a_while(system: System) -> None:
    async def run() -> None:
        extra = "[client]\nstream_close_delay = 2"
        async with Sockets(system, extra) as sockets, sockets.connect() as one:
            await echoes(one, "before")
            sockets.balancer.send(signal.SIGHUP)
            began = time.monotonic()
            while one.state is State.OPEN and time.monotonic() - began < 1:
                await echoes(one, "after")
            assert one.state is State.OPEN
            await asyncio.wait_for(one.wait_closed(), 20)
            async with sockets.connect() as other:
                await echoes(other, "new")

    asyncio.run(run())
