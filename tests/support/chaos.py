"""A TCP proxy in front of a server, which passes on what it gets: late, in part, or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, Self, TypeVar

T = TypeVar("T")

PATIENCE = 20.0
"""Seconds that the proxy may take for what it is told."""

Place = tuple[str, int] | Path
"""Where a server listens: host and port, or the path of a socket."""

_Pair = tuple[asyncio.StreamWriter, asyncio.StreamWriter]


class Proxy:
    """Passes connections to a port of this host on to `target`. Use it as a context manager.

    What a test may change at any time: `target`, for the connections that come; `delay`, the seconds by which
    each piece of an answer is held up; `silent`: while it is set nothing is passed on, either way, and
    nothing said about it (what comes meanwhile is lost with its connection); `cut`: after how many more
    bytes of answers each connection is reset, in the middle of whatever that is.
    """

    def __init__(self, target: Place, port: int = 0, host: str = "127.0.0.1") -> None:
        self.target = target
        self.delay = 0.0
        self.silent = False
        self.cut: int | None = None
        #: Connections so far.
        self.connections = 0
        self._pairs: set[_Pair] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener = socket.create_server((host, port), backlog=512)
        self.port = int(self._listener.getsockname()[1])
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()
        self._loop.close()

    def reset(self) -> None:
        """Reset every connection that there is."""
        self._call(self._drop(reset=True))

    def close(self) -> None:
        """Close every connection that there is."""
        self._call(self._drop(reset=False))

    def _call(self, what: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(what, self._loop).result(PATIENCE)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        serving = self._loop.create_task(asyncio.start_server(self._serve, sock=self._listener))
        self._server = self._loop.run_until_complete(serving)
        self._loop.run_forever()

    async def _end(self) -> None:
        self._server.close()
        await self._drop(reset=False)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _drop(self, reset: bool) -> None:
        for pair in list(self._pairs):
            _break(pair, reset)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            if isinstance(self.target, Path):
                there = await asyncio.open_unix_connection(str(self.target))
            else:
                there = await asyncio.open_connection(*self.target)
        except OSError:
            writer.transport.abort()
            return
        pair = (writer, there[1])
        self._pairs.add(pair)
        self._spawn(self._pass(reader, there[1], pair, answers=False))
        self._spawn(self._pass(there[0], writer, pair, answers=True))

    def _spawn(self, what: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(what)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _pass(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pair: _Pair, answers: bool
    ) -> None:
        seen = 0
        reset = False
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if self.silent:
                    # Not even the end of the connection is told.
                    await asyncio.Event().wait()
                if answers:
                    if self.delay:
                        await asyncio.sleep(self.delay)
                    if self.cut is None:
                        seen = 0
                    elif seen + len(data) > self.cut:
                        writer.write(data[: self.cut - seen])
                        await writer.drain()
                        reset = True
                        break
                    else:
                        seen += len(data)
                writer.write(data)
                await writer.drain()
        if self.silent:
            await asyncio.Event().wait()
        _break(pair, reset)
        self._pairs.discard(pair)


def _break(pair: _Pair, reset: bool) -> None:
    for writer in pair:
        sock = writer.get_extra_info("socket")
        if reset and sock is not None and sock.family != socket.AF_UNIX:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort() if reset else writer.close()
