"""What the state machine says by itself, and what it leaves to the session."""

from __future__ import annotations

from typing import Any

import pytest
from h2.events import ConnectionTerminated, RequestReceived
from h2.exceptions import DenialOfServiceError
from hpack import Encoder
from hyperframe.frame import Frame, GoAwayFrame, HeadersFrame, SettingsFrame, WindowUpdateFrame

from lb.http2_protocol import MAX_STREAMS, STREAM_WINDOW, WINDOW, Protocol
from tests.support.http2 import PREFACE

FIELDS = [(b":method", b"GET"), (b"x", b"y")]


def greeted(head: int = 1000) -> tuple[Protocol, list[Frame]]:
    """One that has greeted and was greeted; and the frames it has sent."""
    protocol = Protocol(head)
    protocol.greet()
    data, frames = protocol.data_to_send(), []
    while data:
        frame, length = Frame.parse_frame_header(memoryview(data[:9]))
        frame.parse_body(memoryview(data[9 : 9 + length]))
        frames.append(frame)
        data = data[9 + length :]
    protocol.receive_data(PREFACE + SettingsFrame(0).serialize())
    return protocol, frames


def opened(number: int, encoder: Encoder, fields: Any = FIELDS) -> bytes:
    flags = ["END_HEADERS", "END_STREAM"]
    return bytes(HeadersFrame(number, data=encoder.encode(fields), flags=flags).serialize())


def test_what_it_announces() -> None:
    _, frames = greeted()
    settings, window = frames
    assert isinstance(settings, SettingsFrame)
    assert settings.settings[SettingsFrame.MAX_CONCURRENT_STREAMS] == MAX_STREAMS
    assert settings.settings[SettingsFrame.INITIAL_WINDOW_SIZE] == STREAM_WINDOW
    assert settings.settings[SettingsFrame.MAX_HEADER_LIST_SIZE] == 1000
    assert settings.settings.get(SettingsFrame.ENABLE_PUSH, 0) == 0
    assert isinstance(window, WindowUpdateFrame)
    assert window.window_increment == WINDOW - 65535


def test_a_block_is_one_field_to_it() -> None:
    protocol, _ = greeted()
    (event, *_) = protocol.receive_data(opened(1, Encoder(), [*FIELDS, (b"content-length", b"x")]))
    assert isinstance(event, RequestReceived)
    ((name, block),) = event.headers
    assert name == b":block"
    assert block == [*FIELDS, (b"content-length", b"x")]  # type: ignore[comparison-overlap]


def test_a_block_far_too_large_ends_the_connection() -> None:
    protocol, _ = greeted()
    encoder = Encoder()
    protocol.receive_data(opened(1, encoder, [(b"x", b"y" * 1900)]))
    with pytest.raises(DenialOfServiceError):
        protocol.receive_data(opened(3, encoder, [(b"x", b"y" * 2000)]))


def test_streams_are_not_counted_here_and_those_that_are_over_are_forgotten() -> None:
    protocol, _ = greeted()
    encoder = Encoder()
    for number in range(1, 2 * MAX_STREAMS * 2, 2):
        protocol.receive_data(opened(number, encoder))
    assert len(protocol.streams) == 2 * MAX_STREAMS
    for number in list(protocol.streams):
        protocol.send_headers(number, [(b":status", b"204")], end_stream=True)
    for number in range(1001, 1101, 2):
        protocol.receive_data(opened(number, encoder))
    assert len(protocol.streams) <= 50


def test_streams_outlive_a_goaway() -> None:
    protocol, _ = greeted()
    encoder = Encoder()
    protocol.receive_data(opened(1, encoder))
    (event,) = protocol.receive_data(GoAwayFrame(0, last_stream_id=0).serialize())
    assert isinstance(event, ConnectionTerminated)
    protocol.send_headers(1, [(b":status", b"200")])
    protocol.receive_data(WindowUpdateFrame(0, window_increment=1).serialize())
