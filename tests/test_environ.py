"""From heads to environs: a head is refused, or everything in the environ is what was sent."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote_to_bytes

import pytest
from gunicorn_h1c import parse_request_fast
from gunicorn_h1c._parser_fast import IncompleteError
from hypothesis import example, given
from hypothesis import strategies as st

from lb.environ import KEYS, fill
from lb.errors import BadRequest, LastHop, MethodNotServed
from tests.support.clients import request

REFUSED = (BadRequest, ValueError)
"""The parser's errors are ValueErrors; there are several kinds."""


def read(data: bytes) -> tuple[dict[str, Any], bool]:
    """The environ of a head, and whether it announces a body. Raises what is in `REFUSED`."""
    environ: dict[str, Any] = {**dict.fromkeys(KEYS), "SERVER_PROTOCOL": "HTTP/1.1"}
    framed = fill(environ, parse_request_fast(data, permit_unconventional_http_method=True), data)
    return environ, framed


def environ_of(data: bytes) -> dict[str, Any]:
    return read(data)[0]


def fields_in(environ: dict[str, Any]) -> dict[str, str]:
    """What the environ has of the fields."""
    return {
        key: value
        for key, value in environ.items()
        if key.startswith("HTTP_") or key in ("CONTENT_LENGTH", "CONTENT_TYPE")
    }


@pytest.mark.parametrize(
    "data",
    [
        b"\r\nGET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n",
        b"\r\nGET / HTTP/1.1\nHost: a\r\nX: b\r\n\r\n",
        b"\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
)
def test_an_empty_line_before_it_hides_no_bare_lf(data: bytes) -> None:
    with pytest.raises(BadRequest, match="CRLF"):
        environ_of(data)


def test_close_counts_in_whichever_field_it_stands() -> None:
    assert environ_of(request("GET", "/", "Connection: close", "Connection: keep-alive"))["lb.keep"] is False


def test_closed_is_not_close() -> None:
    assert environ_of(request("GET", "/", "Connection: closed"))["lb.keep"] is True


def test_cookies_are_joined_with_semicolons_beside_an_underscore() -> None:
    fields = ("Cookie: a=1", "X_Y: z", "Cookie: b=2")
    assert environ_of(request("GET", "/", *fields))["HTTP_COOKIE"] == "a=1; b=2"


def test_bytes_beyond_ascii_stay_bytes_beside_an_escape() -> None:
    assert environ_of(request("GET", "/\xe9%41"))["PATH_INFO"] == "/\xe9A"


def test_a_plain_head() -> None:
    data = request("GET", "/a%20b/%C3%A9?x=%41&y", "Accept: a/b", "content-type: c/d", host="h:1")
    environ, framed = read(data + b"what follows")
    assert not framed
    assert fields_in(environ) == {"HTTP_HOST": "h:1", "HTTP_ACCEPT": "a/b", "CONTENT_TYPE": "c/d"}
    assert environ["REQUEST_METHOD"] == "GET"
    assert environ["PATH_INFO"] == "/a b/\xc3\xa9"
    assert environ["QUERY_STRING"] == "x=%41&y"
    assert environ["RAW_URI"] == environ["lb.target"] == "/a%20b/%C3%A9?x=%41&y"
    assert environ["SERVER_PROTOCOL"] == "HTTP/1.1"
    assert environ["lb.head"] == data[:-2]
    assert environ["lb.fields"] == ((b"Host", b"h:1"), (b"Accept", b"a/b"), (b"content-type", b"c/d"))
    assert environ["lb.keep"] is True


def test_repeated_fields_are_joined_in_their_order() -> None:
    environ = environ_of(request("GET", "/", "X-A: 1", "Cookie: a=1", "x-a: 2", "Cookie: b=2"))
    assert environ["HTTP_X_A"] == "1, 2"
    assert environ["HTTP_COOKIE"] == "a=1; b=2"


@pytest.mark.parametrize("field", ["Content-Length: 5", "Transfer-Encoding: chunked", "content-length: 0"])
def test_a_body_is_announced_by_its_framing(field: str) -> None:
    assert read(request("POST", "/", field))[1]
    assert read(request("POST", "/", "X_y: z", field))[1]
    assert not read(request("POST", "/", "X-" + field))[1]


# Heads that can be read in more than one way.


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\nY: 2\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n\n",
        b"GET / HTTP/1.1\nHost: a\n\n",
    ],
)
def test_lines_end_in_crlf(data: bytes) -> None:
    with pytest.raises(BadRequest, match="CRLF"):
        read(data)


