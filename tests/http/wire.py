"""Reading raw bytes of both ends: answers as a client reads them, requests as a simple backend does."""

from __future__ import annotations

import contextlib
import re
import socket
import time
from collections.abc import Sequence
from pathlib import Path

from tests.http.case import Heard
from tests.support.clients import Answer

_HEAD_END = re.compile(rb"\r?\n\r?\n")
_STATUS = re.compile(rb"HTTP/1\.[01] [1-9][0-9]{2}[ \r]")


def read_answers(got: bytes, methods: Sequence[str], over: bool) -> tuple[list[Answer], list[bytes], bytes]:
    """The final answers in `got`, interim ones that nothing followed, what is left; `over`: no more comes.

    `methods` are those of the requests, the last one for all that follow. What is not HTTP is left.
    """
    answers: list[Answer] = []
    interim: list[bytes] = []
    while _STATUS.match(got) and (end := got.find(b"\r\n\r\n")) >= 0:
        answer = Answer(got[: end + 4], interim=interim)
        got = got[end + 4 :]
        if answer.status < 200 and answer.status != 101:
            interim.append(answer.head)
            continue
        method = methods[min(len(answers), len(methods) - 1)]
        answers.append(answer)
        interim = []
        got = _take_body(answer, got, method, over)
        if not answer.complete:
            break
    return answers, interim, got


def _take_body(answer: Answer, got: bytes, method: str, over: bool) -> bytes:
    """Fill in the body of `answer` from `got`; returns what follows it."""
    length = answer.values("Content-Length")
    if method == "HEAD" or answer.status in (204, 304):
        answer.complete = True
        return got
    if answer.values("Transfer-Encoding"):
        answer.body, answer.complete, got = read_chunks(got)
        return got
    if length and length[0].isdigit():
        size = int(length[0])
        answer.body, answer.complete = got[:size], len(got) >= size
        return got[size:]
    answer.body, answer.complete = got, over
    return b""


def read_chunks(data: bytes) -> tuple[bytes, bool, bytes]:
    """(content, is it complete, what follows) of a chunked body; what is no chunk makes it incomplete."""
    content = b""
    while (end := data.find(b"\r\n")) >= 0:
        try:
            size = int(data[:end].partition(b";")[0], 16)
        except ValueError:
            break
        if not size:
            trailer = data[end:]
            while (stop := trailer.find(b"\r\n", 2)) >= 0:
                if stop == 2:
                    return content, True, trailer[4:]
                trailer = trailer[stop:]
            break
        if len(data) < end + 2 + size + 2:
            content += data[end + 2 : end + 2 + size]
            break
        content += data[end + 2 : end + 2 + size]
        data = data[end + 4 + size :]
    return content, False, b""


def read_head(data: bytes, connection: int) -> tuple[Heard, bytes] | None:
    """The first request's head in `data`, and what follows; None when it is not whole."""
    found = _HEAD_END.search(data)
    if found is None:
        return None
    return Heard(data[: found.end()], connection=connection), data[found.end() :]


def read_body(head: Heard, data: bytes) -> tuple[Heard, bytes]:
    """The request with its body, and what follows; `whole` says whether it is all here."""
    if any("chunked" in value.lower() for value in head.values("Transfer-Encoding")):
        content, whole, rest = read_chunks(data)
    else:
        length = (head.values("Content-Length") or ["0"])[0]
        size = int(length) if length.isascii() and length.isdigit() else 0
        content, whole, rest = data[:size], len(data) >= size, data[size:]
    raw = data[: len(data) - len(rest)]
    return Heard(head.head, content, raw, head.connection, whole), rest


def _kernel_name(address: tuple[str, int]) -> str:
    return f"{int.from_bytes(socket.inet_aton(address[0]), 'little'):08X}:{address[1]:04X}"


def wait_taken(sock: socket.socket, seconds: float = 1.0) -> None:
    """Wait until the other side, on this machine, has read what was sent: the kernel keeps nothing for it."""
    with contextlib.suppress(OSError):
        theirs, ours = _kernel_name(sock.getpeername()), _kernel_name(sock.getsockname())
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            _, found, rest = Path("/proc/net/tcp").read_text().partition(f" {theirs} {ours} ")
            # The state, then the queues: what is not sent yet, what is not read yet.
            if not found or rest.split(None, 2)[1].endswith(":00000000"):
                return
            time.sleep(0.001)
