"""What a case is: the bytes of a client, the bytes of a backend, and what must hold at both ends.

A case says what it sends in steps, and what it waits for between them by condition, never by time. What
happened is an `Outcome`; a `Check` is a predicate over it, with the words that the documentation has for it.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.support.backends import Request, ok
from tests.support.clients import Answer


class Then(enum.Enum):
    """What happens between two pieces of bytes, at either end."""

    #: Wait until the other side has read what was sent so far.
    PAUSE = "pause"
    #: End the sending half.
    END = "end"
    #: A client's: wait until a backend has heard one more head.
    HEARD = "heard"
    #: A client's: wait for a head, interim or final.
    HEAD = "head"


Step = bytes | Then


@dataclass(frozen=True)
class Heard(Request):
    """A request as a backend heard it. `whole`: its body came to its end, as its head announced it."""

    whole: bool = False

    @property
    def target(self) -> str:
        """What was asked for; nothing, when it was no request at all."""
        words = self.head.split(b" ", 2)
        return words[1].decode("latin-1") if len(words) > 1 else ""


@dataclass(frozen=True)
class Say:
    """What the backend says to one request: `steps`, once all of it is here; and what follows.

    `then`: "keep" it, "close" or "reset" it, "wait" for the other side to close it. `early` is said when the
    head is here, `unasked` on the first connection before anything is; `welcome`: who expects it is told to
    go on.
    """

    steps: tuple[Step, ...] = ()
    then: str = "keep"
    early: tuple[Step, ...] = ()
    unasked: tuple[Step, ...] = ()
    welcome: bool = False


OK = Say((ok(),))


@dataclass
class Outcome:
    """What was seen at both ends. What is asked afterwards, to see what is left (`/probe`), is not in it."""

    #: Every request that a backend heard, in order, and all bytes that it was sent.
    heard: list[Heard] = field(default_factory=list)
    sent: bytes = b""
    #: Final answers, in order; each knows the interim ones before it.
    answers: list[Answer] = field(default_factory=list)
    #: Interim answers after which nothing final came.
    dangling: list[bytes] = field(default_factory=list)
    #: What came after the last of them, and is no answer.
    left: bytes = b""
    #: All bytes that the client was sent.
    got: bytes = b""
    #: What became of the client's connection: "kept" (the next request on it is answered rightly), "closed",
    #: "reset", "open" (nothing came in time), "poisoned" (the next request got another answer).
    ended: str = "open"
    #: Is the next client served rightly?
    again: bool = True

    def summary(self) -> str:
        """In a few words, for a table."""
        statuses = "+".join(
            str(answer.status) + ("" if answer.complete else " cut") for answer in self.answers
        )
        said = [statuses or ("no head" if self.got else "nothing"), self.ended]
        if len(self.heard) != 1:
            said.append(f"{len(self.heard)} heard")
        if not self.again:
            said.append("next client wronged")
        return ", ".join(said)


@dataclass(frozen=True)
class Check:
    """`wrong` tells what is not as it should be, "" when all is well; `text` are the words for it."""

    text: str
    wrong: Callable[[Outcome], str]


@dataclass(frozen=True)
class Case:
    """One rule, put to the test.

    `holds` is what any proxy has to keep to; `ours` what this one does besides, where there is a choice.
    `why` explains why others differ, where they do.
    """

    name: str
    rule: str
    rfc: str
    send: tuple[Step, ...]
    holds: tuple[Check, ...]
    reply: tuple[Say, ...] = (OK,)
    ours: tuple[Check, ...] = ()
    answers: int = 1
    methods: tuple[str, ...] = ("GET",)
    why: str = ""

    def wrong(self, outcome: Outcome, *, ours: bool) -> list[str]:
        """What is not as it should be."""
        checks = self.holds + self.ours if ours else self.holds
        return [found for check in checks if (found := check.wrong(outcome))]

    @property
    def done(self) -> str:
        """What this balancer does, in words."""
        texts = dict.fromkeys(check.text for check in (self.ours or self.holds) if check.text)
        return "; ".join(texts)


@dataclass(frozen=True)
class Topic:
    """Cases that belong together, with a few words before them.

    `why` explains where others differ in them, for the cases that have no sentence of their own.
    """

    title: str
    text: str
    cases: tuple[Case, ...]
    why: str = ""


def case(
    name: str,
    rule: str,
    rfc: str,
    send: bytes | tuple[Step, ...],
    *holds: Check,
    reply: bytes | Say | tuple[Say, ...] = OK,
    ours: Check | tuple[Check, ...] = (),
    answers: int = 1,
    methods: tuple[str, ...] = (),
    why: str = "",
) -> Case:
    """A `Case`, with shorter forms of what most of them have."""
    steps = (send,) if isinstance(send, bytes) else send
    first = steps[0] if isinstance(steps[0], bytes) else b""
    says = Say((reply,)) if isinstance(reply, bytes) else reply
    return Case(
        name,
        rule,
        rfc,
        steps,
        holds,
        says if isinstance(says, tuple) else (says,),
        (ours,) if isinstance(ours, Check) else ours,
        answers,
        methods or ("HEAD" if first.startswith(b"HEAD ") else "GET",),
        why,
    )
