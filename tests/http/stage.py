"""Plays a case: a raw client on one side of a proxy, a raw backend on the other.

One case at a time. Afterwards two requests for `/probe` show what is left of the client's connection, and
whether the next client is served rightly.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterable

from tests.http.case import OK, Case, Outcome, Say, Step, Then
from tests.http.wire import read_answers, read_body, read_head, wait_taken
from tests.support.backends import Backend, Peer, ok
from tests.support.clients import Answer, request

PROBE = request("GET", "/probe")
"""What is asked afterwards."""

GO_ON = b"HTTP/1.1 100 Continue\r\n\r\n"

_PROBED = b"probe answered"


class Stage:
    """A scripted backend, and the one case it plays in. Use it as a context manager."""

    def __init__(self, patience: float = 3.0) -> None:
        self.backend = Backend(self._serve)
        #: Seconds that a client waits for anything.
        self.patience = patience
        self._outcome = Outcome()
        self._says: tuple[Say, ...] = (OK,)
        self._heads = self._said = 0
        self._greeted = False

    def __enter__(self) -> Stage:
        self.backend.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        self.backend.__exit__(*exc)

    # The backend.

    def _serve(self, peer: Peer) -> None:
        data = b""
        if self._says[0].unasked and not self._greeted:
            self._greeted = True
            play(peer.sock, self._says[0].unasked)
        with contextlib.suppress(OSError):
            while True:
                while (found := read_head(data, peer.number)) is None:
                    more = peer.sock.recv(65536)
                    self._outcome.sent += more
                    data += more
                    if not more:
                        return
                # A connection may outlast a case; who asks in it belongs to the case that is played now.
                outcome = self._outcome
                head, data = found
                if head.head.startswith(b"GET /probe "):
                    peer.send(ok(_PROBED))
                    continue
                say = self._says[min(len(outcome.heard), len(self._says) - 1)]
                at = len(outcome.heard)
                outcome.heard.append(head)
                self._heads += 1
                if say.welcome and head.values("Expect"):
                    peer.send(GO_ON)
                play(peer.sock, say.early)
                outcome.heard[at], rest = read_body(head, data)
                while not outcome.heard[at].whole:
                    more = peer.sock.recv(65536)
                    outcome.sent += more
                    data += more
                    if not more:
                        return
                    outcome.heard[at], rest = read_body(head, data)
                data = rest
                play(peer.sock, say.steps)
                self._said += 1
                if say.then == "reset":
                    peer.reset()
                    return
                if say.then == "wait":
                    while peer.sock.recv(65536):
                        pass
                if say.then != "keep":
                    return

    # The client.

    def play(self, case: Case, port: int) -> Outcome:
        """Play `case` against the proxy on `port` of this machine."""
        if case.reply[0].unasked:
            self.backend.hang_up()  # so that there is a first connection
        outcome = self._outcome = Outcome()
        self._says, self._heads, self._said, self._greeted = case.reply, 0, 0, False
        with socket.create_connection(("127.0.0.1", port), self.patience) as sock:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _Client(self, case, sock, outcome).run()
        self.wait_said()
        with socket.create_connection(("127.0.0.1", port), self.patience) as sock:
            with contextlib.suppress(OSError):
                sock.sendall(PROBE)
            outcome.again = _probed(self.read_one(sock))
        errors, self.backend._errors[:] = self.backend._errors[:], []
        assert not errors, errors
        return outcome

    def read_one(self, sock: socket.socket) -> list[Answer]:
        """The answers to a probe: one, if all is well."""
        got = b""
        with contextlib.suppress(OSError):
            sock.settimeout(self.patience)
            while not (answers := read_answers(got, ["GET"], over=False)[0]) or not answers[-1].complete:
                if not (more := sock.recv(65536)):
                    break
                got += more
        return read_answers(got, ["GET"], over=True)[0]

    def heads(self) -> int:
        """How many requests the backend has heard the heads of."""
        return self._heads

    def wait_said(self) -> None:
        """Wait until the backend has said all that it has to say to what it has heard whole."""
        deadline = time.monotonic() + self.patience
        while self._said < sum(heard.whole for heard in self._outcome.heard) and time.monotonic() < deadline:
            time.sleep(0.001)


def _probed(answers: list[Answer]) -> bool:
    return [answer.body for answer in answers] == [_PROBED]


def play(sock: socket.socket, steps: Iterable[Step]) -> None:
    """Send bytes, and do what is between them."""
    for step in steps:
        if isinstance(step, bytes):
            sock.sendall(step)
        elif step is Then.PAUSE:
            wait_taken(sock)
        elif step is Then.END:
            sock.shutdown(socket.SHUT_WR)


class _Client:
    """The client of one case."""

    def __init__(self, stage: Stage, case: Case, sock: socket.socket, outcome: Outcome) -> None:
        self.stage = stage
        self.case = case
        self.sock = sock
        self.outcome = outcome
        self.ended = ""
        self.half_closed = False
        self.awaited = 0

    def run(self) -> None:
        """Send what there is to send, read what comes, then see what became of the connection."""
        with contextlib.suppress(OSError):  # whoever does not want the rest may still have answered
            for step in self.case.send:
                self._do(step)
        self._read_until(lambda: len(self._answers()) >= self.case.answers and self._answers()[-1].complete)
        self._settle()

    def _do(self, step: Step) -> None:
        if step is Then.HEARD:
            self.awaited += 1
            deadline = time.monotonic() + self.stage.patience
            while self.stage.heads() < self.awaited and time.monotonic() < deadline:
                time.sleep(0.001)
        elif step is Then.HEAD:
            before = self.outcome.got.count(b"\r\n\r\n")
            self._read_until(lambda: self.outcome.got.count(b"\r\n\r\n") > before)
        else:
            play(self.sock, (step,))
            self.half_closed = self.half_closed or step is Then.END

    def _answers(self) -> list[Answer]:
        over = self.ended == "closed"
        outcome = self.outcome
        outcome.answers, outcome.dangling, outcome.left = read_answers(outcome.got, self.case.methods, over)
        return outcome.answers

    def _read_until(self, condition: Callable[[], bool]) -> None:
        """Read until `condition` holds, the stream ends or patience does."""
        deadline = time.monotonic() + self.stage.patience
        while not self.ended and not condition():
            left = deadline - time.monotonic()
            if left <= 0:
                return
            self.sock.settimeout(left)
            try:
                data = self.sock.recv(262144)
            except TimeoutError:
                return
            except OSError:
                self.ended = "reset"
                break
            if not data:
                self.ended = "closed"
            self.outcome.got += data
        self._answers()

    def _settle(self) -> None:
        """Find out what became of the connection."""
        outcome, answers = self.outcome, self._answers()
        last = answers[-1] if answers else None
        done = last is not None and last.complete
        says_close = last is not None and "close" in [v.lower() for v in last.values("Connection")]
        if not self.ended and (self.half_closed or says_close or (outcome.got and not done)):
            self._read_until(lambda: False)
            self._answers()
        if self.ended or not done or self.half_closed or says_close:
            outcome.ended = self.ended or "open"
            return
        self.stage.wait_said()
        with contextlib.suppress(OSError):
            self.sock.settimeout(self.stage.patience)
            self.sock.sendall(PROBE)
        answers = self.stage.read_one(self.sock)
        outcome.ended = "kept" if _probed(answers) else "poisoned" if answers else self._end()

    def _end(self) -> str:
        """How the connection ended that did not answer the probe."""
        try:
            return "open" if self.sock.recv(65536) else "closed"
        except TimeoutError:
            return "open"
        except OSError:
            return "closed"  # a reset, because of what it was sent after its end
