"""The parts that decide, as functions: how input is cut never matters, and nothing breaks but as said."""

from __future__ import annotations

import contextlib
import ipaddress
import re

import pytest
from gunicorn_h1c import IncompleteError, ParseError, parse_response
from hypothesis import given
from hypothesis import strategies as st

from lb.edits import Edits
from lb.environ import check_host
from lb.errors import BadRequest
from lb.forwarded import Forwarding
from lb.proxy.fields import ResponseHead
from lb.proxy.http1 import CHUNKED, UNTIL_CLOSE, ChunkReader, UnsupportedTransferCoding, request_body
from lb.proxyprotocol import Source
from lb.proxyprotocol import parse as parse_proxy
from lb.routing import Destination, Router, decoded, host_name, merged, resolved
from lb.settings import FieldEdits, Route
from tests.properties import damage, shapes
from tests.properties.effort import tried
from tests.properties.meaning import may_go_on
from tests.properties.reference import Incomplete, Malformed, read_request, read_response, values

# Finding the smallest example of a failure takes its time.
pytestmark = pytest.mark.timeout(300)

CHUNKED_HEAD = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
chunked_bodies = st.tuples(shapes.chunk_lists, shapes.last_chunks, shapes.trailer_lines, shapes.contents).map(
    lambda parts: (
        bytes(shapes.Message(b"", (), chunks=(*parts[0], parts[1]), trailers=parts[2]))[4:] + parts[3]
    )
)


def unchunked(pieces: list[bytes]) -> tuple[bytes, bytes, bytes] | str:
    """(content, trailers, rest) of a body, "more" when there is more to come, "none" when it is no body."""
    reader = ChunkReader()
    content, fed = b"", 0
    for piece in pieces:
        if reader.done:
            break
        fed += len(piece)
        try:
            content += b"".join(reader.feed(piece))
        except ValueError:
            return "none"
    rest = reader.rest + b"".join(pieces)[fed:]
    return (content, reader.trailers, rest) if reader.done else "more"


@tried(500)
@given(chunked_bodies | damage.damaged(chunked_bodies), damage.cuts)
def test_chunks_do_not_depend_on_where_they_are_cut(data: bytes, places: list[int]) -> None:
    found = unchunked([data])
    assert unchunked(damage.cut(data, places)) == found
    assert unchunked([*(data[at : at + 1] for at in range(min(len(data), 300))), data[300:]]) == found
    try:
        sent, end = read_request(CHUNKED_HEAD + data, lax=True)
    except (Malformed, Incomplete):
        assert isinstance(found, str)
    else:
        lines = b"".join(b"%b: %b\r\n" % field for field in may_go_on(sent.trailers))
        assert isinstance(found, tuple)
        assert (found[0], found[2]) == (sent.body, (CHUNKED_HEAD + data)[end:])
        assert re.sub(rb":[ \t]*([^\r]*?)[ \t]*\r\n", rb": \1\r\n", found[1]) == lines


framing_fields = st.lists(
    st.sampled_from([line.partition(b":")[::2] for line in damage.NASTY if b":" in line]), max_size=4
)


@tried(300)
@given(framing_fields, st.integers(0, 1))
def test_the_length_of_a_request_has_one_reading(fields: list[tuple[bytes, bytes]], minor: int) -> None:
    fields = [(name, value.strip(b" \t")) for name, value in fields]
    try:
        found = request_body(fields, minor)
    except (ValueError, UnsupportedTransferCoding):
        return
    lengths, codings = values(tuple(fields), b"content-length"), values(tuple(fields), b"transfer-encoding")
    if found == CHUNKED:
        assert ([coding.lower() for coding in codings], lengths, minor) == ([b"chunked"], [], 1)
    else:
        assert not codings
        assert found == int((lengths or [b"0"])[0])
        assert len(lengths) < 2


answers = shapes.responses().map(bytes)


