"""Framing: exactly one reading of every message, or a ValueError."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb.proxy.http1 import (
    CHUNKED,
    LAST_CHUNK,
    ChunkReader,
    FieldNames,
    UnsupportedTransferCoding,
    chunk,
    content_length,
    request_body,
    tokens,
)

# Chunked, reading.


def read(data: bytes, *cuts: int) -> tuple[bytes, bool, bytes]:
    """Content, whether it is whole, and what followed, of `data` fed in pieces."""
    reader = ChunkReader()
    out = b""
    edges = [0, *sorted(cuts), len(data)]
    for start, end in zip(edges, edges[1:], strict=False):
        if reader.done:
            return out, True, reader.rest + data[start:]
        out += b"".join(reader.feed(data[start:end]))
    return out, reader.done, reader.rest


GOOD = {
    b"0\r\n\r\n": b"",
    b"5\r\nhello\r\n0\r\n\r\n": b"hello",
    b"5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n": b"hello!",
    b"A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n": b"0123456789" * 2,
    b"005\r\nhello\r\n000\r\n\r\n": b"hello",
    b"0" * 20 + b"5\r\nhello\r\n" + b"0" * 20 + b"\r\n\r\n": b"hello",
    b"5;name=value;x\r\nhello\r\n0;y\r\n\r\n": b"hello",
    b"5 \t;x\r\nhello\r\n0\r\n\r\n": b"hello",
    b"2\r\n\r\n\r\n0\r\n\r\n": b"\r\n",
    b"0\r\nDigest: x\r\nB: y z\r\n\r\n": b"",
}


@pytest.mark.parametrize("data", GOOD)
def test_reads_chunks(data: bytes) -> None:
    assert read(data) == (GOOD[data], True, b"")


@pytest.mark.parametrize("data", GOOD)
def test_reads_them_however_they_arrive(data: bytes) -> None:
    for cut in range(len(data)):
        assert read(data, cut) == (GOOD[data], True, b"")
    assert read(data, *range(len(data))) == (GOOD[data], True, b"")


@pytest.mark.parametrize("data", GOOD)
def test_gives_back_what_follows(data: bytes) -> None:
    rest = b"GET / HTTP/1.1\r\n"
    for cut in range(len(data) + len(rest)):
        assert read(data + rest, cut) == (GOOD[data], True, rest)


@pytest.mark.parametrize("data", GOOD)
def test_is_not_done_before_the_end(data: bytes) -> None:
    for end in range(len(data)):
        assert not read(data[:end])[1]


BAD = [
    b"\r\nhello",  # no size
    b"-5\r\nhello\r\n",
    b"+5\r\nhello\r\n",
    b"0x5\r\nhello\r\n",
    b"5_0\r\nhello\r\n",
    b" 5\r\nhello\r\n",
    b"5 \r\nhello\r\n",  # white space without an extension
    b"g\r\n",
    b"5\nhello\r\n",  # a bare LF
    b"5;x\nhello\r\n",
    b"5;a\rb\r\nhello\r\n",
    b"5;\0\r\nhello\r\n",
    b"5\r\nhello!\r\n",  # more than announced
    b"5\r\nhell\r\n\r\n",  # less
    b"5\r\nhello\n0\r\n\r\n",
    b"1000000000000000\r\n",  # 16 digits
    "٥\r\nhello\r\n".encode(),  # a digit to Python, not to HTTP
    b"0\r\nno colon\r\n\r\n",
    b"0\r\n: no name\r\n\r\n",
    b"0\r\n folded: x\r\n\r\n",
    b"0\r\na: b\nc: d\r\n\r\n",
    b"0\r\na: b\rc\r\n\r\n",
    b"0\r\na: \0\r\n\r\n",
]


@pytest.mark.parametrize("data", BAD)
def test_refuses_what_is_not_chunked(data: bytes) -> None:
    with pytest.raises(ValueError, match="."):
        read(data)
    with pytest.raises(ValueError, match="."):
        read(data, *range(len(data)))


@pytest.mark.parametrize("prefix", [b"5;", b"0\r\nA: "])
def test_refuses_lines_without_end(prefix: bytes) -> None:
    reader = ChunkReader()
    reader.feed(prefix)
    with pytest.raises(ValueError, match="too long"):
        for _ in range(ChunkReader.MAX_LINE):
            reader.feed(b"xx")
    with pytest.raises(ValueError, match="too long"):
        read(prefix + b"x" * 2 * ChunkReader.MAX_LINE + b"\r\n")


@given(st.lists(st.binary(min_size=1, max_size=300)), st.sets(st.integers(0, 400)))
def test_reads_what_it_writes(pieces: list[bytes], cuts: set[int]) -> None:
    data = b"".join(map(chunk, pieces)) + LAST_CHUNK
    cuts = {cut for cut in cuts if cut <= len(data)}
    assert read(data, *cuts) == (b"".join(pieces), True, b"")


@given(st.binary(max_size=60), st.sets(st.integers(0, 60)))
def test_the_cuts_never_matter(data: bytes, cuts: set[int]) -> None:
    """Also for nonsense: the same content, or the same refusal."""

    def outcome(*at: int) -> object:
        try:
            return read(data, *at)
        except ValueError as exc:
            return str(exc)

    assert outcome(*(cut for cut in cuts if cut <= len(data))) == outcome()


# The length of a request's body.


@pytest.mark.parametrize(
    ("fields", "length"),
    [
        ([], 0),
        ([(b"Content-Length", b"0")], 0),
        ([(b"content-length", b"12")], 12),
        ([(b"Content-Length", b"0012")], 12),
        ([(b"Transfer-Encoding", b"chunked")], CHUNKED),
        ([(b"TRANSFER-ENCODING", b"Chunked")], CHUNKED),
    ],
)
def test_request_body(fields: list[tuple[bytes, bytes]], length: int) -> None:
    assert request_body([(b"Host", b"h"), *fields], 1) == length


#: Codings after which nobody knows where the body ends.
ENDLESS = [b"gzip", b"chunked, chunked", b"identity", b"chunked, identity", b"chunked;x", b"xchunked", b","]


@pytest.mark.parametrize(
    "fields",
    [
        [(b"Content-Length", b"5"), (b"Transfer-Encoding", b"chunked")],
        [(b"Transfer-Encoding", b"chunked"), (b"Content-Length", b"5")],
        [(b"Content-Length", b"5"), (b"Content-Length", b"5")],
        [(b"Content-Length", b"5"), (b"content-length", b"6")],
        [(b"Content-Length", b"5, 5")],
        [(b"Content-Length", b"")],
        [(b"Content-Length", b"+5")],
        [(b"Content-Length", b"-5")],
        [(b"Content-Length", b"5 ")],
        [(b"Content-Length", b"0x5")],
        [(b"Content-Length", b"1_0")],
        [(b"Content-Length", b"9" * 19)],
        [(b"Transfer-Encoding", b"")],
        [(b"Transfer-Encoding", b"chunked"), (b"Transfer-Encoding", b"chunked")],
        *([(b"Transfer-Encoding", coding)] for coding in ENDLESS),
    ],
)
def test_request_body_that_can_be_read_in_more_than_one_way(fields: list[tuple[bytes, bytes]]) -> None:
    with pytest.raises(ValueError, match="."):
        request_body(fields, 1)


def test_http_1_0_knows_no_transfer_coding() -> None:
    with pytest.raises(ValueError, match=r"1\.0"):
        request_body([(b"Transfer-Encoding", b"chunked")], 0)


@pytest.mark.parametrize("coding", [b"gzip, chunked", b"x;a=b,\tChunked", b",chunked"])
def test_other_transfer_codings_are_unsupported(coding: bytes) -> None:
    with pytest.raises(UnsupportedTransferCoding):
        request_body([(b"Transfer-Encoding", coding)], 1)


@given(st.integers(0, 10**18 - 1))
def test_content_length(number: int) -> None:
    assert content_length(str(number).encode()) == number


# Names and lists.


@pytest.mark.parametrize(
    ("value", "found"),
    [(b"", []), (b"close", [b"close"]), (b" Close ,\tKeep-Alive,, ", [b"close", b"keep-alive"]), (b",", [])],
)
def test_tokens(value: bytes, found: list[bytes]) -> None:
    assert tokens(value) == found


def test_field_names_are_remembered_within_bounds() -> None:
    names = FieldNames()
    first = names[b"X-First"]
    assert first.environ == "HTTP_X_FIRST"
    assert names[b"X-First"] is first
    for n in range(5000):
        assert names[b"X-%d" % n].lower == b"x-%d" % n
    assert len(names) <= 1024
    assert names[b"Content-Type"].environ == "CONTENT_TYPE"
    assert names[b"content-length"].environ == "CONTENT_LENGTH"
