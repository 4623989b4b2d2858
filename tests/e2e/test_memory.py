"""Bodies of any size pass through in a few buffers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.support.backends import Backend, Peer, head_of, ok
from tests.support.clients import Client, Load, request
from tests.support.processes import System

GIB = 1 << 30
SIZE = 256 << 20
BLOCK, ROOM = bytes(1 << 20), bytearray(1 << 20)
MOST_THREADED_MIB = 24
"""What gunicorn's own workers may grow by while a body passes through that is ten times as large."""
MOST_MIB = 3.0
"""The same for this project's worker while 1 GiB does: a shared buffer, and what a full socket refuses."""


def memory_mib(pid: int, file: str, key: str) -> float:
    """A line of a process's figures about its memory."""
    for line in Path(f"/proc/{pid}/{file}").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) / 1024
    raise AssertionError(f"no {key}")


@dataclass
class Growth:
    """By how much MiB a process has grown: at most meanwhile (resident), and for good (its own share)."""

    peak: float = 0.0
    after: float = 0.0


def growth(pid: int, work: Callable[[], None]) -> Growth:
    """What `work` costs the process."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")  # VmHWM starts anew
    resident, share = memory_mib(pid, "status", "VmHWM:"), memory_mib(pid, "smaps_rollup", "Pss:")
    work()
    return Growth(
        memory_mib(pid, "status", "VmHWM:") - resident, memory_mib(pid, "smaps_rollup", "Pss:") - share
    )


def swallow(client: Client, size: int) -> None:
    """Read so many bytes, keeping none."""
    left = size - len(client.read(min(size, len(client._buffer))))
    while left:
        got = client.sock.recv_into(ROOM, min(left, len(ROOM)))
        assert got, f"{left} bytes are missing"
        left -= got


def pour(peer: Peer) -> None:
    """Answer each request with as many bytes as its path says, framed as its query says."""
    while (seen := peer.read_head()) is not None:
        length, _, framing = seen.target[1:].partition("?")
        if framing == "length":
            peer.send(head_of(200, f"Content-Length: {length}"))
        elif framing == "chunked":
            peer.send(head_of(200, "Transfer-Encoding: chunked"))
        else:
            peer.send(head_of(200, "Connection: close"))
        for _ in range(int(length) >> 20):
            peer.send(b"%x\r\n%b\r\n" % (len(BLOCK), BLOCK) if framing == "chunked" else BLOCK)
        if framing == "chunked":
            peer.send(b"0\r\n\r\n")
        elif framing == "close":
            return


def drink(peer: Peer) -> None:
    """Read each request's body, keeping none, and answer with its length."""
    room = bytearray(1 << 20)
    while (seen := peer.read_head()) is not None:
        if length := seen.values("Content-Length"):
            left = int(length[0]) - len(peer._buffer)
            peer._buffer = b""
            while left:
                got = peer.sock.recv_into(room, min(left, len(room)))
                assert got
                left -= got
            peer.send(ok(length[0].encode()))
            continue
        total = 0
        while size := int(peer._line(), 16):
            total += len(peer.read(size))
            assert peer._line() == b"\r\n"
        assert peer._line() == b"\r\n"
        peer.send(ok(b"%d" % total))


def download(port: int, size: int, framing: str, version: str) -> None:
    """Read an answer of that size to its end, whose body a backend frames like that."""
    with Client(port) as client:
        client.send(request("GET", f"/{size}?{framing}", version=version))
        assert client.read_head().startswith(b"HTTP/1.1 200 ")
        if framing == "length" or version == "1.0":
            swallow(client, size)
            assert version == "1.1" or client.at_end()
            return
        left = size
        while length := int(line(client), 16):
            swallow(client, length)
            left -= length
            assert client.read(2) == b"\r\n"
        assert left == 0
        assert client.read(2) == b"\r\n"


def line(client: Client) -> bytes:
    """The next line, without its end."""
    while b"\r\n" not in client._buffer:
        client._more()
    found, _, client._buffer = client._buffer.partition(b"\r\n")
    return found


def upload(port: int, size: int, framing: str) -> None:
    """Send a body of that size."""
    with Client(port) as client:
        if framing == "length":
            client.send(request("POST", "/", f"Content-Length: {size}"))
        else:
            client.send(request("POST", "/", "Transfer-Encoding: chunked"))
        block = BLOCK if framing == "length" else b"%x\r\n%b\r\n" % (len(BLOCK), BLOCK)
        for _ in range(size >> 20):
            client.send(block)
        if framing == "chunked":
            client.send(b"0\r\n\r\n")
        assert int(client.read_answer().body) == size


def test_a_gib_down(system: System) -> None:
    """Whatever its framing on either side: a length, chunks, or up to the end of the connection."""
    with Backend(pour) as backend:
        balancer = system.balancer(backends=backend.url)
        (pid,) = balancer.worker_pids
        download(balancer.port, 1 << 20, "length", "1.1")
        for framing, version in (
            ("length", "1.1"),
            ("chunked", "1.1"),
            ("chunked", "1.0"),
            ("close", "1.0"),
        ):
            grown = growth(pid, lambda f=framing, v=version: download(balancer.port, GIB, f, v))  # type: ignore[misc]
            assert max(grown.peak, grown.after) < MOST_MIB, (framing, version, grown)


def test_a_gib_up(system: System) -> None:
    with Backend(drink) as backend:
        balancer = system.balancer(backends=backend.url)
        (pid,) = balancer.worker_pids
        upload(balancer.port, 1 << 20, "length")
        for framing in ("length", "chunked"):
            grown = growth(pid, lambda f=framing: upload(balancer.port, GIB, f))  # type: ignore[misc]
            assert max(grown.peak, grown.after) < MOST_MIB, (framing, grown)


def test_gunicorns_own_workers_hold_no_body_either(system: System) -> None:
    with Backend(pour) as down, Backend(drink) as up:
        config = "\n".join(
            (
                f'[pools.down]\nbackends = [{{url = "{down.url}"}}]',
                f'[pools.default]\nbackends = [{{url = "{up.url}"}}]',
                '[[routes]]\npath = "/"\npool = "default"',
                f'[[routes]]\npath = "/{SIZE}"\npool = "down"',
            )
        )
        balancer = system.balancer(config=config, worker="gthread")
        (pid,) = balancer.worker_pids
        for framing in ("length", "chunked"):
            grown = growth(pid, lambda f=framing: download(balancer.port, SIZE, f, "1.1"))  # type: ignore[misc]
            assert max(grown.peak, grown.after) < MOST_THREADED_MIB, (framing, grown)
            grown = growth(pid, lambda f=framing: upload(balancer.port, SIZE, f))  # type: ignore[misc]
            assert max(grown.peak, grown.after) < MOST_THREADED_MIB, (framing, grown)


def test_a_large_body_does_not_keep_others_waiting(system: System) -> None:
    """Source and destination may be faster than the worker, which then never has to wait for them."""
    demo = system.program("demo", "lb.demo", "--name", "b1", "--port", "0")
    demo.until(lambda: demo.out.endswith("\n"), "the backend")
    balancer = system.balancer(backends=demo.out.strip().partition(": ")[2])
    with Client(balancer.port) as client:
        client.send(request("GET", f"/bytes?n={1 << 30}"))
        client.read_head()
        with Load([balancer.port], 1, "/status/200").running() as load:
            swallow(client, SIZE)
    assert load.failures == []
    assert load.slowest < 1