@pytest.mark.parametrize("white", [" ", "\t", " \t "])
def test_no_line_is_folded(white: str) -> None:
    with pytest.raises(BadRequest, match="folding"):
        read(request("GET", "/", "X: 1", f"{white}Content-Length: 5"))


@pytest.mark.parametrize(
    "data",
    [
        request("GET", "/", host=""),
        request("GET", "/", "Host: a", host=""),
        request("GET", "/", "Host: a", "hOST: b", host=""),
        request("GET", "/", "Host: a", "Host: a", host=""),
        request("GET", "/", "Host: a", "Host: a", host="", version="1.0"),
        request("GET", "http://a/", host=""),
    ],
)
def test_there_is_exactly_one_host(data: bytes) -> None:
    if data.lower().count(b"host:") == 1:
        assert read(data)[0]["HTTP_HOST"] == "a"
        return
    with pytest.raises(REFUSED, match="Host"):
        read(data)


def test_http_1_0_needs_no_host() -> None:
    environ = environ_of(request("GET", "/", host="", version="1.0"))
    assert environ["SERVER_PROTOCOL"] == "HTTP/1.0"
    assert "HTTP_HOST" not in environ
    assert environ["lb.head"] is None, "it cannot go on as it came: the backend is sent HTTP/1.1"


@pytest.mark.parametrize(
    ("version", "connection", "keep"),
    [
        ("1.1", "", True),
        ("1.1", "keep-alive", True),
        ("1.1", "close", False),
        ("1.1", "x, CLOSE", False),
        ("1.0", "", False),
        ("1.0", "close", False),
        ("1.0", "Keep-Alive", True),
        ("1.0", "keep-alive, close", False),
    ],
)
def test_which_connections_stay_open(version: str, connection: str, keep: bool) -> None:
    fields = (f"Connection: {connection}",) if connection else ()
    assert environ_of(request("GET", "/", *fields, version=version))["lb.keep"] is keep


# Names with an underscore.


@pytest.mark.parametrize("name", ["Content_Length", "X_Real-IP", "Host_", "_", "TRANSFER_ENCODING"])
def test_names_with_an_underscore_are_dropped(name: str) -> None:
    environ, framed = read(request("GET", "/", f"{name}: 7", "X-Kept: 1"))
    assert fields_in(environ) == {"HTTP_HOST": "t.example", "HTTP_X_KEPT": "1"}
    assert environ["lb.fields"] == ((b"Host", b"t.example"), (b"X-Kept", b"1"))
    assert environ["lb.head"] is None
    assert not framed


def test_a_name_with_an_underscore_takes_nothing_from_the_right_one() -> None:
    for fields in (("X-A: 1", "X_A: 2", "X-A: 3"), ("X_A: 2", "X-A: 1", "X-A: 3")):
        assert environ_of(request("GET", "/", *fields))["HTTP_X_A"] == "1, 3"
    environ = environ_of(request("POST", "/", "Content_Length: 9", "Content-Length: 3"))
    assert environ["CONTENT_LENGTH"] == "3"


def test_an_underscore_makes_no_host() -> None:
    with pytest.raises(BadRequest, match="Host"):
        read(request("GET", "/", "HTTP_HOST: a", "_Host: b", host=""))


@pytest.mark.parametrize(
    "field",
    ["Connection: x", "TE: trailers", "Expect: 100-continue", "X-Forwarded-For: 1.1.1.1", "Upgrade: h2c"],
)
def test_a_head_with_something_to_take_out_does_not_go_on_as_it_came(field: str) -> None:
    assert environ_of(request("GET", "/", field))["lb.head"] is None
    assert environ_of(request("GET", "/", "Y-" + field))["lb.head"] is not None


# The target's forms (RFC 9112, section 3.2).


