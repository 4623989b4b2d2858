"""`python -m lb.demo --port P --name NAME [--host H]`: one demo backend, on gevent's WSGI server.

Prints one line when it listens. TERM and Ctrl-C end it silently with status 0; an address that
cannot be had is one line on stderr and status 1. Port 0 takes a free one, which the line tells.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from typing import Any

import click
import gevent
from gevent.pywsgi import WSGIHandler, WSGIServer

from lb.demo.backend import HEADERS_KEY, DemoBackend

BACKLOG = 4096


class _Handler(WSGIHandler):
    """Keeps the header fields as they came."""

    def get_environ(self) -> dict[str, Any]:
        environ: dict[str, Any] = super().get_environ()
        environ[HEADERS_KEY] = [[name, value] for name, value in self.headers.items()]
        return environ

    def handle(self) -> None:
        if self.socket.family != socket.AF_UNIX:
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().handle()


def serve(host: str, port: int, name: str) -> int:
    """Serve until a signal comes; return the exit status of the process."""
    backend = DemoBackend(name, gevent.sleep)
    server = WSGIServer(
        (host, port), backend, log=None, error_log=None, handler_class=_Handler, backlog=BACKLOG
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        gevent.signal_handler(number, server.stop, 0)
    try:
        server.start()
    except OSError as exc:
        print(f"lb.demo: cannot listen on {host}:{port}: {os.strerror(exc.errno or 0)}", file=sys.stderr)
        return 1
    shown = f"[{host}]" if ":" in host else host
    print(f"{name}: http://{shown}:{server.server_port}", flush=True)
    server.serve_forever()
    return 0


@click.command(help="A demo backend that tells who answered.")
@click.option("--port", type=click.IntRange(0, 65535), required=True, help="0: a free one.")
@click.option("--name", required=True, help="The name it answers with.")
@click.option("--host", default="127.0.0.1", show_default=True)
def main(port: int, name: str, host: str) -> None:
    """Run one backend from the command line."""
    sys.exit(serve(host, port, name))


if __name__ == "__main__":
    main(prog_name="python -m lb.demo")
