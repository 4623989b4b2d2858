"""What happens to the bytes of a message on a bad day, or on an attacker's good one."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from hypothesis import strategies as st

Mutation = Callable[[bytes], bytes]

BITS = [
    b"\r",
    b"\n",
    b"\0",
    b"\t",
    b" ",
    b":",
    b",",
    b";",
    b"0",
    b"5",
    b"\r\n",
    b"\n\n",
    b"\r\n\r\n",
    b"\x0b",
    b"\x0c",
    b"\x7f",
    b"\x1b",
    b"\x80",
    b"\x85",
    b"\xa0",
    b"\xff",
    b'"',
    b"_",
    b"-",
    b"+",
    b"0x",
    b"#",
    b"@",
    b"/",
    b"?",
    b"\\",
    b"\r\n ",
    b"\r\n\t",
    b"\n ",
    b"HTTP/1.1",
    b"HTTP/1.1 200 OK\r\n\r\n",
    b"chunked",
    b"close",
    b"9" * 20,
]
NASTY = [
    b"Content-Length: 0",
    b"Content-Length: 5",
    b"Content-Length: +5",
    b"Content-Length: 5, 5",
    b"Content-Length:",
    b"Content-Length : 5",
    b"Content_Length: 5",
    b"Content-Length\t: 5",
    b"Content-Length: 0x5",
    b"Content-Length: 5 5",
    b"Transfer-Encoding: chunked",
    b"Transfer-Encoding: identity",
    b"Transfer-Encoding: xchunked",
    b"Transfer-Encoding : chunked",
    b"Transfer-Encoding:\x0bchunked",
    b"Transfer-Encoding: chunked, chunked",
    b"Transfer-Encoding: gzip, chunked",
    b"Transfer-Encoding:",
    b"Transfer_Encoding: chunked",
    b"Transfer-Encoding: chunked\r",
    b" Transfer-Encoding: chunked",
    b"Transfer-Encoding\0: chunked",
    b"Host: evil.example",
    b"Host: a, b",
    b"Host:",
    b"Host : t.example",
    b" folded",
    b"\tfolded: x",
    b": empty",
    b"no colon",
    b"Connection: close",
    b"Connection: transfer-encoding",
    b"Connection: keep-alive, x-a",
    b"Expect: 100-continue",
    b"Expect: 200-ok",
    b"Upgrade: websocket",
    b"Connection: upgrade",
    b"X: \0",
    b"X: a\rb",
    b"",
    b"0",
    b"GET /smuggled HTTP/1.1\r\nHost: t.example\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n",
    b"X-Forwarded-For: 6.6.6.6",
    b'X-Request-Id: x"}\n{',
    b"Range: bytes=0-",
    b"\xef\xbb\xbfX: y",
]


def _at_byte(do: Callable[[bytes, int, bytes], bytes], piece: bytes, where: int) -> Mutation:
    return lambda data: do(data, where % (len(data) + 1), piece)


def _at_line(do: Callable[[list[bytes], int, bytes], list[bytes]], piece: bytes, where: int) -> Mutation:
    def mutate(data: bytes) -> bytes:
        found = data.split(b"\r\n")
        return b"\r\n".join(do(found, where % len(found), piece))

    return mutate


def _other_case(data: bytes, at: int, _: bytes) -> bytes:
    return data[:at] + data[at : at + 1].swapcase() + data[at + 1 :]


BYTEWISE: dict[str, Callable[[bytes, int, bytes], bytes]] = {
    "insert": lambda data, at, piece: data[:at] + piece + data[at:],
    "replace": lambda data, at, piece: data[:at] + piece + data[at + len(piece) :],
    "delete": lambda data, at, piece: data[:at] + data[at + len(piece) :],
    "truncate": lambda data, at, piece: data[:at],
    "case": _other_case,
    "repeat": lambda data, at, piece: data[: at + 5] + data[at:],
}
LINEWISE: dict[str, Callable[[list[bytes], int, bytes], list[bytes]]] = {
    "insert line": lambda found, at, piece: [*found[:at], piece, *found[at:]],
    "replace line": lambda found, at, piece: [*found[:at], piece, *found[at + 1 :]],
    "delete line": lambda found, at, _: found[:at] + found[at + 1 :],
    "repeat line": lambda found, at, _: found[: at + 1] + found[at:],
    "swap lines": lambda found, at, _: [*found[:at], *found[at : at + 2][::-1], *found[at + 2 :]],
    "end of line": lambda found, at, piece: [*found[:at], found[at] + piece, *found[at + 1 :]],
    "beginning of line": lambda found, at, piece: [*found[:at], piece + found[at], *found[at + 1 :]],
    "bare LF": lambda found, at, _: [*found[:at], b"\n".join(found[at : at + 2]), *found[at + 2 :]],
    "bare CR": lambda found, at, _: [*found[:at], b"\r".join(found[at : at + 2]), *found[at + 2 :]],
}

_places = st.integers(0, 4000)
_bits = st.sampled_from(BITS)
mutations = st.one_of(
    st.builds(_at_byte, st.sampled_from(list(BYTEWISE.values())), _bits, _places),
    st.builds(_at_line, st.sampled_from(list(LINEWISE.values())), st.sampled_from(NASTY), st.integers(0, 30)),
    st.builds(_at_line, st.sampled_from(list(LINEWISE.values())), _bits, st.integers(0, 30)),
)


@st.composite
def damaged(draw: st.DrawFn, whole: st.SearchStrategy[bytes], most: int = 3) -> bytes:
    """The same bytes after one mutation or several."""
    data = draw(whole)
    for mutate in draw(st.lists(mutations, min_size=1, max_size=most)):
        data = mutate(data)
    return data


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """`data` in pieces, none of them empty."""
    ends = sorted({place % (len(data) + 1) for place in places} | {0, len(data)})
    return [data[start:end] for start, end in zip(ends, ends[1:], strict=False)]


cuts = st.lists(st.integers(0, 5000), max_size=4)


CONTROLS = [b"\r", b"\n", b"\0", b" ", b":", b"\r\n", b"0", b""]


def with_lines(data: bytes) -> Iterator[bytes]:
    """`data` with each of the nasty lines before each of its own, and in the place of each."""
    found = data.split(b"\r\n")
    for at in range(len(found)):
        for line in NASTY:
            yield b"\r\n".join([*found[:at], line, *found[at:]])
        for line in found:
            yield b"\r\n".join([*found[:at], line, *found[at + 1 :]])


def with_bytes(data: bytes) -> Iterator[bytes]:
    """`data` with each of the worst bytes, or nothing, in the place of each of its own."""
    for at in range(len(data)):
        for piece in CONTROLS:
            yield data[:at] + piece + data[at + 1 :]
