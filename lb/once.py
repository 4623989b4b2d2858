"""Requests with an `Idempotency-Key`: carried out once, and answered the same each time.

`Once.forward` stands before `Forwarder.forward` where a pool asks for it: it reads the body, begins an entry
in the shared state, and keeps the answer there before the client gets it, also when the client has gone. With
the same key and request the answer is given again, while the first is served it is 409, for another request
422. Where nobody can tell, because the shared state is away, nothing is carried out (503), unless
`idempotency.store_away` says otherwise.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from greenlet import getcurrent

from lb.accesslog import Entry
from lb.algorithms.request import HeadRequest
from lb.errors import (
    IdempotencyBodyTooLarge,
    IdempotencyFull,
    IdempotencyNotKept,
    IdempotencyReused,
    IdempotencyRunning,
    IdempotencyUnavailable,
    ProxyError,
    StoreError,
)
from lb.idempotency import fingerprint, identity, is_kept, pack, parse_key, unpack
from lb.model import Backend
from lb.proxy.answer import Answer, Unasked
from lb.proxy.body import BodyReader
from lb.proxy.conn import Reactor
from lb.proxy.forward import Forwarder
from lb.proxy.http1 import LAST_CHUNK, chunk
from lb.proxy.messages import ProxyResponse
from lb.settings import IdempotencySettings
from lb.state.onetime import Begun, Entries

REPLAYED = b"Idempotent-Replayed: true\r\n"
"""The field that tells an answer that is given again."""

CODE = "idempotency_replayed"
"""Its word in the access log."""

_EXPECT = re.compile(rb"\r\nexpect:[^\r]*", re.IGNORECASE)
_NOBODY = Backend(id="", url="")

_REFUSALS: dict[Begun, tuple[type[ProxyError], str]] = {
    Begun.RUNNING: (IdempotencyRunning, "the first request with this key is being served"),
    Begun.OTHER: (IdempotencyReused, "the first request with this key was another one"),
    Begun.NOT_KEPT: (IdempotencyNotKept, "it was carried out; its answer was too large to be kept"),
    Begun.FULL: (IdempotencyFull, "there is no room for another key"),
}


@contextmanager
def undisturbed(reactor: Reactor | None) -> Iterator[None]:
    """While the block runs, its greenlet goes on also when its client goes away, or its time is over."""
    if reactor is None:  # threads notice neither
        yield
        return
    who = getcurrent()
    reactor.doomed.pop(who, None)
    reactor.spared.add(who)
    try:
        yield
    finally:
        reactor.spared.discard(who)


class Once:
    """The requests of one pool that are carried out once."""

    def __init__(
        self,
        settings: IdempotencySettings,
        forwarder: Forwarder,
        entries: Entries,
        reactor: Reactor | None,
    ) -> None:
        self.entries = entries
        self._reactor = reactor
        self._settings = settings
        self._forwarder = forwarder
        self._methods = frozenset(settings.methods)
        self._replayed = Unasked(forwarder.log, forwarder.tunnels)

    def forward(
        self,
        text: str,
        asked: HeadRequest,
        entry: Entry,
        head: bytes,
        body: BodyReader | None,
        started: float,
        interim: Callable[[bytes], None] | None,
        own: str,
        home: str,
    ) -> Answer:
        """The answer to a request that came with `text` as its key; the rest as for `Forwarder.forward`.

        `asked`: the request as the client sent it, before a route has changed it. The answer's backend has no
        id when it is one that was kept. Raises ProxyError.
        """
        forward = self._forwarder.forward
        if entry.method not in self._methods:
            return forward(entry, head, body, started, interim, False, own, home)
        key = identity(self._settings.scope, entry.host, asked, parse_key(text))
        content = b"" if body is None else self._read(body)
        payload = None if body is None else content
        if body is not None and body.length < 0:
            payload = (chunk(content) if content else b"") + LAST_CHUNK
        if body is not None:
            head = _EXPECT.sub(b"", head)  # all of it is here
        print_ = fingerprint(entry.method, entry.target, content)
        try:
            found, number = self.entries.begin(key, print_)
        except StoreError as exc:
            if self._settings.store_away == "pass":
                return forward(entry, head, payload, started, interim, False, own, home)
            raise IdempotencyUnavailable(f"nobody knows whether this was carried out: {exc}") from None
        if isinstance(found, bytes):
            return self._replay(found, entry, started)
        if found is not Begun.YOURS:
            entry.pool = self._forwarder.pool
            kind, text = _REFUSALS[found]
            raise kind(text)
        outcome: bytes | None = None
        try:
            # Who has lost its connection comes back for the answer: there has to be one.
            with undisturbed(self._reactor):
                answer = forward(entry, head, payload, started, None, False, own, home, keyed=True)
                outcome = self._outcome(answer)
        finally:
            self.entries.end(key, print_, number, outcome)
        return answer

    def _read(self, body: BodyReader) -> bytes:
        """All of the body. Raises ClientError."""
        most = self._settings.max_body
        content = body.read(most + 1) if body.length <= most else b""
        if max(len(content), body.length) > most:
            raise IdempotencyBodyTooLarge(f"with an Idempotency-Key the body has at most {most} bytes")
        return content

    def _outcome(self, answer: Answer) -> bytes | None:
        """What to keep of an answer that has begun; see `Entries.end`."""
        if not is_kept(answer.status):
            return None
        most = self._settings.max_answer - len(answer.lines) - 64
        try:
            content = answer.gather(most)
        except ProxyError:  # it breaks off; whoever writes it finds out by himself
            return b""
        except BaseException:
            answer.close()
            raise
        if content is None:
            return b""
        return pack(answer.status, answer.reason, answer.lines, answer.measured, content)

    def _replay(self, kept: bytes, entry: Entry, started: float) -> Answer:
        head, content = unpack(kept)
        answer = Answer(self._replayed, _NOBODY, entry, started, ProxyResponse(head, None, content))
        entry.pool = self._forwarder.pool
        answer.lines += REPLAYED
        answer.code = CODE
        return answer
