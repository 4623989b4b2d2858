"""The disk is full, or nobody reads the log: requests are served, and nothing is lost in silence."""

from __future__ import annotations

import json
import os
import re
import resource
import threading

import pytest

from tests.support.clients import Load
from tests.support.processes import Balancer, System
from tests.support.run import eventually

KINDS = ["gevent", "gthread"]


def let_write(balancer: Balancer, size: int) -> None:
    """Let its workers make no file larger than this; -1: any size."""
    for pid in balancer.worker_pids:
        hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)[1]
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, hard))


def serve(balancer: Balancer, count: int) -> None:
    """So many requests, none of which fails."""
    assert not Load([balancer.port], 8, total=count).run().failures


@pytest.mark.parametrize("worker", KINDS)
def test_a_disk_that_is_full_for_a_while(system: System, worker: str) -> None:
    path = system.folder / "access.log"
    backend = system.plain_backend()
    balancer = system.balancer(backends=backend.url, worker=worker, env={"LB_ACCESS_LOG": str(path)})

    def lines() -> list[bytes]:
        return path.read_bytes().splitlines()

    serve(balancer, 100)
    eventually(lambda: len(lines()) == 100, "the lines")
    let_write(balancer, path.stat().st_size + 50)
    serve(balancer, 100)
    eventually(lambda: "lines are lost until it takes them again" in balancer.process.err, "it to be said")
    serve(balancer, 100)
    let_write(balancer, -1)

    def works() -> bool:
        serve(balancer, 1)
        return "works again" in balancer.process.err

    eventually(works, "lines to be written again")
    serve(balancer, 100)
    assert balancer.stop() == 0
    assert balancer.process.err.count("lines are lost") == 1
    (lost,) = re.findall(r"works again; (\d+) lines were lost", balancer.process.err)
    whole = torn = 0
    for line in lines():
        try:
            json.loads(line)
            whole += 1
        except ValueError:
            torn += 1
    assert torn <= 1
    assert whole + int(lost) == backend.counts()["/"]


def test_a_disk_that_is_always_full(system: System) -> None:
    backend = system.plain_backend()
    balancer = system.balancer(backends=backend.url, env={"LB_ACCESS_LOG": "/dev/full"})
    for _ in range(3):
        serve(balancer, 50)
        eventually(lambda: "No space left on device" in balancer.process.err, "it to be said")
    assert balancer.stop() == 0
    assert balancer.process.err.count("No space left on device") == 1


def test_a_pipe_that_nobody_reads(system: System) -> None:
    """Its lines wait, and come when somebody reads."""
    reading, writing = os.pipe()
    backend = system.plain_backend()
    found = bytearray()
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        balancer = system.balancer(backends=backend.url, stdout=writing)
        os.close(writing)
        for _ in range(3):
            serve(balancer, 300)  # more than a pipe holds
        balancer.idle()

        def read() -> None:
            while data := pipe.read(65536):
                found.extend(data)

        reader = threading.Thread(target=read)
        reader.start()
        assert balancer.stop() == 0
        reader.join(30)
    entries = [json.loads(line) for line in found.decode().splitlines()]
    assert len(found) > 65536
    assert len(entries) == len({entry["id"] for entry in entries}) == 900
