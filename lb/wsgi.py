"""WSGI's border: what the application reads from an environ and how it answers by itself.

`lb.client` puts what it knows exactly into the environ (`lb.head`, `lb.fields`, `lb.target`, `lb.body`,
`lb.listener`); under any other server the same is worked out from the standard keys, as well as WSGI allows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from lb.accesslog import Entry
from lb.dates import http_date
from lb.errors import BadRequest, ProxyError
from lb.proxy.body import BodyReader, client_fault
from lb.proxy.conn import NEVER
from lb.proxy.fields import Fields, request_head
from lb.proxy.http1 import UNTIL_CLOSE, content_length

StartResponse = Callable[..., Any]
REASONS = {
    200: "OK",
    201: "Created",
    204: "No Content",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    409: "Conflict",
    408: "Request Timeout",
    413: "Content Too Large",
    414: "URI Too Long",
    415: "Unsupported Media Type",
    417: "Expectation Failed",
    421: "Misdirected Request",
    422: "Unprocessable Content",
    431: "Request Header Fields Too Large",
    499: "Client Closed Request",
    500: "Internal Server Error",
    501: "Not Implemented",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
    505: "HTTP Version Not Supported",
}


def raw_target(environ: dict[str, Any]) -> str:
    """The request target as it came, in origin form (RFC 9112, section 3.2)."""
    target: str | None = environ.get("lb.target")
    if target is None:
        target = str(environ.get("RAW_URI") or environ["PATH_INFO"])
        if not target.startswith("/") and target != "*":
            target = origin_form(target)[0]
    return target


def origin_form(target: str) -> tuple[str, str]:
    """(path and query, authority) of an absolute-form target. Raises BadRequest for anything else."""
    scheme, mark, rest = target.partition("://")
    if not mark or scheme.lower() not in ("http", "https"):
        raise BadRequest("the request target is neither a path nor an http URL")
    ends = [at for at in (rest.find("/"), rest.find("?")) if at >= 0]
    end = min(ends) if ends else len(rest)
    authority, path = rest[:end], rest[end:]
    if not authority or "@" in authority:
        raise BadRequest("the request target names no host")
    return (path if path.startswith("/") else "/" + path), authority


def raw_head(environ: dict[str, Any], target: str) -> bytes:
    """The request line and the fields for a backend, each line ended, without the empty one.

    Beside the end-to-end fields these are what is said anew for the next hop (`lb.hop`).
    """
    head: bytes | None = environ.get("lb.head")
    if head is not None:
        return head
    hop: bytes = environ.get("lb.hop") or b""
    fields = raw_fields(environ)
    name, port = environ["SERVER_NAME"], environ["SERVER_PORT"]
    method, default_host = environ["REQUEST_METHOD"], f"{name}:{port}" if port else "localhost"
    return (
        request_head(
            method.encode("latin-1"), target.encode("latin-1"), fields, default_host.encode("latin-1")
        )
        + hop
    )


def raw_fields(environ: dict[str, Any]) -> Fields:
    """The fields as they came; of other servers, as well as WSGI keeps them."""
    fields: Fields | None = environ.get("lb.fields")
    return _environ_fields(environ) if fields is None else fields


def _environ_fields(environ: dict[str, Any]) -> Fields:
    found = [
        (key[5:].replace("_", "-").title().encode("latin-1"), value.encode("latin-1"))
        for key, value in environ.items()
        if key.startswith("HTTP_")
    ]
    found += [
        (key.replace("_", "-").title().encode(), environ[key].encode("latin-1"))
        for key in ("CONTENT_TYPE", "CONTENT_LENGTH")
        if environ.get(key)
    ]
    return found


class _Input:
    """`wsgi.input` of another server as a stream."""

    timeout = NEVER

    def __init__(self, source: Any) -> None:
        self._source = source

    def recv(self, size: int) -> bytes:
        data: bytes = self._source.read(size)
        return data


def client_body(environ: dict[str, Any]) -> BodyReader | None:
    """What is to be read of the request's body; None when it has none."""
    if "lb.body" in environ:
        body: BodyReader | None = environ["lb.body"]
        return body
    stream: Any = _Input(environ["wsgi.input"])
    if "chunked" in environ.get("HTTP_TRANSFER_ENCODING", "").lower():
        return BodyReader(stream, UNTIL_CLOSE, b"", client_fault)  # the server took the coding off
    try:
        length = content_length((environ.get("CONTENT_LENGTH") or "0").encode("latin-1"))
    except ValueError as exc:
        raise BadRequest(str(exc)) from None
    return BodyReader(stream, length, b"", client_fault) if length else None


def listener(environ: dict[str, Any], control: tuple[Any, ...]) -> str:
    """Which listener a request came in on, "data" or "control": a matter of sockets, never of headers.

    `control` holds the addresses of the control listener as `getsockname` gives them.
    """
    name: str | None = environ.get("lb.listener")
    if name is None:
        sock = environ.get("gunicorn.socket")
        name = "control" if sock is not None and sock.getsockname() in control else "data"
    return name


def problem(
    exc: ProxyError,
    environ: dict[str, Any],
    start_response: StartResponse,
    request_id: str,
    fields: Iterable[tuple[str, str]] = (),
) -> Iterable[bytes]:
    """The answer that the balancer gives by itself: a problem document (RFC 9457) or a line of text; with
    `fields`.
    """
    status, reason = exc.status, REASONS.get(exc.status, "Error")
    # The client learns what kind of failure it was, not which machine of ours failed how: that is in the log.
    if "json" in environ.get("HTTP_ACCEPT", ""):
        kind = "application/problem+json"
        document = {"type": "about:blank", "title": reason, "status": status}
        body = msgspec.json.encode({**document, "code": exc.code, "request_id": request_id})
    else:
        kind = "text/plain; charset=utf-8"
        body = f"{status} {reason}: {exc.code} (request {request_id})\n".encode()
    headers = [
        ("Content-Type", kind),
        ("Content-Length", str(len(body))),
        ("X-Request-Id", request_id),
        ("Date", http_date()),
        *fields,
    ]
    if status == 503:
        headers.append(("Retry-After", str(exc.retry_after)))
    start_response(f"{status} {reason}", headers)
    return (b"",) if environ["REQUEST_METHOD"] == "HEAD" else (body,)


def variables(environ: dict[str, Any], entry: Entry) -> dict[str, str]:
    """What may stand in braces in a field that a route sets."""
    return {
        "client_ip": entry.client,
        "host": entry.host,
        "path": raw_target(environ).partition("?")[0],
        "request_id": entry.id,
        "scheme": environ["wsgi.url_scheme"],
    }


def https_redirect(environ: dict[str, Any], start_response: StartResponse, entry: Entry) -> Iterable[bytes]:
    """Send the client to the same place over https; the method stays (RFC 9110, section 15.4.9)."""
    host = entry.host
    name = host.partition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]
    if not name:
        raise BadRequest("there is no Host to redirect to")
    location = f"https://{name}{entry.target}"
    entry.status = 308
    start_response(
        "308 Permanent Redirect",
        [("Location", location), ("Content-Length", "0"), ("X-Request-Id", entry.id), ("Date", http_date())],
    )
    return (b"",)
