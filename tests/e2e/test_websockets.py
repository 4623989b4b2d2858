"""WebSockets through a balancer, with the same library at both ends: every kind of frame, and every end."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import signal
import socket
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.asyncio.server import Server, ServerConnection
from websockets.asyncio.server import serve as serve_websockets
from websockets.exceptions import ConnectionClosed

from tests.e2e.test_idle import private_kib
from tests.e2e.test_upgrade import SWITCH, UPGRADE, echoes
from tests.support.backends import Backend, Peer
from tests.support.clients import Client, request
from tests.support.processes import Balancer, System
from tests.support.run import eventually

MANY = 1000
MOST_KIB = 32.0

Handler = Callable[[ServerConnection], Awaitable[None]]


async def echo(connection: ServerConnection) -> None:
    """Repeat each message as it comes, in the same pieces; close with the code that a message names."""
    async for message in connection:
        if isinstance(message, str) and message.startswith("close "):
            await connection.close(int(message[6:]), "as asked")
            return
        await connection.send(message)


@contextlib.asynccontextmanager
async def serving(handler: Handler = echo) -> AsyncIterator[tuple[Server, str]]:
    """A server, and its URL for the balancer."""
    async with serve_websockets(handler, "127.0.0.1", 0, compression=None, max_queue=64) as server:
        port = next(iter(server.sockets)).getsockname()[1]
        yield server, f"http://127.0.0.1:{port}"


def client(balancer: Balancer) -> connect:
    return connect(f"ws://127.0.0.1:{balancer.port}/", compression=None, open_timeout=30)


async def start(system: System, *urls: str, config: str = "") -> Balancer:
    """A balancer before these backends; it starts while the servers go on."""
    backends = ", ".join(f'{{url = "{url}"}}' for url in urls)
    text = f"[pools.default]\nbackends = [{backends}]\n{config}"
    return await asyncio.to_thread(lambda: system.balancer(config=text))


async def settles(balancer: Balancer, count: int) -> None:
    """Wait until so many are counted in the whole fleet."""
    await asyncio.to_thread(
        lambda: eventually(lambda: balancer.view.in_flight() == count, f"{count} in flight")
    )


def test_every_kind_of_frame(system: System) -> None:
    pinged: list[bytes] = []

    async def handler(connection: ServerConnection) -> None:
        await (await connection.ping(b"from the server"))
        pinged.append(b"answered")
        await echo(connection)

    async def run() -> None:
        async with serving(handler) as (_, url):
            balancer = await start(system, url)
            async with client(balancer) as one:
                for message in ("", "text", "\N{SNOWMAN}" * 1000, b"", bytes(range(256)), bytes(1 << 20)):
                    await echoes(one, message)
                # In fragments, with a ping in between.
                fragments = [b"%d" % number * 1000 for number in range(20)]

                async def pieces() -> AsyncIterator[bytes]:
                    for number, fragment in enumerate(fragments):
                        if number == 10:
                            await asyncio.wait_for(await one.ping(b"amid"), 20)
                        yield fragment

                await one.send(pieces())
                assert await asyncio.wait_for(one.recv(), 20) == b"".join(fragments)
                # Many at once, both ways.
                await asyncio.gather(*[one.send(f"{number} " + "x" * 50_000) for number in range(50)])
                got = [await asyncio.wait_for(one.recv(), 20) for _ in range(50)]
                assert [str(message).split()[0] for message in got] == [str(n) for n in range(50)]
            assert pinged == [b"answered"]
            await settles(balancer, 0)

    asyncio.run(run())


def test_how_they_end(system: System) -> None:
    """The code and the reason of either side reach the other; an end without them is none."""
    seen: list[tuple[int | None, str | None]] = []

    def last() -> tuple[int | None, str | None]:
        return seen[-1]

    async def handler(connection: ServerConnection) -> None:
        with contextlib.suppress(ConnectionClosed):
            await echo(connection)
        await connection.wait_closed()
        seen.append((connection.close_code, connection.close_reason))

    async def run() -> None:
        async with serving(handler) as (server, url):
            balancer = await start(system, url)
            for code in (1000, 1001, 4999):
                async with client(balancer) as one:
                    await one.send(f"close {code}")
                    await asyncio.wait_for(one.wait_closed(), 20)
                    assert (one.close_code, one.close_reason) == (code, "as asked")
            async with client(balancer) as one:
                await echoes(one, "hello")
                await one.close(4321, "enough")
            await asyncio.to_thread(lambda: eventually(lambda: len(seen) == 4, "the server to see it"))
            assert last() == (4321, "enough")
            # A client that vanishes.
            one = await client(balancer)
            await echoes(one, "hello")
            one.transport.abort()
            await asyncio.to_thread(lambda: eventually(lambda: len(seen) == 5, "the server to see it"))
            assert last()[0] == 1006
            # A server that does.
            one = await client(balancer)
            await echoes(one, "hello")
            for connection in server.connections:
                connection.transport.abort()
            with pytest.raises(ConnectionClosed):
                await asyncio.wait_for(one.recv(), 5)
            assert one.close_code == 1006
            await settles(balancer, 0)

    asyncio.run(run())


def test_each_counts_as_a_connection(system: System) -> None:
    """With least connections the server with fewer gets the next one, however long they idle."""

    async def run() -> None:
        taken: Counter[str] = Counter()

        def counting(name: str) -> Handler:
            async def handler(connection: ServerConnection) -> None:
                taken[name] += 1
                await echo(connection)

            return handler

        async with serving(counting("a")) as (_, first), serving(counting("b")) as (_, second):
            balancer = await start(system, first, second, config='algorithm = "least-connections"')
            opened = [await client(balancer) for _ in range(10)]
            assert taken == {"a": 5, "b": 5}
            await settles(balancer, 10)
            # They took turns: all that one server has go, and the next ones are for it.
            await asyncio.gather(*[one.close() for one in opened[::2]])
            await settles(balancer, 5)
            opened = opened[1::2] + [await client(balancer) for _ in range(5)]
            assert sorted(taken.values()) == [5, 10]
            await asyncio.gather(*[one.close() for one in opened])
            await settles(balancer, 0)

    asyncio.run(run())


def test_a_thousand_in_one_worker(system: System) -> None:
    """Each costs little, and all of them still work when all are there."""
    limit, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2 * MANY + 500:
        pytest.skip(f"no more than {hard} descriptors may be open")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(limit, 2 * MANY + 500), hard))

    async def several(balancer: Balancer, count: int) -> list[ClientConnection]:
        opened = []
        for _ in range(0, count, 50):
            opened += await asyncio.gather(*[client(balancer) for _ in range(50)])
        return opened

    async def run() -> None:
        async with serving() as (_, url):
            balancer = await start(system, url)
            (pid,) = balancer.worker_pids
            warm = await several(balancer, 100)
            await asyncio.gather(*[echoes(one, "hello") for one in warm])
            await asyncio.gather(*[one.close() for one in warm])
            await settles(balancer, 0)
            before = private_kib(pid)
            opened = await several(balancer, MANY)
            await asyncio.gather(*[echoes(one, "hello") for one in opened])
            await settles(balancer, MANY)
            each = (private_kib(pid) - before) / MANY
            await asyncio.gather(*[echoes(one, bytes(2000)) for one in opened])
            busy = (private_kib(pid) - before) / MANY
            await asyncio.gather(*[one.close() for one in opened])
            await settles(balancer, 0)
            print(f"{each:.1f} KiB each, {busy:.1f} KiB after they all spoke")
            assert max(each, busy) <= MOST_KIB, f"{each:.1f} KiB each, {busy:.1f} KiB after they all spoke"

    try:
        asyncio.run(run())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def test_a_stop_gives_them_their_time(system: System) -> None:
    """At TERM, too, they stay for `client.stream_close_delay`, and end then."""

    async def run() -> None:
        async with serving() as (_, url):
            balancer = await start(system, url, config="[client]\nstream_close_delay = 1")
            async with client(balancer) as one:
                await echoes(one, "before")
                balancer.send(signal.SIGTERM)
                began = asyncio.get_running_loop().time()
                with contextlib.suppress(ConnectionClosed):
                    while True:
                        await echoes(one, "after")
                        await asyncio.sleep(0.05)
                assert 0.8 < asyncio.get_running_loop().time() - began < 5
                assert one.close_code == 1006
            assert await asyncio.to_thread(lambda: balancer.process.wait(10)) == 0

    asyncio.run(run())


# Any other protocol.


def greeting(peer: Peer) -> None:
    """Say something right behind the handshake, then whatever the test says."""
    if (head := peer.read_head()) is None:
        return
    peer.backend.requests.append(head)
    peer.send(SWITCH + b"first words")
    while data := peer._buffer or peer.sock.recv(65536):
        peer._buffer = b""
        if data == b"reset":
            peer.reset()
            return
        peer.send(data[::-1])
    peer.send(b"last words")
    assert peer.backend.may_go_on.acquire(timeout=20)


def test_any_protocol(system: System) -> None:
    with Backend(greeting) as backend:
        balancer = system.balancer(backends=backend.url)
        # What either says right behind the handshake arrives; each half ends for itself.
        with Client(balancer.port) as one:
            one.send(request("GET", "/", *UPGRADE) + b"ahead")
            assert one.read_head().startswith(b"HTTP/1.1 101 ")
            assert one.read(16) == b"first wordsdaeha"
            one.sock.shutdown(socket.SHUT_WR)
            assert one.read(10) == b"last words"
            assert balancer.view.in_flight() == 1
            backend.may_go_on.release()
            assert one.at_end()
        # A reset is no end.
        with Client(balancer.port) as one:
            one.send(request("GET", "/", *UPGRADE))
            one.read_head()
            assert one.read(11) == b"first words"
            one.send(b"reset")
            with pytest.raises(ConnectionResetError):
                one.read_some()
        balancer.idle()
