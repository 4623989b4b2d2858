"""Connections that do nothing cost little, and keep nobody from being served."""

from __future__ import annotations

import resource
import socket
from pathlib import Path

import pytest

from tests.support.backends import Backend, ok, serve
from tests.support.clients import Client, Load, request
from tests.support.processes import System

CONNECTIONS = 2000
MOST_KIB = 16.0


def private_kib(pid: int) -> int:
    """KiB of memory that are this process's own or its share of what others have too."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1])
    raise AssertionError("no Pss in smaps_rollup")


def open_ones(port: int, count: int) -> list[socket.socket]:
    """Connections that each have had one request answered."""
    made = []
    for _ in range(count):
        sock = socket.create_connection(("127.0.0.1", port), 20)
        made.append(sock)
        sock.sendall(request("GET", "/idle", "Cookie: " + "c" * 500))
        assert sock.recv(65536).startswith(b"HTTP/1.1 200 ")
    return made


def test_idle_connections(system: System) -> None:
    limit, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < CONNECTIONS + 500:
        pytest.skip(f"no more than {hard} descriptors may be open")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(limit, CONNECTIONS + 500), hard))
    made: list[socket.socket] = []
    try:
        with Backend(serve(ok(b"x" * 2000))) as backend:
            balancer = system.balancer(backends=backend.url)
            (worker,) = balancer.worker_pids
            warm = open_ones(balancer.port, 200)
            for sock in warm:
                sock.close()
            before = private_kib(worker)
            made = open_ones(balancer.port, CONNECTIONS)
            each = (private_kib(worker) - before) / CONNECTIONS
            assert each <= MOST_KIB, f"{each:.1f} KiB each"
            # Others are served meanwhile, and every one of them still is.
            load = Load([balancer.port], 8, total=400).run()
            assert load.failures == []
            assert load.slowest < 1
            for sock in made[:: CONNECTIONS // 20]:
                sock.sendall(request("GET", "/again"))
                assert sock.recv(65536).startswith(b"HTTP/1.1 200 ")
    finally:
        for sock in made:
            sock.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))


def test_as_many_as_allowed_and_no_more(system: System) -> None:
    """Those above the ceiling wait until there is room."""
    with Backend() as backend:
        balancer = system.balancer(backends=backend.url, env={"LB_CLIENT_CONNECTIONS": "20"})
        first = [Client(balancer.port) for _ in range(20)]
        assert all(client.get("/").status == 200 for client in first)
        with Client(balancer.port, timeout=0.5) as late:
            late.send(request("GET", "/late"))
            with pytest.raises(TimeoutError):
                late.read_head()
            for client in first:
                client.close()
            late.sock.settimeout(10)
            assert late.read_answer().status == 200


def test_idle_connections_are_closed_in_time(system: System) -> None:
    with Backend() as backend:
        balancer = system.balancer(
            backends=backend.url, env={"LB_CLIENT_KEEPALIVE": "0.5", "LB_CLIENT_HEADER_TIMEOUT": "0.7"}
        )
        with Client(balancer.port) as used, Client(balancer.port) as fresh, Client(balancer.port) as slow:
            assert used.get("/").status == 200
            slow.send(b"GET / HTT")
            assert used.at_end()
            assert fresh.at_end()
            slow.send(b"P")  # now and then a byte is no head in time
            assert slow.read_answer().status == 408
            assert slow.at_end()
