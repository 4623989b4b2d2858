"""Clients for tests: one on a raw socket that hides nothing, and many that keep a balancer under load."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.support.run import eventually

PATIENCE = 20.0
"""Seconds that a client waits for anything at most."""


@dataclass
class Answer:
    """One answer as it arrived. `complete`: its framing says that nothing is missing; a body that ends with
    the connection is complete unless the connection was reset."""

    head: bytes
    body: bytes = b""
    complete: bool = False
    #: Heads of interim answers (1xx) that came before.
    interim: list[bytes] = field(default_factory=list)

    @property
    def status(self) -> int:
        return int(self.head.split(None, 2)[1])

    @property
    def lines(self) -> list[str]:
        """The field lines, as they stand there."""
        return self.head.decode("latin-1").split("\r\n")[1:-2]

    @property
    def names(self) -> list[str]:
        """The names of the fields in lower case, in their order."""
        return [line.partition(":")[0].lower() for line in self.lines]

    def values(self, name: str) -> list[str]:
        """The values of all fields of that name."""
        pairs = (line.partition(":") for line in self.lines)
        return [value.strip() for key, _, value in pairs if key.lower() == name.lower()]


class Client:
    """A connection. Everything that is read is checked to be HTTP."""

    def __init__(
        self,
        port: int,
        host: str = "127.0.0.1",
        timeout: float = PATIENCE,
        tls: ssl.SSLContext | None = None,
        first: bytes = b"",
    ) -> None:
        """With `tls` it speaks that; `first` is sent before it."""
        self.sock = socket.create_connection((host, port), timeout)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if first:
            self.sock.sendall(first)
        if tls is not None:
            self.sock = tls.wrap_socket(self.sock, server_hostname="localhost", suppress_ragged_eofs=False)
        self._buffer = b""

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self.sock.close()

    def reset(self) -> None:
        """Close so that the other side gets a reset."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def send(self, data: bytes) -> None:
        """Send all of it."""
        self.sock.sendall(data)

    def get(self, target: str = "/", *fields: str) -> Answer:
        """GET it, and read the answer."""
        self.send(request("GET", target, *fields))
        return self.read_answer()

    def call(self, method: str, target: str, body: bytes | None = None, *fields: str) -> Answer:
        """Send a request whose `body` (None: none) has a Content-Length, and read the answer."""
        more = () if body is None else (f"Content-Length: {len(body)}",)
        self.send(request(method, target, *more, *fields) + (body or b""))
        return self.read_answer(method)

    def _more(self) -> bool:
        data = self.sock.recv(262144)
        self._buffer += data
        return bool(data)

    def read_head(self) -> bytes:
        """The head of the next answer, interim or final."""
        while b"\r\n\r\n" not in self._buffer:
            if not self._more():
                raise ConnectionError(f"closed before the end of a head: {self._buffer!r}")
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        assert head.startswith((b"HTTP/1.1 ", b"HTTP/1.0 ")), head
        return head + b"\r\n\r\n"

    def read_some(self) -> bytes:
        """What has arrived, or the next bytes to arrive; b"" at the end."""
        if not self._buffer:
            self._more()
        data, self._buffer = self._buffer, b""
        return data

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes, of whatever kind."""
        while len(self._buffer) < size:
            if not self._more():
                raise ConnectionError(f"closed after {len(self._buffer)} of {size} bytes")
        data, self._buffer = self._buffer[:size], self._buffer[size:]
        return data

    def read_answer(self, method: str = "GET") -> Answer:
        """The next final answer, or what came of one cut short. Raises ConnectionError if there is none."""
        interim: list[bytes] = []
        while True:
            answer = Answer(self.read_head(), interim=interim)
            if answer.status >= 200:
                break
            interim.append(answer.head)
        if method == "HEAD" or answer.status in (204, 304):
            answer.complete = True
            return answer
        out = bytearray()
        with contextlib.suppress(ConnectionError):
            answer.complete = self._read_body(answer, out)
        answer.body = bytes(out)
        return answer

    def _read_body(self, answer: Answer, out: bytearray) -> bool:
        coding, length = answer.values("Transfer-Encoding"), answer.values("Content-Length")
        if coding:
            assert coding == ["chunked"]
            assert not length
            return self._read_chunks(out)
        if length:
            assert len(length) == 1
            return self._read_exactly(int(length[0]), out)
        out += self._buffer
        self._buffer = b""
        while data := self.sock.recv(262144):
            out += data
        return True

    def _read_exactly(self, size: int, out: bytearray) -> bool:
        take = self._buffer[:size]
        self._buffer = self._buffer[size:]
        out += take
        left = size - len(take)
        while left:
            data = self.sock.recv(min(left, 262144))
            if not data:
                return False
            out += data
            left -= len(data)
        return True

    def _read_chunks(self, out: bytearray) -> bool:
        while True:
            while b"\r\n" not in self._buffer:
                if not self._more():
                    return False
            line, _, self._buffer = self._buffer.partition(b"\r\n")
            size = int(line, 16)
            if size and not self._read_exactly(size, out):
                return False
            end = bytearray()
            if not self._read_exactly(2, end):
                return False
            assert end == b"\r\n", end
            if not size:
                return True

    def at_end(self) -> bool:
        """Has the other side closed or reset the connection, with nothing left to read? Waits for either."""
        if self._buffer:
            return False
        try:
            return not self._more()
        except ConnectionError:
            return True


def request(method: str, target: str, *fields: str, host: str = "t.example", version: str = "1.1") -> bytes:
    """The head of a request."""
    first = (f"{method} {target} HTTP/{version}", *((f"Host: {host}",) if host else ()))
    return ("\r\n".join([*first, *fields]) + "\r\n\r\n").encode("latin-1")


def get(port: int, target: str = "/", *fields: str) -> Answer:
    """One GET on a connection of its own."""
    with Client(port) as client:
        return client.get(target, *fields)


class Load:
    """Clients that send GETs over kept-alive connections, one after the other, in a thread.

    `failures` tells of every request that did not get the answer `wanted`; a connection that the other side
    closed between two requests is opened anew, which is no failure. `target`, or a function of the number of
    the request, may have `{source}` in it: the address that its client connects from, one of `sources` in
    turn. `field` gives one more field of a request by its number. `checked`: each request asks its backend
    (`tests.support.counting`) to say the number of the request, and any other answer is a failure. `fresh`:
    each has a connection of its own. `pause`: seconds between two requests of one client.
    """

    def __init__(
        self,
        ports: list[int],
        connections: int,
        target: str | Callable[[int], str] = "/",
        total: int | None = None,
        wanted: int = 200,
        tls: ssl.SSLContext | None = None,
        host: str = "load",
        sources: Sequence[str] = ("127.0.0.1",),
        field: Callable[[int], str] | None = None,
        checked: bool = False,
        fresh: bool = False,
        pause: float = 0.0,
    ) -> None:
        self._checked = checked
        self._fresh = fresh
        self._pause = pause
        self._host = host.encode()
        self._sources = sources
        self._field = field
        self._tls: dict[str, Any] = {"ssl": tls, "server_hostname": "localhost"} if tls else {}
        self.done = 0
        self.statuses: Counter[int] = Counter()
        self.failures: list[str] = []
        #: The longest time that one request took, in seconds, and all of them.
        self.times: list[float] = []
        #: When each client's last request began, as time.perf_counter() tells it.
        self.began: list[float] = [0.0] * connections
        self._ports = ports
        self._connections = connections
        self._target = target
        self._total = total
        self._wanted = wanted
        self._started = 0
        self._stopping = False
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    @contextlib.contextmanager
    def running(self) -> Iterator[Load]:
        """Send requests while the block runs, then stop."""
        self._thread.start()
        try:
            yield self
        finally:
            self._stopping = True
            self._thread.join(PATIENCE)

    def run(self, seconds: float = 120.0) -> Load:
        """Send `total` requests."""
        assert self._total is not None
        self._thread.start()
        self._thread.join(seconds)
        self._stopping = True
        assert not self._thread.is_alive(), f"{self.done} of {self._total} requests in {seconds:g} s"
        return self

    def more(self, count: int) -> None:
        """Wait until that many more requests were answered."""
        wanted = self.done + count
        eventually(lambda: self.done >= wanted, f"{count} more requests")

    @property
    def slowest(self) -> float:
        """Seconds that the slowest request took."""
        return max(self.times, default=0.0)

    async def _run(self) -> None:
        await asyncio.gather(*(self._client(number) for number in range(self._connections)))

    def _next(self) -> int | None:
        if self._stopping or (self._total is not None and self._started >= self._total):
            return None
        self._started += 1
        return self._started - 1

    async def _client(self, number: int) -> None:
        port = self._ports[number % len(self._ports)]
        source = self._sources[number % len(self._sources)]
        reader: asyncio.StreamReader | None = None
        writer: asyncio.StreamWriter | None = None
        while (turn := self._next()) is not None:
            target = self._target if isinstance(self._target, str) else self._target(turn)
            target = target.replace("{source}", source)
            more = self._field(turn).encode() + b"\r\n" if self._field else b""
            if self._checked:
                target = f"{target}?say={turn}"
            if self._fresh:
                more += b"Connection: close\r\n"
            if self._pause:
                await asyncio.sleep(self._pause)
            began = self.began[number] = time.perf_counter()
            stage = "connecting"
            try:
                async with asyncio.timeout(PATIENCE):
                    if reader is None or writer is None or reader.at_eof() or writer.is_closing():
                        if writer is not None:
                            writer.close()
                        reader, writer = await asyncio.open_connection(
                            "127.0.0.1", port, local_addr=(source, 0), **self._tls
                        )
                    stage = "sending"
                    writer.write(
                        b"GET %b HTTP/1.1\r\nHost: %b\r\n%b\r\n" % (target.encode(), self._host, more)
                    )
                    stage = "waiting for the head"
                    head = await reader.readuntil(b"\r\n\r\n")
                    stage = "reading the body"
                    lower = head.lower()
                    length = int(lower.partition(b"content-length:")[2].split(b"\r\n", 1)[0])
                    body = await reader.readexactly(length)
            except (OSError, EOFError, TimeoutError) as exc:
                self.failures.append(f"GET {target} #{turn}, {stage}: {exc!r}")
                if writer is not None:
                    writer.close()
                reader = writer = None
                await asyncio.sleep(0.01)
                continue
            self.times.append(time.perf_counter() - began)
            status = int(head[9:12])
            self.statuses[status] += 1
            self.done += 1
            if status != self._wanted:
                self.failures.append(f"GET {target} #{turn}: {head.decode('latin-1')}")
            elif self._checked and body != str(turn).encode():
                self.failures.append(f"GET {target} #{turn}: answered {body!r}")
            if b"connection: close" in lower:
                writer.close()
                reader = writer = None
        if writer is not None:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
