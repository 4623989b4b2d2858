"""A client that speaks HTTP/2 frame by frame, and hides nothing: what a test sends is what goes out."""

from __future__ import annotations

import socket
import ssl
import struct
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

from hpack import Decoder, Encoder
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
PATIENCE = 20.0
"""Seconds that a client waits for anything at most."""

Fields = list[tuple[str, str]]


@dataclass
class Answer:
    """What has come on one stream so far."""

    status: int = 0
    fields: Fields = field(default_factory=list)
    body: bytes = b""
    trailers: Fields = field(default_factory=list)
    #: Status and fields of interim answers.
    interim: list[tuple[int, Fields]] = field(default_factory=list)
    #: How many DATA frames.
    frames: int = 0
    ended: bool = False
    #: The error code of its RST_STREAM.
    reset: int | None = None

    @property
    def over(self) -> bool:
        return self.ended or self.reset is not None

    def values(self, name: str) -> list[str]:
        """The values of all fields of that name."""
        return [value for key, value in self.fields if key == name]


class Client:
    """A connection. Settings are acknowledged, and the windows of answers kept open unless `hold` is set."""

    def __init__(
        self,
        port: int,
        tls: ssl.SSLContext | None = None,
        settings: dict[int, int] | None = None,
        hold: bool = False,
        greet: bool = True,
        receive_buffer: int = 0,
    ) -> None:
        raw = socket.socket()
        raw.settimeout(PATIENCE)
        if receive_buffer:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        raw.connect(("127.0.0.1", port))
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock: socket.socket = raw if tls is None else tls.wrap_socket(raw, server_hostname="localhost")
        self.answers: defaultdict[int, Answer] = defaultdict(Answer)
        #: The last GOAWAY.
        self.goaway: GoAwayFrame | None = None
        self.closed = False
        self.pings = 0
        #: What the server allows: settings, and windows of streams; 0 is the connection's.
        self.settings: dict[int, int] = {}
        self.windows: dict[int, int] = {0: 65535}
        self.hold = hold
        self._owed: defaultdict[int, int] = defaultdict(int)
        self._next = 1
        self._buffer = b""
        self._encoder, self._decoder = Encoder(), Decoder()
        self._decoder.max_header_list_size = 1 << 20
        if greet:
            self.send(PREFACE + SettingsFrame(0, settings=settings or {}).serialize())
            if not hold:
                self.send_frame(WindowUpdateFrame(0, window_increment=1 << 30))
            self.until(lambda: self.settings, "settings")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self.sock.close()

    def send(self, data: bytes) -> None:
        """Send all of it."""
        self.sock.sendall(data)

    def send_frame(self, *frames: Frame) -> None:
        """Send frames, in one piece."""
        self.send(b"".join(frame.serialize() for frame in frames))

    def block(self, fields: Fields) -> bytes:
        """A header block. It must be sent: the compression has gone on."""
        return bytes(self._encoder.encode(fields))

    def headers(self, fields: Fields, end: bool = True, number: int = 0) -> tuple[int, HeadersFrame]:
        """A HEADERS frame, of a new stream if no `number` is given, and its stream."""
        if not number:
            number, self._next = self._next, self._next + 2
            self.windows[number] = self.settings.get(SettingsFrame.INITIAL_WINDOW_SIZE, 65535)
        flags = ["END_HEADERS", "END_STREAM"] if end else ["END_HEADERS"]
        return number, HeadersFrame(number, data=self.block(fields), flags=flags)

    def start(
        self,
        method: str = "GET",
        path: str = "/",
        *fields: tuple[str, str],
        end: bool = True,
        host: str = "t.example",
    ) -> int:
        """Send a request's head; returns its stream."""
        number, frame = self.headers(self.pseudo(method, path, host) + list(fields), end)
        self.send_frame(frame)
        return number

    def pseudo(self, method: str = "GET", path: str = "/", host: str = "t.example") -> Fields:
        """The pseudo-fields of a request."""
        return [(":method", method), (":scheme", "https"), (":authority", host), (":path", path)]

    def get(self, path: str = "/", *fields: tuple[str, str], host: str = "t.example") -> Answer:
        """GET it, and wait for the answer."""
        return self.answer(self.start("GET", path, *fields, host=host))

    def data(self, number: int, data: bytes, end: bool = False) -> None:
        """Send one DATA frame, whatever the windows say."""
        self.send_frame(DataFrame(number, data=data, flags=["END_STREAM"] if end else []))

    def upload(self, number: int, data: bytes, end: bool = True) -> None:
        """Send `data` within the windows."""
        at = 0
        while at < len(data):
            self.until(lambda: self.room(number) > 0 or self.answers[number].over, "a window")
            if self.answers[number].over:
                return
            piece = data[at : at + min(self.room(number), 16384)]
            at += len(piece)
            self.windows[0] -= len(piece)
            self.windows[number] -= len(piece)
            self.data(number, piece, end and at == len(data))

    def room(self, number: int) -> int:
        """Bytes that may be sent on a stream."""
        return min(self.windows[0], self.windows[number])

    def reset(self, number: int, code: int = 8) -> None:
        """Send RST_STREAM; CANCEL unless told otherwise."""
        self.send_frame(RstStreamFrame(number, error_code=code))

    def give(self, number: int, size: int) -> None:
        """Open the window of a stream, or of the connection (0)."""
        self.send_frame(WindowUpdateFrame(number, window_increment=size))

    def _give_back(self, number: int, size: int) -> None:
        """The same, in pieces that are worth a frame."""
        self._owed[number] += size
        if self._owed[number] >= 16384:
            self.give(number, self._owed.pop(number))

    def answer(self, number: int) -> Answer:
        """Wait for the end of a stream."""
        self.until(lambda: self.answers[number].over, f"the end of stream {number}")
        return self.answers[number]

    def until(self, condition: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
        """Read until `condition` holds."""
        due = time.monotonic() + seconds
        while not condition():
            assert not self.closed, f"closed ({self.goaway!r}), and wanted: {what}"
            left = due - time.monotonic()
            assert left > 0, f"waited {seconds:g} s in vain for {what}"
            self.sock.settimeout(left)
            self.read()
        self.sock.settimeout(PATIENCE)

    def until_closed(self) -> GoAwayFrame | None:
        """Read to the end of the connection; returns its last GOAWAY."""
        while not self.closed:
            self.read()
        return self.goaway

    def settle(self) -> None:
        """Until everything that was sent has been read on the other side: a ping and its answer."""
        wanted = self.pings + 1
        self.send_frame(PingFrame(0, opaque_data=b"settling"))
        self.until(lambda: self.pings >= wanted, "the answer to a ping")

    def read(self) -> None:
        """Read once, and take the frames that are whole."""
        try:
            data = self.sock.recv(262144)
        except (ConnectionError, ssl.SSLEOFError):
            data = b""
        if not data:
            self.closed = True
            return
        whole = memoryview(self._buffer + data)
        while len(whole) >= 9:
            frame, length = Frame.parse_frame_header(whole[:9])
            if len(whole) < 9 + length:
                break
            frame.parse_body(whole[9 : 9 + length])
            whole = whole[9 + length :]
            self._take(frame)
        self._buffer = bytes(whole)

    def _take(self, frame: Frame) -> None:
        number = frame.stream_id
        if isinstance(frame, HeadersFrame):
            assert "END_HEADERS" in frame.flags
            self._take_fields(self.answers[number], frame)
        elif isinstance(frame, DataFrame):
            answer = self.answers[number]
            assert answer.status, "content without a head"
            answer.body += frame.data
            answer.frames += 1
            answer.ended = "END_STREAM" in frame.flags
            if not self.hold:
                self._give_back(0, len(frame.data))
                if not answer.ended:
                    self._give_back(number, len(frame.data))
        elif isinstance(frame, RstStreamFrame):
            self.answers[number].reset = frame.error_code
        elif isinstance(frame, SettingsFrame):
            if "ACK" not in frame.flags:
                self.settings.update(frame.settings)
                self.send_frame(SettingsFrame(0, flags=["ACK"]))
        elif isinstance(frame, WindowUpdateFrame):
            self.windows[number] = self.windows.get(number, 0) + frame.window_increment
        elif isinstance(frame, PingFrame):
            self.pings += 1
        elif isinstance(frame, GoAwayFrame):
            self.goaway = frame
        else:
            raise AssertionError(f"an unexpected frame: {frame!r}")  # noqa: TRY004

    def _take_fields(self, answer: Answer, frame: HeadersFrame) -> None:
        fields = [(str(name), str(value)) for name, value in self._decoder.decode(frame.data)]
        assert all(name == name.lower() for name, _ in fields)
        answer.ended = "END_STREAM" in frame.flags
        if answer.status:
            assert answer.ended, "trailers that do not end the stream"
            answer.trailers = fields
            return
        status, rest = int(dict(fields)[":status"]), fields[1:]
        if status < 200:
            answer.interim.append((status, rest))
        else:
            answer.status, answer.fields = status, rest


def continuation(number: int, data: bytes, end: bool = False) -> ContinuationFrame:
    """A CONTINUATION frame."""
    return ContinuationFrame(number, data=data, flags=["END_HEADERS"] if end else [])


def raw_frame(kind: int, flags: int, number: int, body: bytes, length: int | None = None) -> bytes:
    """Any frame, right or wrong; `length` if it is to lie about it."""
    size = len(body) if length is None else length
    return struct.pack(">I", size)[1:] + struct.pack(">BBI", kind, flags, number) + body
