"""A backend process for distribution tests: answers every GET, and counts them by path.

    python -m tests.support.counting [PORT [DELAY]]

Prints the port it listens on. A request is answered after DELAY seconds, or after the milliseconds that its
query says, with "ok" or, where the query is `say=TEXT`, with that text; `Upgrade: websocket` makes an echo of
the connection. `/__counts` answers the counts as JSON, `/__most` the most requests of each path that were
under way at one time. `/__fault?503` lets every request be answered so from then on, `/__fault?reset` resets
its connection, `/__fault?` ends that. `/__silent` answers how many connections were closed without a word.
None of these is counted.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter

from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol

COUNTS: Counter[str] = Counter()
MOST: Counter[str] = Counter()
RUNNING: Counter[str] = Counter()
SILENT: Counter[str] = Counter()
ASKED = {"/__counts": COUNTS, "/__most": MOST, "/__silent": SILENT}


class Connection(asyncio.Protocol):
    """One connection: requests without bodies, one after the other."""

    delay = 0.0
    fault = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._buffer = b""
        self._spoken = False
        self._websocket: ServerProtocol | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        SILENT["connections"] += not self._spoken

    def data_received(self, data: bytes) -> None:
        self._spoken = True
        if self._websocket is not None:
            self._echo(self._websocket, data)
            return
        self._buffer += data
        while b"\r\n\r\n" in self._buffer:
            head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
            path, _, query = head.split(b" ", 2)[1].decode("latin-1").partition("?")
            if path in ASKED:
                body = json.dumps(ASKED[path]).encode()
                self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
                continue
            if path == "/__fault":
                Connection.fault = query
                self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
                continue
            COUNTS[path] += 1
            if self.fault == "reset":
                self._transport.abort()
                return
            if self.fault:
                self._transport.write(b"HTTP/1.1 %b Fault\r\nContent-Length: 0\r\n\r\n" % self.fault.encode())
                continue
            if b"\r\nupgrade: websocket" in head.lower():
                self._websocket = ServerProtocol()
                self._echo(self._websocket, head + b"\r\n\r\n")
                return
            RUNNING[path] += 1
            MOST[path] = max(MOST[path], RUNNING[path])
            wait = int(query) / 1000 if query.isdigit() else self.delay
            body = query.removeprefix("say=").encode() if query.startswith("say=") else b"ok"
            if wait:
                asyncio.get_running_loop().call_later(wait, self._answer, path, body)
            else:
                self._answer(path, body)

    def _answer(self, path: str, body: bytes) -> None:
        RUNNING[path] -= 1
        self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

    def _echo(self, websocket: ServerProtocol, data: bytes) -> None:
        websocket.receive_data(data)
        for event in websocket.events_received():
            if isinstance(event, Request):
                websocket.send_response(websocket.accept(event))
            elif isinstance(event, Frame) and event.opcode is Opcode.TEXT:
                websocket.send_text(event.data)
        for piece in websocket.data_to_send():
            if piece:
                self._transport.write(piece)
            else:
                self._transport.write_eof()


async def main(port: int, delay: float) -> None:
    Connection.delay = delay
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", port, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    given = sys.argv[1:]
    asyncio.run(main(int(given[0]) if given else 0, float(given[1]) if given[1:] else 0.0))
