"""Bodies of any size pass through in a few buffers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.clients import Client, Load, request
from tests.support.processes import System

SIZE = 256 << 20
MOST_MIB = 24
"""What the worker may grow by while a body passes through that is ten times as large."""


def peak_mib(pid: int) -> float:
    """The most memory that this process has had resident so far."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise AssertionError("no VmHWM")


@pytest.mark.parametrize("worker", ["gevent", "gthread"])
def test_large_bodies_are_never_held(system: System, worker: str) -> None:
    demo = system.process("demo", "-m", "lb.demo", "--name", "b1", "--port", "0")
    demo.until(lambda: demo.out.endswith("\n"), "the backend")
    url = demo.out.strip().partition(": ")[2]
    balancer = system.balancer(backends=url, worker=worker)
    (pid,) = balancer.worker_pids
    Load([balancer.port], 4, total=50).run()
    before = peak_mib(pid)
    with Client(balancer.port) as client:
        for chunked in ("", "&chunked=1"):
            client.send(request("GET", f"/bytes?n={SIZE}{chunked}"))
            answer = client.read_answer()
            assert (len(answer.body), answer.complete) == (SIZE, True)
            del answer
        client.send(request("POST", "/", f"Content-Length: {SIZE}"))
        block = bytes(1 << 20)
        for _ in range(SIZE >> 20):
            client.send(block)
        assert json.loads(client.read_answer().body)["length"] == SIZE
    assert peak_mib(pid) - before < MOST_MIB


def test_a_large_body_does_not_keep_others_waiting(system: System) -> None:
    """Source and destination may be faster than the worker, which then never has to wait for them."""
    demo = system.process("demo", "-m", "lb.demo", "--name", "b1", "--port", "0")
    demo.until(lambda: demo.out.endswith("\n"), "the backend")
    balancer = system.balancer(backends=demo.out.strip().partition(": ")[2])
    with Client(balancer.port) as client:
        client.send(request("GET", f"/bytes?n={1 << 30}"))
        client.read_head()
        with Load([balancer.port], 1, "/status/200").running() as load:
            left = SIZE
            while left > 0:
                left -= len(client.sock.recv(1 << 20))
    assert load.failures == []
    assert load.slowest < 1
