"""Answers that break, and what a backend says beyond its answer."""

from __future__ import annotations

from tests.http.case import Case, Say, Then, Topic, case
from tests.http.checks import (
    answered,
    bad_gateway,
    either,
    heard,
    never_complete,
    next_unharmed,
    passed,
    reads,
    silent_about,
)
from tests.http.corpus.parts import CHUNKED, HELLO, LENIENT, answer, req
from tests.support.backends import ok

SPLIT = answer("Content-Length: 4", "X-Evil: 1", body=b"evil")
"""What a backend says after its answer."""


def broken(
    name: str,
    rule: str,
    *steps: bytes | Then,
    then: str = "close",
    first: str = "GET / HTTP/1.1",
    rfc: str = "9112 8",
    why: str = "",
) -> Case:
    """An answer that breaks: the client never takes what it has for the whole."""
    return case(f"broken-{name}", rule, rfc, req(first), never_complete(), reply=Say(steps, then), why=why)


BROKEN = Topic(
    "Answers that break",
    "What has begun cannot become a 502 any more: the client's connection is cut, so that a part is never taken for "
    "the whole. What a backend says beyond its answer is dropped with its connection.",
    (
        broken(
            "length-short", "Fewer octets than the length says", answer("Content-Length: 100", body=b"hello")
        ),
        broken(
            "length-reset",
            "A reset instead",
            answer("Content-Length: 100", body=b"hello"),
            Then.PAUSE,
            then="reset",
        ),
        broken("chunk-short", "The connection ends within a chunk", answer(CHUNKED, body=b"ff\r\nhello")),
        broken("chunk-no-last", "It ends without a last chunk", answer(CHUNKED, body=b"5\r\nhello\r\n")),
        broken(
            "chunk-last-cut", "It ends within the last chunk", answer(CHUNKED, body=b"5\r\nhello\r\n0\r\n")
        ),
        broken(
            "chunk-short-1.0",
            "The same for HTTP/1.0: only a reset tells",
            answer(CHUNKED, body=b"ff\r\nhello"),
            Then.PAUSE,
            first="GET / HTTP/1.0",
            why="The content ends with the connection, so a clean end says that all is here. HAProxy has sent chunks, which HTTP/1.0 does not know.",
        ),
        broken(
            "length-short-1.0",
            "And with a length",
            answer("Content-Length: 100", body=b"hello"),
            first="GET / HTTP/1.0",
        ),
        broken(
            "until-close-reset",
            "A reset where the end should be",
            answer(body=b"hello"),
            Then.PAUSE,
            then="reset",
            why="HAProxy and Envoy end the message for the backend: the client takes a part for the whole.",
        ),
        broken(
            "until-close-reset-1.0",
            "The same for HTTP/1.0",
            answer(body=b"hello"),
            Then.PAUSE,
            then="reset",
            first="GET / HTTP/1.0",
            why="As in `broken-chunk-short-1.0`.",
        ),
        *(
            broken(
                f"chunk-{name}",
                rule,
                answer(CHUNKED, body=b"5\r\nhello\r\n"),
                Then.PAUSE,
                body + b"\r\n0\r\n\r\n",
                rfc="9112 7.1",
                why=why,
            )
            for name, rule, body, why in (
                ("size-word", "A size that is no number", b"zz\r\nhello", ""),
                ("size-minus", "A negative size", b"-5\r\nhello", ""),
                ("size-0x", "A size with a prefix", b"0x5\r\nhello", ""),
                ("size-empty", "No size", b"\r\nhello", ""),
                ("size-overflow", "A size beyond 64 bits", b"10000000000000005\r\nhello", ""),
                ("too-much", "More data than the size says", b"3\r\nhello", ""),
                ("size-lf", "A bare LF behind a size", b"5\nhello", LENIENT),
                ("end-lf", "A bare LF behind the data", b"5\r\nhello\n0\r\n", LENIENT),
            )
        ),
        case(
            "broken-head",
            "The connection ends within a head",
            "9112 8",
            req(),
            bad_gateway(),
            reply=Say((b"HTTP/1.1 200 OK\r\nContent-Le",), "close"),
        ),
        case(
            "broken-nothing",
            "It ends without an answer",
            "9110 15.6.3",
            req("POST / HTTP/1.1", "Content-Length: 0"),
            bad_gateway(),
            heard(1),
            ours=(bad_gateway(502), heard(1)),
            reply=Say((), "close"),
        ),
        case(
            "broken-reset",
            "It is reset without an answer: a POST is not sent twice",
            "9110 9.2.2",
            req("POST / HTTP/1.1", "Content-Length: 0"),
            bad_gateway(),
            heard(1),
            ours=(bad_gateway(502), heard(1)),
            reply=Say((), "reset"),
        ),
        case(
            "extra-answer",
            "A second answer to one request is nobody's",
            "9112 9.2",
            req(),
            answered(200),
            silent_about(b"evil"),
            next_unharmed(),
            reply=ok() + SPLIT,
        ),
        case(
            "extra-answer-later",
            "The same when it comes later",
            "9112 9.2",
            req(),
            answered(200),
            silent_about(b"evil"),
            next_unharmed(),
            reply=Say((ok(), Then.PAUSE, SPLIT)),
            why="Whoever keeps the connection in that moment gives the answer to the next one who asks.",
        ),
        case(
            "extra-bytes",
            "More octets than the length says",
            "9112 6.3",
            req(),
            answered(200),
            reads(b"ok"),
            silent_about(b"extra"),
            next_unharmed(),
            reply=ok() + b"extra",
        ),
        case(
            "extra-chunk",
            "Something behind the last chunk",
            "9112 7.1",
            req(),
            answered(200),
            reads(b"hello"),
            silent_about(b"evil"),
            next_unharmed(),
            reply=answer(CHUNKED, body=HELLO) + SPLIT,
        ),
        case(
            "extra-head",
            "A body in the answer to HEAD is not the next answer",
            "9112 6.3",
            req("HEAD / HTTP/1.1"),
            answered(200),
            silent_about(b"evil"),
            next_unharmed(),
            reply=Say((answer(f"Content-Length: {len(SPLIT)}"), Then.PAUSE, SPLIT)),
            why="As in `extra-answer-later`.",
        ),
        case(
            "extra-304",
            "Nor is one in a 304",
            "9112 6.3",
            req(),
            answered(304),
            silent_about(b"evil"),
            next_unharmed(),
            reply=answer(f"Content-Length: {len(SPLIT)}", status="304 Not Modified") + SPLIT,
        ),
        case(
            "extra-before",
            "What a backend says before it was asked wrongs nobody but who asked it",
            "9112 9.2",
            req(),
            heard(1),
            next_unharmed(),
            reply=Say((ok(),), unasked=(SPLIT,)),
            why="On a fresh connection it cannot be told from an answer that came quickly; what follows is one too many.",
        ),
        case(
            "split-crlf",
            "CR and LF in a value end it: the rest is a field or an error",
            "9110 5.5",
            req(),
            either(answered(200), bad_gateway()),
            next_unharmed(),
            reply=ok(b"ok", "X-A: b\r\nX-B: c"),
        ),
        case(
            "large",
            "A megabyte arrives whole",
            "9112 6.3",
            req(),
            passed(),
            reads(b"x" * 1_000_000),
            reply=ok(b"x" * 1_000_000),
        ),
    ),
    why="Some end the message for the backend, and the client takes a part for the whole.",
)


TOPICS = (BROKEN,)
