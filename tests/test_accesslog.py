"""The access log: one JSON object a line, whatever clients send and wherever it goes."""

from __future__ import annotations

import json
import logging
import os
import resource
from pathlib import Path

import pytest

from lb.accesslog import AccessLog, Entry


def entry(target: str = "/", **changes: object) -> Entry:
    return Entry(1.5, "id1", "127.0.0.1", "GET", "h", target, **changes)  # type: ignore[arg-type]


def test_lines(tmp_path: Path) -> None:
    log = AccessLog(str(tmp_path / "a.log"))
    log.add(entry(status=200, bytes=3, backend="b1"))
    log.add(entry("/x", status=503, code="no_backend", tried=("b1",)))
    assert (tmp_path / "a.log").read_bytes() == b""
    log.flush()
    first, second = map(json.loads, (tmp_path / "a.log").read_text().splitlines())
    assert (first["status"], first["backend"], first["id"]) == (200, "b1", "id1")
    assert (second["code"], second["tried"]) == ("no_backend", ["b1"])


def test_no_request_forges_a_line(tmp_path: Path) -> None:
    log = AccessLog(str(tmp_path / "a.log"))
    hostile = '/"}\n{"status":200}\r\n\x00\x1b[31m'
    log.add(entry(hostile))
    log.flush()
    (line,) = (tmp_path / "a.log").read_bytes().splitlines()
    assert json.loads(line)["target"] == hostile


def test_off(tmp_path: Path) -> None:
    log = AccessLog("")
    log.add(entry())
    log.flush()
    log.reopen()
    assert not list(tmp_path.iterdir())


def test_reopen_after_rotation(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    log = AccessLog(str(path))
    log.add(entry("/old"))
    log.flush()
    path.rename(tmp_path / "a.log.1")
    log.reopen()
    log.add(entry("/new"))
    log.flush()
    assert "/new" in path.read_text()
    assert "/new" not in (tmp_path / "a.log.1").read_text()


def test_a_path_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        AccessLog(str(tmp_path / "missing" / "a.log"))


def test_a_full_disk_is_said_once_and_serving_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    log = AccessLog("/dev/full")
    with caplog.at_level(logging.WARNING, "lb"):
        for _ in range(3):
            log.add(entry())
            log.flush()
    assert log.dropped == 3
    assert [record.levelname for record in caplog.records] == ["ERROR"]


def test_a_pipe_that_nobody_reads_blocks_nobody_and_tears_no_line(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    log = AccessLog("")
    log.destination, log._fd = "-", os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    log.add = log._pending.append
    for number in range(3000):
        log.add(entry(f"/{number}"))
        if number % 100 == 99:
            log.flush()
    text = b""
    while b'"/2999"' not in text:
        text += os.read(reader, 65536)
        log.flush()
    targets = [json.loads(line)["target"] for line in text.splitlines()]
    assert targets == [f"/{number}" for number in range(3000)]
    os.close(reader)


def test_a_line_that_was_torn_spoils_no_other(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A disk that is nearly full takes a part of a line; what comes when there is room is on its own."""
    path = tmp_path / "a.log"
    log = AccessLog(str(path))
    log.add(entry("/first"))
    log.flush()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, before[1]))
    try:
        for target in ("/torn", "/lost"):
            log.add(entry(target))
            log.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert log.dropped == 2
    for target in ("/second", "/third"):
        log.add(entry(target))
        log.flush()
    first, torn, second, third = path.read_text().splitlines()
    assert [json.loads(line)["target"] for line in (first, second, third)] == ["/first", "/second", "/third"]
    assert len(torn) == 20
    assert [record.getMessage() for record in caplog.records][1:] == [
        f"access log {path} works again; 2 lines were lost"
    ]
