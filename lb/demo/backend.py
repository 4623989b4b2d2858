"""The answers of the demo backend: a WSGI application, without any server around it.

Any path answers JSON that tells which backend it was and what it received: `backend`, `count` (requests
served, this one included), `method`, `path`, `query`, `headers`; and `length` and `sha256` of the body, which
is read whole, if one was announced. A few paths behave in ways tests need:

    /slow?seconds=N          the usual answer, N seconds later (at most 600)
    /bytes?n=N               N bytes (at most 1 GiB); with &chunked=1 in chunks, without Content-Length
    /status/NNN              an answer with that status, 200 to 599
    /__stats                 {"backend", "requests", "probes"}; not counted itself

Requests whose User-Agent starts with `lb-health` count as probes only.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIEnvironment

CHUNK = 65536
MAX_SECONDS = 600.0
MAX_BYTES = 1 << 30
#: Where a server may put the header fields as they came, with case, order and repeats.
HEADERS_KEY = "lb.demo.headers"
_BLOCK = b"x" * CHUNK


class DemoBackend:
    """The application. `sleep` waits for a number of seconds, in the way of the server at hand."""

    def __init__(self, name: str, sleep: Callable[[float], object]) -> None:
        self.name = name
        self.requests = 0
        self.probes = 0
        self._sleep = sleep

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Serve one request."""
        path = str(environ.get("PATH_INFO", "/"))
        if path == "/__stats":
            stats = {"backend": self.name, "requests": self.requests, "probes": self.probes}
            return _json(environ, start_response, 200, stats)
        if str(environ.get("HTTP_USER_AGENT", "")).startswith("lb-health"):
            self.probes += 1
        else:
            self.requests += 1
        count = self.requests
        body = _read_body(environ)
        try:
            query = parse_qs(str(environ.get("QUERY_STRING", "")))
            if path == "/bytes":
                size = int(_number(query, "n", MAX_BYTES))
                return _stream(environ, start_response, size, chunked="chunked" in query)
            if path == "/slow":
                self._sleep(_number(query, "seconds", MAX_SECONDS))
            status = _status(path)
        except ValueError as exc:
            return _json(environ, start_response, 400, {"backend": self.name, "error": str(exc)})
        answer: dict[str, object] = {
            "backend": self.name,
            "count": count,
            "method": environ["REQUEST_METHOD"],
            "path": path,
            "query": environ.get("QUERY_STRING", ""),
            "headers": environ.get(HEADERS_KEY, []),
        }
        if body is not None:
            answer["length"], answer["sha256"] = body
        return _json(environ, start_response, status, answer)


def _read_body(environ: WSGIEnvironment) -> tuple[int, str] | None:
    """The length and SHA-256 of the request's body, which is read in pieces; None if there is none."""
    if not environ.get("CONTENT_LENGTH") and "HTTP_TRANSFER_ENCODING" not in environ:
        return None
    digest, length = hashlib.sha256(), 0
    read = environ["wsgi.input"].read
    while block := read(CHUNK):
        digest.update(block)
        length += len(block)
    return length, digest.hexdigest()


def _number(query: dict[str, list[str]], name: str, most: float) -> float:
    """The number `name` of the query, 0 to `most`. Raises ValueError."""
    text = query.get(name, ["0"])[0]
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= most:
        raise ValueError(f"{name} must be a number from 0 to {most:g}")
    return value


def _status(path: str) -> int:
    """The status that `/status/NNN` asks for, 200 for any other path. Raises ValueError."""
    if not path.startswith("/status/"):
        return 200
    text = path.removeprefix("/status/")
    if not (text.isascii() and text.isdigit() and 200 <= int(text) <= 599):
        raise ValueError("a status is a number from 200 to 599")
    return int(text)


def _line(status: int) -> str:
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return f"{status} Unknown"


def _json(
    environ: WSGIEnvironment, start_response: StartResponse, status: int, value: dict[str, object]
) -> list[bytes]:
    if status in (204, 304):  # these have no body (RFC 9110, section 6.4.1)
        start_response(_line(status), [])
        return []
    body = json.dumps(value).encode() + b"\n"
    start_response(_line(status), [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [] if environ["REQUEST_METHOD"] == "HEAD" else [body]


def _stream(
    environ: WSGIEnvironment, start_response: StartResponse, size: int, *, chunked: bool
) -> Iterable[bytes]:
    headers = [("Content-Type", "application/octet-stream")]
    if not chunked:
        headers.append(("Content-Length", str(size)))
    start_response("200 OK", headers)
    return [] if environ["REQUEST_METHOD"] == "HEAD" else _blocks(size)


def _blocks(size: int) -> Iterator[bytes]:
    while size > 0:
        yield _BLOCK if size >= CHUNK else _BLOCK[:size]
        size -= CHUNK