@tried(500)
@given(st.sampled_from(["GET", "HEAD"]), answers | damage.damaged(answers))
def test_a_head_that_was_read_reads_the_same_again(method: str, data: bytes) -> None:
    try:
        parsed = parse_response(data)
        end = parsed["consumed"]
        head = ResponseHead(
            method,
            parsed["status"],
            parsed["message"],
            parsed["minor_version"],
            parsed["headers"],
            data[:end],
        )
    except (IncompleteError, ParseError, ValueError):
        return
    if head.length == CHUNKED:
        assert not head.measured
        return
    if parsed["status"] < 200:
        return
    again = b"HTTP/1.1 %d X\r\n%b\r\n" % (parsed["status"], head.lines)
    parsed = parse_response(again)
    second = ResponseHead(method, parsed["status"], parsed["message"], 1, parsed["headers"], again)
    assert (second.lines, second.length, second.measured) == (head.lines, head.length, head.measured)
    body = b"" if head.length == UNTIL_CLOSE else bytes(head.length) if head.length < 1 << 20 else None
    if body is not None:
        sent, end = read_response(again + body, method=method.encode(), ended=True)
        assert (sent.body, end) == (body, len(again) + len(body))
        assert sent.until_close == (head.length == UNTIL_CLOSE)


@tried(300)
@given(shapes.hosts | damage.damaged(shapes.hosts))
def test_a_host_is_one_or_is_none(value: bytes) -> None:
    verdicts = []
    for _ in range(2):  # what is remembered says the same
        try:
            check_host(value)
            verdicts.append(True)
        except BadRequest:
            verdicts.append(False)
    assert verdicts[0] == verdicts[1]
    if verdicts[0]:
        assert value
        assert not re.search(rb"[\x00-\x20\x7f-\xff,/?#@\\\"<>{}|^`]", value)
        assert host_name(value.decode()) == host_name(host_name(value.decode()))


_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
proxy_headers = st.one_of(
    st.sampled_from(
        [
            b"PROXY TCP4 192.0.2.1 10.0.0.1 4711 80\r\n",
            b"PROXY TCP6 2001:db8::1 ::1 4711 80\r\n",
            b"PROXY UNKNOWN\r\n",
            b"PROXY UNKNOWN what ever\r\n",
            _SIGNATURE + b"\x20\x00\x00\x00",
            _SIGNATURE + b"\x21\x11\x00\x0c" + bytes(range(12)),
            _SIGNATURE + b"\x21\x21\x00\x24" + bytes(range(36)),
            _SIGNATURE + b"\x21\x12\x00\x10" + bytes(range(16)),
        ]
    ),
    st.builds(
        lambda command, family, body: (
            _SIGNATURE + bytes((command, family)) + len(body).to_bytes(2, "big") + body
        ),
        st.integers(0, 255),
        st.integers(0, 255),
        st.binary(max_size=40),
    ),
)


def announced(data: bytes) -> tuple[Source | None, int] | str | None:
    try:
        return parse_proxy(data)
    except ValueError:
        return "none"


@tried(500)
@given(proxy_headers | damage.damaged(proxy_headers), st.binary(max_size=20))
def test_a_proxy_header_is_known_when_it_is_whole_and_not_before(header: bytes, rest: bytes) -> None:
    found = announced(header + rest)
    if isinstance(found, tuple):
        source, size = found
        assert announced((header + rest)[:size]) == found
        for at in range(size):
            assert announced((header + rest)[:at]) is None
        if source is not None and source[0]:
            ipaddress.ip_address(source[0])
            assert 0 <= int(source[1]) < 65536
    elif found is None:
        assert all(announced((header + rest)[:at]) is None for at in range(len(header + rest)))


peers = st.sampled_from(
    ["192.0.2.1", "10.0.0.1", "2001:db8::1", "::ffff:10.0.0.1", "fe80::1%eth0", "", "10.1.1.1"]
)
said = st.lists(
    st.tuples(
        st.sampled_from(
            [
                b"X-Forwarded-For",
                b"x-forwarded-for",
                b"X-Forwarded-Proto",
                b"X-Forwarded-Host",
                b"X-Forwarded-Port",
                b"X-Request-Id",
                b"Forwarded",
            ]
        ),
        st.one_of(
            shapes.field_values,
            st.sampled_from(
                [b"10.0.0.2", b"6.6.6.6, 10.0.0.2", b"https", b"http", b"443", b"::1", b"unknown"]
            ),
        ),
    ),
    max_size=4,
)


