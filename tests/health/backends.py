"""Small servers for the tests: raw sockets that do exactly as told, in threads."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from typing import Self, TypeVar

import gevent

Act = Callable[[socket.socket], None]
T = TypeVar("T")

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"


def eventually(question: Callable[[], T], within: float = 10.0, every: float = 0.02) -> T:
    """Ask until the answer is truthy, and return it; AssertionError after `within` seconds.

    Between two questions greenlets of this process run, if there are any.
    """
    deadline = time.monotonic() + within
    while True:
        answer = question()
        if answer:
            return answer
        assert time.monotonic() < deadline, f"not within {within} s: {question.__doc__ or question}"
        gevent.sleep(every)


def read_request(sock: socket.socket) -> bytes:
    """Read up to the end of a head, or of the connection."""
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = sock.recv(65536)
        if not chunk:
            break
        data += chunk
    return data


def answer(data: bytes) -> Act:
    """Read the request, send `data`, close."""

    def act(sock: socket.socket) -> None:
        read_request(sock)
        sock.sendall(data)

    return act


class Scripted:
    """Serves each connection with `act`, which may be exchanged at any time.

    `requests` counts connections; `kill` closes the port, `revive` opens the same one again.
    """

    def __init__(
        self, act: Act | None = None, tls: ssl.SSLContext | None = None, host: str = "127.0.0.1"
    ) -> None:
        self.act = act or answer(OK)
        self.requests = 0
        self.times: list[float] = []
        self._tls = tls
        self._host = host
        self._port = 0
        self._listener: socket.socket | None = None
        self._open: set[socket.socket] = set()
        self.revive()

    @property
    def port(self) -> int:
        return self._port

    @property
    def id(self) -> str:
        return f"{self._host}:{self._port}"

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://{self.id}"

    def revive(self) -> None:
        listener = socket.create_server((self._host, self._port), backlog=256)
        self._port = listener.getsockname()[1]
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def kill(self) -> None:
        listener, self._listener = self._listener, None
        if listener:
            # shutdown wakes the thread in accept; close alone would leave the port open until then.
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        for sock in list(self._open):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            self.requests += 1
            self.times.append(time.monotonic())
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        self._open.add(sock)
        try:
            with contextlib.suppress(OSError):
                if self._tls:
                    wrapped = self._tls.wrap_socket(sock, server_side=True)
                    self._open.add(wrapped)
                    with wrapped:
                        self.act(wrapped)
                else:
                    self.act(sock)
        finally:
            self._open.discard(sock)
            sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


@contextlib.contextmanager
def full_backlog() -> Iterator[int]:
    """A port that neither accepts nor refuses: its backlog is full. Yields the port."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port: int = listener.getsockname()[1]
        fillers = [socket.socket() for _ in range(8)]
        try:
            for one in fillers:
                one.setblocking(False)
                one.connect_ex(("127.0.0.1", port))
            yield port
        finally:
            for one in fillers:
                one.close()


def free_port() -> int:
    """A port nobody listens on, at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
