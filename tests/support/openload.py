"""Requests that come at their own pace, whatever becomes of those before them."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter


class OpenLoad:
    """So many GETs a second for so many seconds, each on a connection of its own.

    A client that has no answer within `patience` seconds closes its connection. `outcomes` has, for each
    request, when it was due after the beginning and what became of it: the status, 0 when it was too late, -1
    when the connection failed.
    """

    def __init__(self, port: int, rate: float, seconds: float, patience: float, target: str = "/") -> None:
        self._port = port
        self._rate = rate
        self._count = round(rate * seconds)
        self._patience = patience
        self._head = f"GET {target} HTTP/1.1\r\nHost: t.example\r\nConnection: close\r\n\r\n".encode()
        self.outcomes: list[tuple[float, int]] = []

    def run(self) -> OpenLoad:
        """Send all of them."""
        asyncio.run(self._all())
        return self

    def since(self, seconds: float) -> Counter[int]:
        """What became of those that were due after so many seconds."""
        return Counter(status for due, status in self.outcomes if due >= seconds)

    async def _all(self) -> None:
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number in range(self._count):
                due = number / self._rate
                await asyncio.sleep(max(0.0, began + due - time.monotonic()))
                group.create_task(self._one(due))

    async def _one(self, due: float) -> None:
        writer: asyncio.StreamWriter | None = None
        try:
            async with asyncio.timeout(self._patience):
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                writer.write(self._head)
                status = int((await reader.read())[9:12])
        except TimeoutError:
            status = 0
        except (OSError, ValueError):
            status = -1
        finally:
            if writer is not None:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
        self.outcomes.append((due, status))