@tried(300)
@given(peers, shapes.hosts, said, st.booleans())
def test_what_is_said_of_a_client_is_fields_and_true(
    peer: str, host: bytes, fields: list[tuple[bytes, bytes]], forwarded: bool
) -> None:
    forwarding = Forwarding(["10.0.0.0/8"], forwarded)
    name = host.decode("latin-1")
    written = forwarding.lines(peer, "http", "80", name, fields, "1.1")
    request, _ = read_request(b"GET / HTTP/1.1\r\nHost: a\r\n" + written + b"\r\n")
    stations = b", ".join(values(request.fields, b"x-forwarded-for"))
    assert stations.endswith(peer.encode())
    for key in (b"x-forwarded-proto", b"x-forwarded-port", b"x-forwarded-host", b"via"):
        assert len(values(request.fields, key)) == 1
    assert len(values(request.fields, b"forwarded")) == forwarded
    if not forwarding.trusts(peer):
        assert forwarding.lines(peer, "http", "80", name, [], "1.1") == written
        assert forwarding.client(peer, fields) == peer
        assert forwarding.request_id(peer, fields) == ""
    client = forwarding.client(peer, fields)
    if client != peer:
        ipaddress.ip_address(client)
    assert forwarding.scheme(peer, "http", fields) in ("http", "https")
    assert re.fullmatch(r"[\x21-\x7e]*", forwarding.request_id(peer, fields))


@tried(200)
@given(st.lists(shapes.lines, max_size=6), shapes.paths)
def test_edits_leave_fields_and_nothing_twice(lines: list[shapes.Line], path: bytes) -> None:
    settings = FieldEdits(set={"X-A": "{path}", "New": "{nothing}{client_ip}"}, remove=("Cookie", "yz"))
    edits, variables = Edits(settings), {"path": path.decode("latin-1"), "client_ip": "::1"}
    before = b"".join(name + b":" + gap + value + end + b"\r\n" for name, gap, value, end in lines)
    after = edits.apply(before, variables)
    assert edits.apply(after, variables) == after
    read = read_request(b"GET / HTTP/1.1\r\nHost: a\r\n" + after + b"\r\n")[0].fields[1:]
    assert values(read, b"x-a") == [path]
    assert values(read, b"new") == [b"::1"]
    others = [
        (name, value) for name, _, value, _ in lines if name.lower() not in (b"x-a", b"new", b"cookie", b"yz")
    ]
    assert [field for field in read if field[0].lower() not in (b"x-a", b"new")] == others


text_paths = shapes.paths.map(lambda path: path.decode("latin-1"))
ROUTES = [
    Route(pool="any"),
    Route(pool="a", path="/a", strip_prefix=True),
    Route(pool="ab", path="/a/b", strip_prefix=True),
    Route(pool="host", host="t.example", path="/~/"),
]
ROUTER = Router(ROUTES, "any")
segments = st.sampled_from(["a", "b", "%61", "..", ".", "%2e", "", "a%2Fb", "%2E%2e", "c"])
routed = st.lists(segments, max_size=5).map(lambda found: "/" + "/".join(found))


@tried(400)
@given(text_paths | routed, st.sampled_from(["t.example", "x", ""]))
def test_a_path_leads_where_its_shortest_spelling_does(target: str, host: str) -> None:
    path = decoded(target)
    plain = resolved(merged(path))
    assert resolved(merged(plain)) == plain
    assert plain.startswith("/")
    assert not {".", ".."} & set(plain.split("/"))
    same = ROUTER.match(host, plain)
    try:
        found = ROUTER.match(host, path)
    except BadRequest:  # with its empty segments it would lead elsewhere
        assert "//" in path
        assert ROUTER.match(host, resolved(path)) is not same
        return
    assert found is same
    assert isinstance(found, Destination)
    if found.prefix:
        assert plain == found.prefix or plain.startswith(found.prefix + "/")
        with contextlib.suppress(BadRequest):
            left = found.strip(target + "?q=/../a")
            assert left.startswith("/")
            assert left.endswith("?q=/../a")
            bare = decoded(left.partition("?")[0])
            assert found.prefix + (bare if path != found.prefix else "") == path
            assert resolved(merged(found.prefix + bare)).rstrip("/") == plain.rstrip("/")
