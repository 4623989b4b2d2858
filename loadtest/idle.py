"""What a kept-alive connection that does nothing costs: KiB of memory in one worker.

    python -m loadtest.idle --connections 10000

Each connection has one request answered and then idles. Printed is what the worker's memory has grown by,
divided by their number, and how fast others are served meanwhile. Fails (exit 1) above `--most` KiB.
"""

from __future__ import annotations

import http.client
import resource
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import click
import psutil

from loadtest import system
from loadtest.procs import Children, NotReadyError, answers, free_ports, interrupted_by_signals

SPARE_DESCRIPTORS = 500
"""What a process needs beside the connections: the store, backends, files."""

WARM = 500
"""Connections that come and go before the count, so that pools and caches have their size."""

REQUESTS = 300
"""Requests of others, of which the times are taken."""

# About what a browser sends with each request.
REQUEST = b"GET /idle HTTP/1.1\r\nHost: idle.example\r\nCookie: %b\r\n\r\n" % (b"c" * 500)


def memory_kib(pid: int) -> float:
    """KiB of memory that are this process's own, and its share of what it has in common with others."""
    return float(psutil.Process(pid).memory_full_info().pss) / 1024


def open_idle(port: int, count: int) -> list[socket.socket]:
    """Connections that have each had one request answered. Raises OSError."""
    made = []
    for _ in range(count):
        sock = socket.create_connection(("127.0.0.1", port), 30)
        made.append(sock)
        sock.sendall(REQUEST)
        if not sock.recv(65536).startswith(b"HTTP/1.1 200 "):
            raise NotReadyError("a request was not answered with 200")
    return made


def others(port: int) -> list[float]:
    """Seconds that each of `REQUESTS` requests over one more connection takes."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    times = []
    for _ in range(REQUESTS):
        began = time.perf_counter()
        connection.request("GET", "/other")
        connection.getresponse().read()
        times.append(time.perf_counter() - began)
    connection.close()
    return times


def allow_descriptors(needed: int) -> None:
    """Let this process and its children open `needed` files. Raises click.ClickException."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise click.ClickException(f"needs {needed} open files, {hard} are allowed (ulimit -Hn)")
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


@contextmanager
def balancer(folder: Path) -> Iterator[tuple[int, int]]:
    """One worker before a demo backend: its port and its process id. Raises NotReadyError."""
    port, control, backend = free_ports(3)
    env = system.environment(
        backends=[backend], port=port, control=control, workers=1, runtime=folder / "run"
    )
    # The connections must outlive the measurement.
    env |= {"LB_CLIENT_KEEPALIVE": "3600", "LB_ACCESS_LOG": str(folder / "access.log")}
    with interrupted_by_signals(), Children(folder) as children:
        demo = children.start(
            "backend",
            [sys.executable, "-m", "lb.demo", "--name", "b1", "--port", str(backend)],
            cwd=system.ROOT,
        )
        demo.require(lambda: answers(backend), "answer")
        gunicorn = system.SOURCE_TREE.start_gunicorn(children, env)
        gunicorn.require(lambda: answers(control, "/readyz") and answers(port), "answer")
        workers = [
            one for one in psutil.Process(gunicorn.pid).children() if "gunicorn" in " ".join(one.cmdline())
        ]
        yield port, workers[0].pid


@click.command()
@click.option("--connections", default=10_000, show_default=True, type=click.IntRange(1), help="How many.")
@click.option("--most", default=16.0, show_default=True, help="KiB that each may cost.")
def main(connections: int, most: float) -> None:
    """Measure what an idle kept-alive connection costs."""
    allow_descriptors(connections + WARM + SPARE_DESCRIPTORS)
    made: list[socket.socket] = []
    with tempfile.TemporaryDirectory(prefix="lb-idle-") as folder:
        try:
            with balancer(Path(folder)) as (port, worker):
                for sock in open_idle(port, WARM):
                    sock.close()
                alone = others(port)
                before = memory_kib(worker)
                made = open_idle(port, connections)
                each = (memory_kib(worker) - before) / connections
                beside = others(port)
        except NotReadyError as exc:
            raise click.ClickException(str(exc)) from None
        finally:
            for sock in made:
                sock.close()
    click.echo(f"{connections} idle connections: {each:.1f} KiB each, at most {most:g}")
    without, with_them = 1000 * median(alone), 1000 * median(beside)
    click.echo(f"a request of others: {without:.2f} ms without them, {with_them:.2f} ms beside them")
    if each > most:
        sys.exit(1)


if __name__ == "__main__":
    main()
