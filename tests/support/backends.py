"""Backends that do exactly as told: raw sockets in threads of the test's process.

A `Backend` serves each connection with a script, a function of a `Peer`; it keeps the bytes of every
request it was sent. What a script raises is raised again when the backend is stopped.
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Self
from urllib.parse import quote

PATIENCE = 20.0
"""Seconds that a script waits for anything at most."""


@dataclass(frozen=True)
class Request:
    """One request as it arrived. `head` are its bytes, the empty line included; `body` is the content,
    `raw_body` what stood on the wire for it."""

    head: bytes
    body: bytes = b""
    raw_body: bytes = b""
    connection: int = 0

    @property
    def method(self) -> str:
        return self.head.split(b" ", 1)[0].decode("latin-1")

    @property
    def target(self) -> str:
        return self.head.split(b" ", 2)[1].decode("latin-1")

    @property
    def lines(self) -> list[str]:
        """The field lines, as they stand there."""
        return self.head.decode("latin-1").split("\r\n")[1:-2]

    @property
    def names(self) -> list[str]:
        """The names of the fields, in their order and spelling."""
        return [line.partition(":")[0] for line in self.lines]

    def values(self, name: str) -> list[str]:
        """The values of all fields of that name."""
        pairs = (line.partition(":") for line in self.lines)
        return [value.strip() for key, _, value in pairs if key.lower() == name.lower()]


def ok(body: bytes = b"ok", *fields: str) -> bytes:
    """A 200 with a Content-Length."""
    return answer_of(200, body, *fields)


def answer_of(status: int, body: bytes = b"", *fields: str) -> bytes:
    """An answer with a Content-Length."""
    return head_of(status, f"Content-Length: {len(body)}", *fields) + body


def head_of(status: int, *fields: str) -> bytes:
    """The head of an answer with exactly these fields."""
    return ("\r\n".join([f"HTTP/1.1 {status} Some Words", *fields]) + "\r\n\r\n").encode("latin-1")


def chunked(*pieces: bytes) -> bytes:
    """The pieces as chunks, the last chunk included."""
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


class Peer:
    """One connection, as a script sees it."""

    def __init__(self, backend: Backend, sock: socket.socket, number: int) -> None:
        self.backend = backend
        self.sock = sock
        #: Which connection of the backend this is, from 0.
        self.number = number
        self._buffer = b""

    def _more(self) -> bool:
        data = self.sock.recv(65536)
        self._buffer += data
        return bool(data)

    def read_head(self) -> Request | None:
        """The next request's head, without waiting for its body; None at the end of the connection."""
        while b"\r\n\r\n" not in self._buffer:
            if not self._more():
                assert not self._buffer, f"half a head: {self._buffer!r}"
                return None
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        return Request(head + b"\r\n\r\n", connection=self.number)

    def read_request(self) -> Request | None:
        """The next request, and its body; it is recorded. None at the end of the connection."""
        request = self.read_head()
        if request is None:
            return None
        content, raw = self._read_body(request)
        request = Request(request.head, content, raw, self.number)
        self.backend.requests.append(request)
        return request

    def _read_body(self, request: Request) -> tuple[bytes, bytes]:
        if request.values("Transfer-Encoding") == ["chunked"]:
            return self._read_chunks()
        content = self.read(int((request.values("Content-Length") or ["0"])[0]))
        return content, content

    def _read_chunks(self) -> tuple[bytes, bytes]:
        content, raw = bytearray(), bytearray()
        while True:
            line = self._line()
            size = int(line.partition(b";")[0], 16)
            data = self.read(size) if size else b""
            end = self._line()
            while not size and end != b"\r\n":  # a trailer field
                data += end
                end = self._line()
            assert end == b"\r\n", f"not the end of a chunk: {end!r}"
            raw += line + data + end
            if not size:
                return bytes(content), bytes(raw)
            content += data

    def _line(self) -> bytes:
        while b"\n" not in self._buffer:
            if not self._more():
                raise ConnectionError("closed within the body")
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line + b"\n"

    def read(self, size: int) -> bytes:
        """Exactly `size` bytes. Raises ConnectionError when the connection ends before."""
        out = bytearray(self._buffer[:size])
        self._buffer = self._buffer[size:]
        while len(out) < size:
            data = self.sock.recv(min(1 << 20, size - len(out)))
            if not data:
                raise ConnectionError(f"closed after {len(out)} of {size} bytes")
            out += data
        return bytes(out)

    def digest(self, size: int) -> str:
        """SHA-256 of the next `size` bytes."""
        found = hashlib.sha256()
        while size:
            data = self.read(min(size, 1 << 18))
            found.update(data)
            size -= len(data)
        return found.hexdigest()

    def send(self, data: bytes) -> None:
        """Send all of it."""
        try:
            self.sock.sendall(data)
        except ssl.SSLError as exc:
            raise ConnectionResetError(str(exc)) from exc

    def reset(self) -> None:
        """Close so that the other side gets a reset."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self.sock.close()

    def wait_closed(self) -> None:
        """Read on until the other side has closed, or reset, the connection; note that in the backend."""
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while self.sock.recv(65536):
                pass
        self.backend.closed.release()


Script = Callable[[Peer], None]


def serve(answer: bytes | Callable[[Request], bytes] = ok()) -> Script:  # noqa: B008 - bytes
    """Answer every request of a connection with the same bytes, or those that `answer` gives."""

    def script(peer: Peer) -> None:
        while (request := peer.read_request()) is not None:
            peer.send(answer if isinstance(answer, bytes) else answer(request))

    return script


def once(answer: bytes) -> Script:
    """Answer one request, then close."""

    def script(peer: Peer) -> None:
        if peer.read_request() is not None:
            peer.send(answer)

    return script


def in_turn(*scripts: Script) -> Script:
    """A script for each connection; the last one for all that follow."""
    return lambda peer: scripts[min(peer.number, len(scripts) - 1)](peer)


def cut(answer: bytes) -> Script:
    """Answer one request with these bytes, then reset the connection once they have been read."""

    def script(peer: Peer) -> None:
        if peer.read_request() is not None:
            peer.send(answer)
            peer.backend.may_go_on.acquire(timeout=PATIENCE)
            peer.reset()

    return script


def reset_unanswered(peer: Peer) -> None:
    """Read one request whole, then reset the connection without an answer."""
    if peer.read_request() is not None:
        peer.reset()


def close_unanswered(peer: Peer) -> None:
    """Read one request whole, then close the connection without an answer."""
    peer.read_request()


def stall(peer: Peer) -> None:
    """Read a request and say nothing until the other side gives up."""
    if peer.read_request() is not None:
        peer.wait_closed()


def in_steps(*pieces: bytes) -> Script:
    """Answer one request in pieces, each after the test has called `backend.may_go_on.release()`."""

    def script(peer: Peer) -> None:
        if peer.read_request() is None:
            return
        for piece in pieces:
            assert peer.backend.may_go_on.acquire(timeout=PATIENCE), "the test never said to go on"
            peer.send(piece)

    return script


@dataclass
class Backend:
    """A listening socket on 127.0.0.1, or at `path`, and the threads that serve its connections.

    Use it as a context manager. `script` may be exchanged at any time, for connections to come.
    """

    script: Script = field(default_factory=serve)
    path: Path | None = None
    #: What it speaks TLS with; None: what all of them do.
    tls: ssl.SSLContext | None = None
    all_tls: ClassVar[ssl.SSLContext | None] = None
    #: The names that clients asked for (SNI); None for one that named none.
    names: list[str | None] = field(default_factory=list)
    #: Every request that a script has read whole.
    requests: list[Request] = field(default_factory=list)
    #: How many connections were accepted.
    connections: int = 0
    #: For `in_steps`: released by the test.
    may_go_on: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    #: Released for each connection that `wait_closed` saw the end of.
    closed: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def __enter__(self) -> Self:
        self._errors: list[BaseException] = []
        self._threads: list[threading.Thread] = []
        self._open: set[socket.socket] = set()
        self._stopping = False
        if self.path is None:
            self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
            self.port = int(self._listener.getsockname()[1])
        else:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(str(self.path))
            self._listener.listen(512)
            self.port = 0
        if self.path is None:
            self.tls = self.tls or Backend.all_tls
        if self.tls is not None:
            self.tls.sni_callback = lambda _, name, __: self.names.append(name)
        self._start(self._accept)
        return self

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    @property
    def id(self) -> str:
        """What the balancer calls it."""
        return f"127.0.0.1:{self.port}{'+tls' if self.tls else ''}"

    @property
    def url(self) -> str:
        if self.path is not None:
            return f"http+unix://{quote(str(self.path), safe='')}"
        return f"{'https' if self.tls else 'http'}://127.0.0.1:{self.port}"

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            sock.settimeout(PATIENCE)
            if self.path is None:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._open.add(sock)
            number, self.connections = self.connections, self.connections + 1
            self._start(self._serve, sock, number)

    def _serve(self, sock: socket.socket, number: int) -> None:
        raw = sock
        try:
            if self.tls is not None:
                sock = self.tls.wrap_socket(raw, server_side=True, do_handshake_on_connect=False)
                self._open.add(sock)
                sock.do_handshake()
            self.script(Peer(self, sock, number))
        except ssl.SSLError:
            pass  # a client that does not like it
        except (ConnectionError, TimeoutError) as exc:
            if isinstance(exc, TimeoutError) and not self._stopping:
                self._errors.append(exc)
        except BaseException as exc:
            if not self._stopping:
                self._errors.append(exc)
        finally:
            if isinstance(sock, ssl.SSLSocket):
                with contextlib.suppress(OSError, ValueError):
                    sock.settimeout(0)
                    sock.unwrap()  # says that this is the end, and waits for no answer
            sock.close()
            self._open -= {sock, raw}  # in this order: whoever sees it gone may rely on its being closed

    def stop_listening(self) -> None:
        """Refuse connections from now on; those that are open stay."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread in accept
        self._listener.close()

    def hang_up(self) -> None:
        """Shut down every open connection."""
        for sock in list(self._open):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def __exit__(self, *exc: object) -> None:
        self._stopping = True
        self.stop_listening()
        self.hang_up()
        self.may_go_on.release(1000)
        for thread in self._threads:
            thread.join(PATIENCE)
        if self._errors and exc[0] is None:
            raise self._errors[0]


@contextlib.contextmanager
def several(*scripts: Script) -> Iterator[list[Backend]]:
    """A backend for each script."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Backend(script)) for script in scripts]


@contextlib.contextmanager
def refusing() -> Iterator[str]:
    """The URL of a port that refuses connections, and stays so: it is bound, and nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"


@contextlib.contextmanager
def deaf() -> Iterator[str]:
    """The URL of a port that neither accepts nor refuses: its queue is full."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        fillers = [socket.socket() for _ in range(8)]
        try:
            for one in fillers:
                one.setblocking(False)
                one.connect_ex(listener.getsockname())
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            for one in fillers:
                one.close()


def urls(backends: Iterable[Backend]) -> str:
    """As `LB_BACKENDS` has them."""
    return ",".join(backend.url for backend in backends)
