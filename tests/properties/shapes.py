"""What messages look like: well-formed ones of every shape."""

from __future__ import annotations

from dataclasses import dataclass, replace

from hypothesis import strategies as st

Line = tuple[bytes, bytes, bytes, bytes]
"""A field as written: name, white space, value, white space."""


@dataclass(frozen=True)
class Chunk:
    """One chunk as written."""

    data: bytes
    extension: bytes = b""
    zeros: int = 0
    upper: bool = False

    def __bytes__(self) -> bytes:
        size = b"%X" % len(self.data) if self.upper else b"%x" % len(self.data)
        end = b"\r\n" if self.data else b""
        return b"0" * self.zeros + size + self.extension + b"\r\n" + self.data + end


@dataclass(frozen=True)
class Message:
    """A message as it is to be written. `chunks` None: its body has a length, or there is none."""

    first: bytes
    lines: tuple[Line, ...]
    body: bytes = b""
    chunks: tuple[Chunk, ...] | None = None
    trailers: tuple[Line, ...] = ()

    @property
    def content(self) -> bytes:
        """What the body says."""
        return self.body if self.chunks is None else b"".join(chunk.data for chunk in self.chunks)

    @property
    def head(self) -> bytes:
        return self.first + b"\r\n" + _written(self.lines) + b"\r\n"

    def __bytes__(self) -> bytes:
        if self.chunks is None:
            return self.head + self.body
        return self.head + b"".join(map(bytes, self.chunks)) + _written(self.trailers) + b"\r\n"


def _written(lines: tuple[Line, ...]) -> bytes:
    return b"".join(name + b":" + before + value + after + b"\r\n" for name, before, value, after in lines)