@pytest.mark.parametrize(
    ("target", "host", "path", "query"),
    [
        ("http://x.example/p/q?r=1", "x.example", "/p/q", "r=1"),
        ("HTTP://x.example:81", "x.example:81", "/", ""),
        ("https://x.example?q", "x.example", "/", "q"),
        ("http://[::1]:8/%41", "[::1]:8", "/A", ""),
        ("http://x/a://b?c://d", "x", "/a://b", "c://d"),
    ],
)
def test_an_absolute_target_says_the_host(target: str, host: str, path: str, query: str) -> None:
    environ = environ_of(request("GET", target, "X: 1"))
    assert (environ["HTTP_HOST"], environ["PATH_INFO"], environ["QUERY_STRING"]) == (host, path, query)
    assert environ["lb.target"].startswith("/")
    assert environ["lb.fields"] == ((b"Host", host.encode()), (b"X", b"1"))
    assert environ["lb.head"] is None


def test_an_absolute_target_says_it_also_in_http_1_0() -> None:
    environ = environ_of(request("GET", "http://x.example/p", host="", version="1.0"))
    assert environ["HTTP_HOST"] == "x.example"
    assert environ["lb.fields"] == ((b"Host", b"x.example"),)


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "ftp://x/"),
        ("GET", "http://"),
        ("GET", "http:///p"),
        ("GET", "http://?p"),
        ("GET", "http://user@x/"),
        ("GET", "http://user:word@x/"),
        ("GET", "x.example"),
        ("GET", "*"),
        ("CONNECT", "x.example:443"),
        ("CONNECT", "http://x.example/"),
    ],
)
def test_other_targets_are_refused(method: str, target: str) -> None:
    with pytest.raises(REFUSED):
        read(request(method, target))


def test_the_asterisk_is_for_options() -> None:
    environ = environ_of(request("OPTIONS", "*"))
    assert (environ["PATH_INFO"], environ["lb.target"]) == ("*", "*")
    assert environ_of(request("OPTIONS", "http://x.example:80"))["lb.target"] == "*"
    assert environ_of(request("OPTIONS", "http://x.example/"))["lb.target"] == "/"
    assert environ_of(request("OPTIONS", "http://x.example?q"))["lb.target"] == "/?q"
    assert environ_of(request("GET", "http://x.example"))["lb.target"] == "/"


@pytest.mark.parametrize("method", ["TRACE", "OPTIONS"])
def test_hops_are_counted(method: str) -> None:
    environ = environ_of(request(method, "/", "A: b", "max-forwards: 010", "C: d"))
    assert environ["lb.fields"][1:] == ((b"A", b"b"), (b"max-forwards", b"9"), (b"C", b"d"))
    assert (environ["HTTP_MAX_FORWARDS"], environ["lb.head"]) == ("9", None)
    with pytest.raises(LastHop if method == "OPTIONS" else MethodNotServed):
        read(request(method, "/", "Max-Forwards: 0", version="1.0"))
    for fields in (["Max-Forwards: x"], ["Max-Forwards: -1"], ["Max-Forwards: 1", "Max-Forwards: 2"]):
        with pytest.raises(BadRequest):
            read(request(method, "/", *fields))


def test_hops_of_other_methods_are_not() -> None:
    environ = environ_of(request("GET", "/", "Max-Forwards: 0"))
    assert dict(environ["lb.fields"])[b"Max-Forwards"] == b"0"


# Properties.

_TOKEN = "!#$%&'*+-.^`|~ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
_VISIBLE = "".join(map(chr, range(0x21, 0x7F)))
_VALUE = _VISIBLE + "".join(map(chr, range(0x80, 0x100))) + " \t"
#: Those that mean something to the framing, or may be there only once.
_MEANING = {"host", "content-length", "transfer-encoding", "connection", "content-type"}

names = st.text(_TOKEN + "_", min_size=1, max_size=12).filter(lambda name: name.lower() not in _MEANING)
values = st.text(_VALUE, max_size=20)
targets = st.builds(lambda path: "/" + path, st.text(_VISIBLE, max_size=30))
methods = st.sampled_from(["GET", "POST", "DELETE", "PROPFIND", "X-Y", "get"])


def expected(fields: list[tuple[str, str]]) -> dict[str, str]:
    """What the environ must have of `fields`."""
    found: dict[str, str] = {}
    for name, value in fields:
        if "_" not in name:
            key = f"HTTP_{name.upper().replace('-', '_')}"
            text = value.strip(" \t")
            found[key] = f"{found[key]}, {text}" if key in found else text
    return found


