"""What the `h2` package does for a connection, and what is left to `lb.http2`: its settings for a server.

It reads and writes frames, keeps the states of connection and streams, and the windows. The fields are not
its business here (`lb.http2_head`): it would check them byte by byte, in Python.
"""

from __future__ import annotations

from typing import Any

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ConnectionTerminated, Event
from h2.exceptions import FrameTooLargeError, StreamClosedError
from h2.frame_buffer import FrameBuffer
from h2.settings import SettingCodes, Settings
from hpack import Decoder
from hyperframe.frame import DataFrame, Frame, GoAwayFrame, RstStreamFrame

MAX_STREAMS = 100
"""Requests of one connection at a time (SETTINGS_MAX_CONCURRENT_STREAMS)."""
STREAM_WINDOW = 262144
"""Bytes of a request's body that wait at most for its backend to take them."""
WINDOW = 4 * 1024 * 1024
"""The same for all requests of a connection: a few slow backends do not stop the other uploads."""

_FORGET = 32
"""Requests after which streams that are over are forgotten."""

_CONFIG = H2Configuration(
    client_side=False,
    header_encoding=None,
    validate_inbound_headers=False,
    normalize_inbound_headers=False,
    validate_outbound_headers=False,
    normalize_outbound_headers=False,
)


class BlockDecoder(Decoder):
    """HPACK, so that `h2` sees of a block one field, `:block`, whose value is the list of all of them.

    What is wrong in a block is the fault of one request, and would end the connection if `h2` saw it.
    """

    def decode(self, data: bytes, raw: bool = False) -> Any:
        """As of its base, see above."""
        return [(b":block", super().decode(data, raw=True))]


class Frames(FrameBuffer):
    """What has arrived of frames: nothing is kept of one that is too long (RFC 9113, section 4.2)."""

    def __next__(self) -> Frame:
        data = self._data
        if len(data) >= 3 and int.from_bytes(data[:3], "big") > self.max_frame_size:
            raise FrameTooLargeError("a frame is too long")
        return super().__next__()


class Protocol(H2Connection):
    """The state machine, which leaves to the session what is no reason to end the connection."""

    def __init__(self, head: int) -> None:
        """`head`: bytes of a request's fields, at most (SETTINGS_MAX_HEADER_LIST_SIZE)."""
        super().__init__(_CONFIG)
        self.local_settings = Settings(
            client=False,
            initial_values={
                SettingCodes.MAX_CONCURRENT_STREAMS: MAX_STREAMS,
                SettingCodes.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
                SettingCodes.MAX_HEADER_LIST_SIZE: head,
            },
        )
        self.incoming_buffer = Frames(server=True)
        self.decoder = BlockDecoder()
        # So that what is somewhat too large can still be answered; far too large ends the connection.
        self.decoder.max_header_list_size = 2 * head
        self._requests = 0

    def greet(self) -> None:
        """Prepare our half of the connection's beginning."""
        self.initiate_connection()
        self.increment_flow_control_window(WINDOW - self.inbound_flow_control_window)

    @property
    def open_inbound_streams(self) -> int:
        """As if there were none: one too many is that stream's fault (RFC 9113, section 5.1.2).

        Its base forgets streams that are over while it counts: once in a while is enough.
        """
        self._requests += 1
        if self._requests % _FORGET == 0:
            super().open_inbound_streams  # noqa: B018
        return 0

    def _handle_data_on_closed_stream(
        self, events: list[Event], exc: StreamClosedError, frame: DataFrame
    ) -> tuple[list[Frame], list[Event]]:
        """Content that was on its way when its stream was reset is dropped, and not reset once more."""
        frames, events = super()._handle_data_on_closed_stream(events, exc, frame)
        if self._stream_is_closed_by_reset(frame.stream_id):
            frames = [one for one in frames if not isinstance(one, RstStreamFrame)]
        return frames, events

    def _receive_goaway_frame(self, frame: GoAwayFrame) -> tuple[list[Any], list[Event]]:
        """The client opens no more streams; those that it has opened go on (RFC 9113, section 6.8)."""
        return [], [ConnectionTerminated()]
