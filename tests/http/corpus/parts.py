"""What the cases are put together from."""

from __future__ import annotations


def req(
    first: str = "GET / HTTP/1.1", *fields: str, host: str = "Host: t.example", body: bytes = b""
) -> bytes:
    """A request: its first line, Host, other fields, the empty line, a body."""
    lines = [first, *([host] if host else []), *fields]
    return "".join(line + "\r\n" for line in lines).encode("latin-1") + b"\r\n" + body


def post(*fields: str, body: bytes = b"", version: str = "1.1") -> bytes:
    """A POST with exactly these fields."""
    return req(f"POST / HTTP/{version}", *fields, body=body)


def answer(*fields: str, status: str = "200 OK", body: bytes = b"", version: str = "1.1") -> bytes:
    """An answer with exactly these fields."""
    lines = [f"HTTP/{version} {status}", *fields]
    return "".join(line + "\r\n" for line in lines).encode("latin-1") + b"\r\n" + body


HIDDEN = req("GET /smuggled HTTP/1.1")
"""A request that should never be heard."""
CHUNKED = "Transfer-Encoding: chunked"
"""A message in chunks; `HELLO` is a body for it."""
HELLO = b"5\r\nhello\r\n0\r\n\r\n"

SOCKET = ("Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")
ASKED = req("GET / HTTP/1.1", "Connection: Upgrade", "Upgrade: websocket", *SOCKET)
"""The request for a WebSocket; `ACCEPTED` is in the answer to it."""
ACCEPTED = "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo="

LENIENT = "What can be read in two ways may be read otherwise by the client; some repair it or pass it on."
"""Why others differ, where they are more lenient."""
