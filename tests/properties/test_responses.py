"""Whatever a backend sends: the client has the same answer whole, or a 502, or what cannot pass for whole."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.properties import damage, shapes
from tests.properties.effort import tried
from tests.properties.meaning import end_to_end, may_go_on
from tests.properties.reference import Incomplete, Malformed, Request, Response, read_response, values
from tests.properties.rig import Rig, plain

# Finding the smallest example of a failure takes its time.
pytestmark = pytest.mark.timeout(300)

FIRST = b"/first"
SECOND = b"GET /second HTTP/1.1\r\nHost: t.example\r\n\r\n"
LAST = b"GET /last HTTP/1.1\r\nHost: t.example\r\nConnection: close\r\n\r\n"


@dataclass(frozen=True)
class Asked:
    """The request that gets the answer in question."""

    method: bytes = b"GET"
    minor: int = 1
    body: bytes = b""

    def __bytes__(self) -> bytes:
        size = b"Content-Length: %d\r\n" % len(self.body) if self.body else b""
        stay = b"" if self.minor else b"Connection: keep-alive\r\n"
        first = b"%b %b HTTP/1.%d\r\n" % (self.method, FIRST, self.minor)
        return first + b"Host: t.example\r\n" + stay + size + b"\r\n" + self.body


asked = st.builds(
    Asked,
    st.sampled_from([b"GET", b"GET", b"HEAD", b"POST"]),
    st.sampled_from([1, 1, 0]),
    st.sampled_from([b"", b"", b"content"]),
)


@dataclass(frozen=True)
class Outcome:
    """What the client got for it: an answer that is whole, or None; and what came after that."""

    answer: Response | None
    rest: bytes


def outcome(rig: Rig, request: Asked, pieces: list[bytes], *, closed: bool, clean: bool = True) -> Outcome:
    """Let the backend answer with these bytes, and be `closed` after them. Checks what comes next, too.

    Unless they are `clean`, the next request may not come on the same connection.
    """

    def answering(request: Request) -> tuple[list[bytes], bool]:
        return (pieces, closed) if request.target == FIRST else plain(request)

    rig.begin(answering)
    # The next request is there before the answer to the first: it goes out with no turn of the loop between.
    got, reset = rig.exchange([bytes(request) + SECOND])
    rig.check()
    came_on = rig.backend.came_on[-2:]
    after, _ = rig.exchange([LAST])
    rig.check()
    found, _ = read_response(after, ended=True)
    assert found.body == b"<GET /last 0>"
    try:
        answer, end = read_response(got, method=request.method, ended=True)
    except Incomplete:
        return Outcome(None, b"")
    if answer.until_close and reset:
        return Outcome(None, b"")
    rest = got[end:]
    assert bool(rest) == answer.persists
    if rest and not clean:
        assert came_on[0] != came_on[1]
    if rest:
        second, end = read_response(rest, ended=True)
        assert second.body == b"<GET /second 0>"
        assert end == len(rest)
    return Outcome(answer, rest)


def same(got: Response, sent: Response, method: bytes) -> None:
    """A client has what a backend sent."""
    assert (got.status, got.body) == (sent.status, sent.body)
    assert got.reason == sent.reason.lstrip(b" ")
    fields = end_to_end(got.fields)
    if not values(sent.fields, b"date"):  # it was given one
        assert fields[-1][0] == b"Date"
        fields = fields[:-1]
    assert fields == end_to_end(sent.fields)
    if not got.until_close and method != b"HEAD" and values(got.fields, b"transfer-encoding"):
        assert got.trailers == may_go_on(sent.trailers)
    assert [answer.status for answer in got.interim] == [
        answer.status for answer in sent.interim if got.minor and answer.status
    ]


@tried(250)
@given(asked, shapes.interims, shapes.responses(), damage.cuts, st.booleans())
def test_a_well_formed_answer_arrives_as_the_same_one(
    rig: Rig, request: Asked, interim: bytes, message: shapes.Message, places: list[int], closed: bool
) -> None:
    written = interim + (message.head if request.method == b"HEAD" else bytes(message))
    try:
        sent, end = read_response(written, method=request.method, ended=closed, lax=True)
    except Incomplete:  # it ends with the connection
        closed = True
        sent, end = read_response(written, method=request.method, ended=True, lax=True)
    assert end == len(written)
    got = outcome(rig, request, damage.cut(written, places), closed=closed)
    assert got.answer is not None
    without = () if not request.minor else sent.interim
    assert len(got.answer.interim) == len(without)
    same(got.answer, Response(**{**sent.__dict__, "interim": without}), request.method)
    assert got.answer.persists or not request.minor


def whole(parts: tuple[bytes, shapes.Message]) -> bytes:
    return parts[0] + bytes(parts[1])


@tried(300)
@given(asked, damage.damaged(st.tuples(shapes.interims, shapes.responses()).map(whole)), damage.cuts)
def test_damage_never_becomes_another_answer(
    rig: Rig, request: Asked, data: bytes, places: list[int]
) -> None:
    check_damaged(rig, request, data, places)


@tried(100)
@given(asked, st.binary(max_size=100) | st.lists(st.sampled_from(damage.BITS + damage.NASTY)).map(b"".join))
def test_noise_is_a_bad_gateway(rig: Rig, request: Asked, data: bytes) -> None:
    check_damaged(rig, request, data, [])


def check_damaged(rig: Rig, request: Asked, data: bytes, places: list[int]) -> None:
    try:
        sent, end = read_response(data, method=request.method, lax=True)
        closed = False
    except (Incomplete, Malformed):
        closed, end = True, len(data)
        try:
            sent = read_response(data, method=request.method, ended=True, lax=True)[0]
        except (Incomplete, Malformed):
            # The balancer must not wait for more of it, and may not take it for whole.
            got = outcome(rig, request, damage.cut(data, places), closed=True, clean=False)
            assert got.answer is None or got.answer.status == 502, got
            return
    # What is too much comes with the last byte of the answer: later it could pass for the next one.
    last = max(end - 1, 0)
    pieces = [*damage.cut(data[:last], places), data[last:]]
    got = outcome(rig, request, pieces, closed=closed, clean=end == len(data))
    assert got.answer is not None
    if got.answer.status != 502:
        same(got.answer, Response(**{**sent.__dict__, "interim": got.answer.interim}), request.method)


KINDS = {
    "length": b"HTTP/1.1 200 OK\r\nX-A: b\r\nContent-Length: 5\r\n\r\nhello",
    "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;a\r\nabc\r\n0\r\nT: u\r\n\r\n",
    "interim": b"HTTP/1.1 103 Early\r\nLink: a\r\n\r\nHTTP/1.1 204 \r\nX-A: b\r\n\r\n",
    "HTTP/1.0": b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\n\r\n",
}
ASKED = [Asked(), Asked(minor=0)]


@pytest.mark.parametrize("request_", ASKED)
@pytest.mark.parametrize("kind", KINDS)
def test_every_nasty_line_at_every_place(rig: Rig, kind: str, request_: Asked) -> None:
    for data in damage.with_lines(KINDS[kind]):
        check_damaged(rig, request_, data, [])


@pytest.mark.parametrize("kind", KINDS)
def test_every_nasty_byte_at_every_place(rig: Rig, kind: str) -> None:
    for data in damage.with_bytes(KINDS[kind]):
        check_damaged(rig, ASKED[0], data, [])


@pytest.mark.parametrize("request_", [*ASKED, Asked(b"HEAD"), Asked(b"POST", body=b"content")])
@pytest.mark.parametrize("kind", KINDS)
def test_every_beginning_of_an_answer(rig: Rig, kind: str, request_: Asked) -> None:
    """None of them passes for the whole; HTTP/1.0 knows by a reset."""
    for end in range(len(KINDS[kind])):
        check_damaged(rig, request_, KINDS[kind][:end], [])


BIG = 200_000


@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
@pytest.mark.parametrize("extra", [b"x", b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"])
def test_what_is_too_much_of_a_long_answer_is_nobodys(rig: Rig, method: bytes, extra: bytes) -> None:
    """It may wait in the kernel when the answer has been read to its last byte."""
    data = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % BIG
    data += b"y" * BIG if method == b"GET" else b""
    got = outcome(rig, Asked(method), [data + extra], closed=False, clean=False)
    assert got.answer is not None
