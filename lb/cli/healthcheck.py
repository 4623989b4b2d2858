"""`lb healthcheck`: for containers and scripts, 0 if the balancer here is ready."""

from __future__ import annotations

import http.client
import socket

import click

from lb.config import load
from lb.config_checks import split_bind
from lb.errors import LbError

#: What to connect to when an address means "all of this machine's".
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104


class NotReady(LbError):
    """The balancer does not answer, or says that it is not ready."""


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket's path instead of a host."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


@click.command()
@click.option("--timeout", type=click.FloatRange(0.01, 3600), default=3.0, show_default=True, help="Seconds.")
def healthcheck(timeout: float) -> None:
    """Ask the control side of the balancer on this machine (LB_CONTROL_BIND) whether it is ready."""
    bind = load().control_bind
    status, text = ask(bind, "/readyz", timeout)
    if status != 200:
        raise NotReady(f"{bind} is not ready: {status} {text}".rstrip())
    click.echo("ready")


def ask(bind: str, path: str, timeout: float) -> tuple[int, str]:
    """GET `path` from what listens on `bind`; the status and the first line of the answer.

    `timeout` in seconds. Raises NotReady when there is no answer.
    """
    where = split_bind(bind)
    connection: http.client.HTTPConnection
    if isinstance(where, str):
        connection = _UnixConnection(where, timeout)
    else:
        connection = http.client.HTTPConnection(_ANY.get(where[0], where[0]), where[1], timeout=timeout)
    try:
        connection.request("GET", path, headers={"User-Agent": "lb-healthcheck"})
        response = connection.getresponse()
        text = response.read(4096).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException) as exc:
        raise NotReady(f"{bind} does not answer: {str(exc) or type(exc).__name__}") from None
    finally:
        connection.close()
    lines = text.splitlines()
    return response.status, lines[0][:200] if lines else ""
