"""Whatever a client sends: each message at the backend is one that it sent, with the one meaning it has."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.properties import damage, shapes
from tests.properties.effort import tried
from tests.properties.meaning import asked, may_go_on, seen
from tests.properties.reference import (
    Malformed,
    MalformedBody,
    Request,
    Response,
    read_request,
    read_requests,
    read_responses,
    values,
)
from tests.properties.rig import Bench, Rig, marker

# Finding the smallest example of a failure takes its time.
pytestmark = pytest.mark.timeout(300)


def check_same(got: Request, sent: Request) -> None:
    """A backend got what a client sent."""
    assert seen(got, host=bool(values(asked(sent)[2], b"host"))) == asked(sent)
    assert got.trailers == may_go_on(sent.trailers)


@tried(250)
@given(shapes.sequences(), damage.cuts, st.booleans())
def test_a_well_formed_request_arrives_as_the_same_one(
    rig: Rig, sequence: list[shapes.Message], places: list[int], slow: bool
) -> None:
    """Pipelined ones in their order, each answered with its own answer."""
    check_well_formed(rig, sequence, places, slow)
    assert [entry["status"] for entry in rig.entries()] == [200] * len(sequence)


def check_well_formed(
    rig: Bench, sequence: list[shapes.Message], places: list[int], slow: bool = False
) -> None:
    rig.begin()
    written = [bytes(message) for message in sequence]
    sent = [read_request(data)[0] for data in written]
    # Slow ones come each by itself, in parts, after the answer to the one before.
    wholes = written if slow else [b"".join(written)]
    pieces = [piece for whole in wholes for piece in damage.cut(whole, places)]
    got, reset = rig.exchange(pieces, slow=slow)
    rig.check()
    answers = read_responses(got, [request.method for request in sent])
    assert not reset
    assert len(rig.backend.requests) == len(sent)
    for request, original in zip(rig.backend.requests, sent, strict=True):
        check_same(request, original)
    assert [answer.status for answer in answers] == [200] * len(sent)
    markers = [marker(request) for request in rig.backend.requests]
    assert [values(answer.fields, b"x-marker") for answer in answers] == [[found] for found in markers]
    assert [answer.body for answer in answers] == [
        b"" if request.method == b"HEAD" else found for request, found in zip(sent, markers, strict=True)
    ]


def bytes_of_sequence(sequence: list[shapes.Message]) -> bytes:
    return b"".join(map(bytes, sequence))


@tried(400)
@given(damage.damaged(shapes.sequences().map(bytes_of_sequence)), damage.cuts)
def test_damage_never_becomes_another_request(rig: Rig, data: bytes, places: list[int]) -> None:
    answers = check_damaged(rig, data, places)
    check_log(rig, answers)


@tried(150)
@given(st.binary(max_size=200) | st.lists(st.sampled_from(damage.BITS + damage.NASTY)).map(b"".join))
def test_noise_is_refused(rig: Rig, data: bytes) -> None:
    check_log(rig, check_damaged(rig, data, []))


HOST = b"Host: t.example\r\n"
BEHIND = b"GET /behind HTTP/1.1\r\n" + HOST + b"\r\n"
KINDS = {
    "none": b"GET /a HTTP/1.1\r\nX-A: b\r\n" + HOST + b"\r\n",
    "length": b"POST /a HTTP/1.1\r\n" + HOST + b"Content-Length: 5\r\n\r\n0\r\n\r\n",
    "chunked": b"POST /a HTTP/1.1\r\n"
    + HOST
    + b"Transfer-Encoding: chunked\r\n\r\n1;a\r\nx\r\n0\r\nT: u\r\n\r\n",
    "HTTP/1.0": b"POST /a HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\n\r\n",
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_nasty_line_at_every_place(rig: Rig, kind: str) -> None:
    for data in damage.with_lines(KINDS[kind]):
        check_log(rig, check_damaged(rig, data + BEHIND, []))


@pytest.mark.parametrize("kind", ["none", "chunked"])
def test_every_nasty_byte_at_every_place(rig: Rig, kind: str) -> None:
    for data in damage.with_bytes(KINDS[kind]):
        check_log(rig, check_damaged(rig, data + BEHIND, []))


def check_damaged(rig: Bench, data: bytes, places: list[int]) -> list[Response]:
    rig.begin()
    understood = read_requests(data)
    sent, end = understood.requests, understood.fault
    # Who is refused has the end of the connection at once: nobody has to end the other half first.
    head_is_bad = isinstance(end, Malformed) and not isinstance(end, MalformedBody)
    got, _ = rig.exchange(damage.cut(data, places), end=not head_is_bad)
    rig.check()
    arrived = rig.backend.requests
    assert len(arrived) <= len(sent), (arrived, sent)
    for request, original in zip(arrived, sent, strict=False):
        check_same(request, original)
    answers = read_responses(got, understood.methods)
    served, refused = answers[: len(arrived)], answers[len(arrived) :]
    assert [answer.status for answer in served] == [200] * len(arrived)
    assert [values(answer.fields, b"x-marker") for answer in served] == [
        [marker(request)] for request in arrived
    ]
    assert len(refused) <= 1
    for answer in refused:
        assert 400 <= answer.status < 600, answer
        assert answer.status != 500
        if len(arrived) < len(sent) or end is not None:
            assert values(answer.fields, b"connection") == [b"close"], answer
    if isinstance(end, Malformed):
        assert refused
    assert len(rig.backend.parts) <= 1
    return answers


def check_log(rig: Rig, answers: list[Response]) -> None:
    """What is logged is what was answered, an object a line, whatever a client has put into it."""
    entries = rig.entries()
    assert (
        len(answers) <= len(entries) <= len(answers) + 1
    )  # one that was never answered: its client has gone
    assert [entry["status"] for entry in entries[: len(answers)]] == [answer.status for answer in answers]
