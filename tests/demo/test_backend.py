"""The answers of the demo backend, without a server around it."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable
from typing import Any
from wsgiref.types import StartResponse

import pytest

from lb.demo.backend import CHUNK, HEADERS_KEY, MAX_SECONDS, DemoBackend


class Asked:
    """One backend and its last answer."""

    def __init__(self) -> None:
        self.slept: list[float] = []
        self.backend = DemoBackend("b1", self.slept.append)
        self.status = ""
        self.headers: dict[str, str] = {}

    def ask(
        self, path: str, query: str = "", method: str = "GET", body: bytes | None = None, **more: Any
    ) -> bytes:
        """The body of the answer to one request."""
        environ = {"REQUEST_METHOD": method, "PATH_INFO": path, "QUERY_STRING": query, **more}
        if body is not None:
            environ |= {"CONTENT_LENGTH": str(len(body)), "wsgi.input": io.BytesIO(body)}

        def start(status: str, headers: list[tuple[str, str]], exc_info: object = None) -> Any:
            self.status, self.headers = status, dict(headers)

        typed: StartResponse = start
        answer: Iterable[bytes] = self.backend(environ, typed)
        return b"".join(answer)

    def json(self, path: str, query: str = "", **more: Any) -> dict[str, Any]:
        """The same, decoded."""
        decoded: dict[str, Any] = json.loads(self.ask(path, query, **more))
        return decoded


@pytest.fixture
def backend() -> Asked:
    """A fresh one."""
    return Asked()


def test_any_path_tells_who_answered(backend: Asked) -> None:
    headers = [["Host", "x"], ["X-A", "1"], ["x-a", "2"]]
    first = backend.json("/a/b", "x=1", **{HEADERS_KEY: headers})
    assert first == {
        "backend": "b1",
        "count": 1,
        "method": "GET",
        "path": "/a/b",
        "query": "x=1",
        "headers": headers,
    }
    assert backend.json("/", method="DELETE")["count"] == 2


def test_bodies_are_read_whole(backend: Asked) -> None:
    body = b"0123456789" * CHUNK
    answer = backend.json("/up", method="POST", body=body)
    assert (answer["length"], answer["sha256"]) == (len(body), hashlib.sha256(body).hexdigest())
    empty = backend.json("/up", method="POST", body=b"")
    assert (empty["length"], empty["sha256"]) == (0, hashlib.sha256().hexdigest())
    announced: dict[str, Any] = {"HTTP_TRANSFER_ENCODING": "chunked", "wsgi.input": io.BytesIO(b"abc")}
    chunked = backend.json("/", method="PUT", **announced)
    assert chunked["length"] == 3


def test_probes_are_counted_apart_and_stats_not_at_all(backend: Asked) -> None:
    backend.ask("/")
    backend.ask("/", HTTP_USER_AGENT="lb-health/0.1.0")
    assert backend.json("/__stats") == {"backend": "b1", "requests": 1, "probes": 1}
    assert backend.json("/__stats") == {"backend": "b1", "requests": 1, "probes": 1}


def test_slow(backend: Asked) -> None:
    assert backend.json("/slow", "seconds=1.5")["count"] == 1
    assert backend.slept == [1.5]


@pytest.mark.parametrize("size", [0, 1, CHUNK, 3 * CHUNK + 7])
def test_bytes(backend: Asked, size: int) -> None:
    assert len(backend.ask("/bytes", f"n={size}")) == size
    assert backend.headers["Content-Length"] == str(size)
    assert len(backend.ask("/bytes", f"n={size}&chunked=1")) == size
    assert "Content-Length" not in backend.headers


def test_head_has_the_length_but_no_body(backend: Asked) -> None:
    assert backend.ask("/bytes", "n=100", method="HEAD") == b""
    assert backend.headers["Content-Length"] == "100"
    assert backend.ask("/", method="HEAD") == b""
    assert int(backend.headers["Content-Length"]) > 0


@pytest.mark.parametrize("status", [200, 299, 404, 503, 599])
def test_status(backend: Asked, status: int) -> None:
    assert backend.json(f"/status/{status}")["backend"] == "b1"
    assert backend.status.startswith(f"{status} ")


@pytest.mark.parametrize("status", [204, 304])
def test_status_without_a_body(backend: Asked, status: int) -> None:
    assert backend.ask(f"/status/{status}") == b""
    assert "Content-Length" not in backend.headers


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("/status/199", ""),
        ("/status/600", ""),
        ("/status/", ""),
        ("/status/2²0", ""),
        ("/slow", "seconds=nan"),
        ("/slow", "seconds=-1"),
        ("/slow", f"seconds={MAX_SECONDS + 1}"),
        ("/bytes", "n=x"),
        ("/bytes", "n=1e12"),
    ],
)
def test_what_cannot_be_done_is_a_400(backend: Asked, path: str, query: str) -> None:
    assert "error" in backend.json(path, query)
    assert backend.status == "400 Bad Request"
    assert backend.slept == []