def _joined(*parts: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return st.tuples(*parts).map(b"".join)


def _bytes_of(alphabet: bytes, least: int = 0, most: int = 8) -> st.SearchStrategy[bytes]:
    letters = st.sampled_from([bytes((byte,)) for byte in alphabet])
    return st.lists(letters, min_size=least, max_size=most).map(b"".join)


TOKENS = b"!#$%&'*+-.^_`|~09AZaz"
VISIBLE = b'!"#(),/:;<=>?@[\\]{}~09AZaz\x80\x85\xa0\xff'

tokens = _bytes_of(TOKENS, 1)
white_space = st.sampled_from([b"", b" ", b" ", b" ", b"\t", b" \t ", b"   "])
field_values = st.one_of(
    st.just(b""),
    _bytes_of(VISIBLE, 1),
    _joined(
        _bytes_of(VISIBLE, 1, 3), st.sampled_from([b" ", b"\t", b", ", b" , ,\t"]), _bytes_of(VISIBLE, 1, 3)
    ),
)
field_names = st.one_of(
    st.sampled_from(
        [
            b"Accept",
            b"accept",
            b"Cookie",
            b"X-Hop",
            b"x-a",
            b"X-A",
            b"X_A",
            b"Content-Type",
            b"Content_Length",
            b"Transfer_Encoding",
            b"X-Forwarded-For",
            b"Forwarded",
            b"X-Request-Id",
            b"Via",
            b"Keep-Alive",
            b"TE",
            b"Proxy-Connection",
            b"Trailer",
            b"Set-Cookie",
            b"Authorization",
            b"Date",
            b"Server",
            b"Range",
        ]
    ),
    # Names that mean something to a proxy are drawn elsewhere, with values that make sense.
    tokens.map(lambda name: b"Y" + name),
)
lines = st.tuples(field_names, white_space, field_values, white_space)
connections = st.sampled_from(
    [
        b"keep-alive",
        b"Keep-Alive",
        b"x-hop",
        b"X-Hop, keep-alive",
        b"host",
        b"content-length",
        b"transfer-encoding",
        b",",
        b"x-a ,\tx-hop,",
        b"TE",
        b"close, x-a",
        b"close",
        b"upgrade",
    ]
)
extensions = st.sampled_from([b"", b"", b";a", b";a=b", b' ; a = "b;c"', b";a=1;b=2", b"\t;q"])
contents = st.one_of(
    st.binary(max_size=40),
    st.sampled_from([b"0\r\n\r\n", b"GET /inner HTTP/1.1\r\nHost: t.example\r\n\r\n", b"\r\n", b"x" * 3000]),
)
chunk_lists = st.lists(
    st.builds(Chunk, contents.filter(bool), extensions, st.integers(0, 3), st.booleans()), max_size=4
)
last_chunks = st.builds(Chunk, st.just(b""), extensions, st.integers(0, 3))
trailer_lines = st.lists(lines, max_size=2).map(tuple)

_pchars = _bytes_of(b"-._~!$&'()*+,;=:@az09AZ\"<>[]^`{|}\\\x80\xff", 0, 6)
segments = st.one_of(
    _pchars, st.sampled_from([b".", b"..", b"%2F", b"%2e%2E", b"%00", b"%", b"%zz", b"a%20b", b"%0d%0a"])
)
paths = st.lists(segments, max_size=4).map(lambda parts: b"/" + b"/".join(parts))
queries = st.one_of(
    st.just(b""), _joined(st.just(b"?"), _pchars, st.sampled_from([b"", b"?", b"/../", b"&a=b?c"]))
)
hosts = st.sampled_from(
    [b"t.example", b"T.Example:80", b"t.example:", b"[::1]:8080", b"127.0.0.1", b"a_b", b"x%41.example"]
)
methods = st.one_of(
    st.sampled_from(
        [b"GET", b"GET", b"POST", b"PUT", b"DELETE", b"HEAD", b"OPTIONS", b"PATCH", b"get", b"TRACE"]
    ),
    tokens,
).filter(lambda method: method != b"CONNECT")


def _once(line: Line) -> object:
    """What makes two lines one too many: it is one thing that a request has (RFC 9110, section 8.3)."""
    return b"content-type" if line[0].lower() == b"content-type" else object()


@st.composite
def requests(draw: st.DrawFn, *, last: bool = True) -> Message:
    """A well-formed request; unless it is the `last` one, the connection stays open after it."""
    method = draw(methods)
    target = draw(paths) + draw(queries)
    form = draw(st.sampled_from(["origin"] * 6 + ["absolute", "authority"]))
    if form != "origin":
        scheme = draw(st.sampled_from([b"http", b"HTTP", b"https"]))
        rest = target if form == "absolute" else draw(queries)
        target = scheme + b"://" + draw(hosts) + rest
    elif method == b"OPTIONS" and draw(st.booleans()):
        target = b"*"
    minor = draw(st.sampled_from([1, 1, 1, 1, 0, 2, 9] if last else [1, 1, 1, 2]))
    found = draw(st.lists(lines, max_size=5, unique_by=_once))
    if minor or draw(st.booleans()):
        found.append(
            (draw(st.sampled_from([b"Host", b"host", b"HOST"])), b" ", draw(hosts), draw(white_space))
        )
    for option in draw(st.lists(connections, max_size=2)):
        if last or b"close" not in option:
            found.append((b"Connection", b" ", option, b""))
    if draw(st.integers(0, 9)) == 0:
        found.append((b"Upgrade", b" ", draw(st.sampled_from([b"websocket", b"h2c", b"a/1, b"])), b""))
    message = Message(b"%b %b HTTP/1.%d" % (method, target, minor), ())
    message, framing = _with_body(draw, message, minor, may_lack=True)
    if framing and draw(st.integers(0, 9)) == 0:
        found.append((b"Expect", b" ", b"100-continue", b""))
    return replace(message, lines=tuple(draw(st.permutations(found + framing))))


def _with_body(draw: st.DrawFn, message: Message, minor: int, may_lack: bool) -> tuple[Message, list[Line]]:
    kinds = ["length", "chunked"] if minor else ["length"]
    kind = draw(st.sampled_from(["none", *kinds] if may_lack else kinds))
    if kind == "none":
        return message, []
    if kind == "length":
        body = draw(contents)
        size = b"0" * draw(st.integers(0, 2)) + b"%d" % len(body)
        name = draw(st.sampled_from([b"Content-Length", b"content-length", b"CONTENT-LENGTH"]))
        return replace(message, body=body), [(name, draw(white_space), size, draw(white_space))]
    chunks = (*draw(chunk_lists), draw(last_chunks))
    coding = draw(st.sampled_from([b"chunked", b"Chunked"]))
    line = (b"Transfer-Encoding", draw(white_space), coding, draw(white_space))
    return replace(message, chunks=chunks, trailers=draw(trailer_lines)), [line]


@st.composite
def sequences(draw: st.DrawFn) -> list[Message]:
    """Pipelined requests."""
    return [*draw(st.lists(requests(last=False), max_size=2)), draw(requests())]


reasons = st.sampled_from([b"OK", b"", b"Some Words", b"caf\xe9", b"a\tb"])


@st.composite
def responses(draw: st.DrawFn) -> Message:
    """A well-formed final answer to whatever method, all of its framing kinds among them."""
    status = draw(st.sampled_from([200, 200, 200, 204, 304, 206, 404, 500, 599, 999]))
    minor = draw(st.sampled_from([1, 1, 1, 0]))
    found = draw(st.lists(lines, max_size=4))
    for option in draw(st.lists(connections.filter(lambda option: option != b"upgrade"), max_size=2)):
        found.append((b"Connection", b" ", option, b""))
    message = Message(b"HTTP/1.%d %d %b" % (minor, status, draw(reasons)), ())
    framing: list[Line] = []
    if status not in (204, 304):
        message, framing = _with_body(draw, message, minor, may_lack=False)
        if draw(st.integers(0, 5)) == 0:  # till the end of the connection
            message, framing = replace(message, body=message.content, chunks=None, trailers=()), []
    elif status == 304 and draw(st.booleans()):
        framing = [(b"Content-Length", b" ", b"1234", b"")]
    return replace(message, lines=tuple(draw(st.permutations(found + framing))))


interims = st.lists(
    st.sampled_from(
        [
            b"HTTP/1.1 100 Continue\r\n\r\n",
            b"HTTP/1.1 103 Early Hints\r\nLink: </a>; rel=preload\r\nX-A: b\r\n\r\n",
            b"HTTP/1.1 199 \r\nConnection: x-hop\r\nX-Hop: 1\r\n\r\n",
        ]
    ),
    max_size=2,
).map(b"".join)