@given(methods, targets, st.lists(st.tuples(names, values), max_size=6), st.sampled_from(["1.0", "1.1"]))
@example("GET", "/", [("A", "1"), ("a", "2"), ("A_", "3"), ("A-", "4")], "1.1")
@example("GET", "/%", [], "1.1")
@example("GET", "/%4", [], "1.1")
@example("GET", "/\xe9?\xff", [], "1.1")
def test_what_is_well_formed_is_what_was_sent(
    method: str, target: str, fields: list[tuple[str, str]], version: str
) -> None:
    fields = [(name, value) for name, value in fields if name.lower() != "cookie"]
    target = target.replace("#", "")  # a fragment is never sent
    data = request(method, target, *(f"{name}: {value}" for name, value in fields), version=version)
    environ, framed = read(data)
    assert not framed
    path, _, query = target.partition("?")
    assert environ["REQUEST_METHOD"] == method
    assert environ["PATH_INFO"].encode("latin-1") == unquote_to_bytes(path.encode("latin-1"))
    assert environ["QUERY_STRING"] == query
    assert environ["lb.target"] == target
    assert environ["SERVER_PROTOCOL"] == f"HTTP/{version}"
    assert fields_in(environ) == {"HTTP_HOST": "t.example"} | expected(fields)
    assert environ["lb.head"] in (None, data[:-2])


_LINE = re.compile(rb"[!#$%&'*+\-.^`|~0-9A-Za-z_]+:[^\r\n\0]*\Z")


def check_strictly(data: bytes, environ: dict[str, Any]) -> None:
    """Read the head anew, in the strictest way there is, and compare."""
    head = data.partition(b"\r\n\r\n")[0]
    first, *lines = head.split(b"\r\n")
    assert b"\r" not in head.replace(b"\r\n", b"")
    assert b"\n" not in head.replace(b"\r\n", b"")
    words = first.split()
    assert len(words) == 3
    assert environ["REQUEST_METHOD"].encode("latin-1") == words[0]
    assert words[2] == environ["SERVER_PROTOCOL"].encode()
    assert words[1].endswith(environ["QUERY_STRING"].encode("latin-1"))
    assert all(_LINE.match(line) for line in lines), lines
    pairs = [line.partition(b":")[::2] for line in lines]
    kept = tuple((name, value.strip(b" \t")) for name, value in pairs if b"_" not in name)
    assert [name for name, _ in environ["lb.fields"]] == [name for name, _ in kept]
    hosts = [value for name, value in kept if name.lower() == b"host"]
    assert len(hosts) == 1 or (not hosts and words[2] == b"HTTP/1.0")
    if words[1].startswith(b"/"):
        assert environ["lb.fields"] == kept
        assert environ["lb.target"].encode("latin-1") == words[1]
    if environ["lb.head"] is not None:
        assert environ["lb.head"] == head + b"\r\n"


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A head with a few bytes put in, taken out or exchanged."""
    fields = draw(
        st.lists(st.sampled_from(["X: 1", "Y: a b", "Content-Length: 3", "Connection: close"]), max_size=3)
    )
    target = draw(st.sampled_from(["/", "/a?b", "http://h/p", "*"]))
    data = bytearray(request("GET", target, *fields, version=draw(st.sampled_from(["1.0", "1.1"]))))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(1, max(1, len(data))))
        what = draw(
            st.sampled_from(
                [b"\n", b"\r", b"\r\n", b" ", b"\t", b":", b"\0", b"_", b"Host: b\r\n", b"%", b"?"]
            )
        )
        data[at : at + draw(st.integers(0, 2))] = what
    return bytes(data)


@given(damaged())
@example(b"GET / HTTP/1.1\r\nHost: a\r\nX: 1\r\n\r\n\r\n")
@example(b"GET / HTTP/1.1\r\nHost: a\nX: 1\r\n\r\n\r\n")
def test_what_is_damaged_is_refused_or_read_strictly(data: bytes) -> None:
    try:
        environ = environ_of(data)
    except (*REFUSED, IncompleteError):
        return
    check_strictly(data, environ)
