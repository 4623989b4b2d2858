"""Predicates over what a case has brought about, each with the words that the documentation has for it."""

from __future__ import annotations

from collections.abc import Callable

from tests.http.case import Check, Outcome

SMUGGLED = "/smuggled"
"""The target of a request that hides in another one, or behind it."""

#: What a gateway may say of its own to a backend.
_OWN = frozenset(("host", "via", "forwarded", "x-request-id", "x-real-ip", "connection"))
_OWN_PREFIXES = ("x-forwarded-", "x-envoy-")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) < 300 else text[:300] + "…"


def _told(text: str, condition: Callable[[Outcome], bool], wrong: str) -> Check:
    return Check(text, lambda o: "" if condition(o) else wrong)


# A whole exchange.


def refused(*statuses: int) -> Check:
    """Answered with one of these, the connection closed, and no backend has heard of it."""
    codes = statuses or (400,)

    def wrong(o: Outcome) -> str:
        if o.heard:
            return f"a backend heard {_shown([r.head for r in o.heard])}"
        found = [answer.status for answer in o.answers]
        if len(found) != 1 or found[0] not in codes:
            return f"answered {found}, wanted one of {codes}: {_shown(o.got)}"
        return "" if o.ended in ("closed", "reset") else f"the connection is {o.ended}"

    return Check(f"{' or '.join(map(str, codes))}, closed; no backend hears of it", wrong)


def given_up(*statuses: int) -> Check:
    """Answered with one of these, and closed; a backend has heard a part of it at most, and nothing else."""
    codes = statuses or (400,)

    def wrong(o: Outcome) -> str:
        if any(request.whole for request in o.heard) or len(o.heard) > 1:
            return f"a backend heard {_shown([r.head for r in o.heard])} whole"
        found = [answer.status for answer in o.answers]
        if len(found) != 1 or found[0] not in codes:
            return f"answered {found}, wanted one of {codes}: {_shown(o.got)}"
        return "" if o.ended in ("closed", "reset") else f"the connection is {o.ended}"

    return Check(f"{' or '.join(map(str, codes))}, closed; no backend takes it for whole", wrong)


def never_whole() -> Check:
    """No backend has heard it whole, whatever the client was told."""
    return _told(
        "no backend takes it for whole",
        lambda o: not any(request.whole for request in o.heard),
        "a backend took it for whole",
    )


def no_success() -> Check:
    """Neither is there an answer of success, nor does anything stay open."""

    def wrong(o: Outcome) -> str:
        if any(answer.status < 400 for answer in o.answers):
            return f"answered {[answer.status for answer in o.answers]}"
        return "" if o.ended in ("closed", "reset") else f"the connection is {o.ended}"

    return Check("an error or nothing, closed", wrong)


def passed(count: int = 1, ended: str = "kept", status: int = 200) -> Check:
    """`count` requests reached a backend whole, each was answered with `status`; how the connection ended."""

    def wrong(o: Outcome) -> str:
        if len(o.heard) != count or not all(request.whole for request in o.heard):
            return f"a backend heard {_shown([(r.head, r.whole) for r in o.heard])}, wanted {count}"
        if any(SMUGGLED in request.target for request in o.heard):
            return "a hidden request was heard"
        if [answer.status for answer in o.answers] != [status] * count:
            return f"answered {_shown(o.got)}"
        if not all(answer.complete for answer in o.answers):
            return "an answer is not complete"
        if o.ended not in ended.split("|"):
            return f"the connection is {o.ended}, wanted {ended}"
        return "" if o.again else "the next client is not served rightly"

    many = "" if count == 1 else f", {count} requests"
    says = "" if status == 200 else f", {status} comes back"
    return Check(f"passed on{many}{says}; connection {ended.replace('|', ' or ')}", wrong)


def heard(count: int) -> Check:
    """A backend has heard that many requests, and none that was hidden."""

    def wrong(o: Outcome) -> str:
        targets = [request.target for request in o.heard]
        if len(targets) != count or any(SMUGGLED in target for target in targets):
            return f"a backend heard {targets}, wanted {count}"
        return "" if o.ended != "poisoned" else "the next request got another's answer"

    return Check(f"a backend hears {count} request{'' if count == 1 else 's'}", wrong)


def nothing_hidden() -> Check:
    """Whatever became of the request, nothing hidden in it was heard as a request, or answered as one."""

    def wrong(o: Outcome) -> str:
        if any(SMUGGLED in request.target for request in o.heard) or len(o.heard) > 1:
            return f"a backend heard {[request.target for request in o.heard]}"
        return "" if o.ended != "poisoned" and o.again else "the next request got another's answer"

    return Check("what is hidden in it is never a request", wrong)


def either(*checks: Check) -> Check:
    """At least one of them holds."""

    def wrong(o: Outcome) -> str:
        found = [check.wrong(o) for check in checks]
        return "" if "" in found else " / ".join(found)

    return Check(" – or ".join(check.text for check in checks), wrong)


# What the backend heard.


def _request(o: Outcome, number: int) -> str:
    return (
        "" if len(o.heard) > number else f"no request {number + 1} was heard; the client got {_shown(o.got)}"
    )


def sees(name: str, *values: str, number: int = 0) -> Check:
    """The backend sees these values in fields of that name, and no others."""

    def wrong(o: Outcome) -> str:
        if missing := _request(o, number):
            return missing
        found = o.heard[number].values(name)
        return "" if found == list(values) else f"the backend sees {name}: {found}, wanted {list(values)}"

    what = ", ".join(f"`{value}`" if value else "empty" for value in values)
    return Check(f"the backend sees `{name}`: {what}" if values else f"`{name}` goes no further", wrong)


def unseen(*names: str) -> Check:
    """The backend sees none of these fields."""

    def wrong(o: Outcome) -> str:
        if missing := _request(o, 0):
            return missing
        found = [name for name in o.heard[0].names if name.lower() in {n.lower() for n in names}]
        return f"the backend sees {found}" if found else ""

    return Check(" and ".join(f"`{name}`" for name in names) + " do not reach the backend", wrong)


def line(method: str, target: str, version: str = "HTTP/1.1") -> Check:
    """The request line that the backend sees."""
    wanted = f"{method} {target} {version}".encode("latin-1")

    def wrong(o: Outcome) -> str:
        if missing := _request(o, 0):
            return missing
        found = o.heard[0].head.split(b"\r\n", 1)[0]
        return "" if found == wanted else f"the backend sees {_shown(found)}, wanted {_shown(wanted)}"

    return Check(f"the backend sees `{wanted.decode('latin-1')}`" if len(wanted) < 60 else "", wrong)


def content(body: bytes, number: int = 0) -> Check:
    """The content that the backend reads."""

    def wrong(o: Outcome) -> str:
        if missing := _request(o, number):
            return missing
        found = o.heard[number].body
        return "" if found == body else f"the backend reads {_shown(found)}, wanted {_shown(body)}"

    return Check("content whole", wrong)


def framed_once() -> Check:
    """The backend sees one way at most to find the end of the request."""

    def wrong(o: Outcome) -> str:
        for request in o.heard:
            lengths, codings = request.values("Content-Length"), request.values("Transfer-Encoding")
            if len(lengths) + len(codings) > 1:
                return f"the backend sees lengths {lengths} and codings {codings}"
        return ""

    return Check("", wrong)


def without(part: bytes) -> Check:
    """These bytes reach no backend."""
    return _told("", lambda o: part.lower() not in o.sent.lower(), f"{part!r} reached the backend")


def nothing_invented(*sent: str) -> Check:
    """The backend sees no field but those `sent`, and what gateways say of themselves."""
    known = _OWN | {name.lower() for name in sent}

    def wrong(o: Outcome) -> str:
        if missing := _request(o, 0):
            return missing
        found = [
            name
            for name in o.heard[0].names
            if name.lower() not in known and not name.lower().startswith(_OWN_PREFIXES)
        ]
        return f"invented: {found}" if found else ""

    return Check("no field is made up", wrong)


# What the client got.


def answered(*statuses: int) -> Check:
    """The final answers' status codes, in order; each complete."""

    def wrong(o: Outcome) -> str:
        found = [answer.status for answer in o.answers]
        if found != list(statuses):
            return f"answered {found}, wanted {list(statuses)}: {_shown(o.got)}"
        return "" if all(a.complete for a in o.answers) else "an answer is not complete"

    return Check(f"{' and '.join(map(str, statuses))} for the client", wrong)


def gets(name: str, *values: str, number: int = 0) -> Check:
    """The client sees these values in fields of that name, and no others."""

    def wrong(o: Outcome) -> str:
        if len(o.answers) <= number:
            return f"no answer: {_shown(o.got)}"
        found = o.answers[number].values(name)
        return "" if found == list(values) else f"the client sees {name}: {found}, wanted {list(values)}"

    what = ", ".join(f"`{value}`" if value else "empty" for value in values)
    return Check(f"the client sees `{name}`: {what}" if values else f"no `{name}` for the client", wrong)


def gets_some(name: str) -> Check:
    """The client sees exactly one field of that name, whatever its value."""

    def wrong(o: Outcome) -> str:
        found = [answer.values(name) for answer in o.answers[:1]]
        return "" if found and len(found[0]) == 1 else f"the client sees {name}: {found}"

    return Check(f"one `{name}` for the client", wrong)


def reads(*bodies: bytes) -> Check:
    """The bodies that the client reads, in order, each complete."""

    def wrong(o: Outcome) -> str:
        found = [answer.body for answer in o.answers]
        if found != list(bodies) or not all(answer.complete for answer in o.answers):
            return f"the client reads {_shown(found)}, wanted {_shown(bodies)}"
        return f"and {_shown(o.left)}" if o.left else ""

    return Check("content whole", wrong)


def starts(head: bytes) -> Check:
    """How the first answer begins."""

    def wrong(o: Outcome) -> str:
        found = o.answers[0].head if o.answers else o.got
        return "" if found.startswith(head) else f"the client sees {_shown(found)}"

    shown = head.decode("latin-1").strip()
    return Check(f"the client sees `{shown}`", wrong)


def interim(*statuses: int) -> Check:
    """The interim answers before the first final one."""

    def wrong(o: Outcome) -> str:
        found = [int(head.split()[1]) for answer in o.answers[:1] for head in answer.interim]
        return "" if found == list(statuses) else f"interim answers {found}, wanted {list(statuses)}"

    text = " and ".join(map(str, statuses))
    return Check(f"{text} first" if statuses else "no interim answer", wrong)


def bad_gateway(*statuses: int) -> Check:
    """The client is told 502 (or 503, which some say), and learns nothing of what the backend said."""
    codes = statuses or (502, 503)

    def wrong(o: Outcome) -> str:
        found = [answer.status for answer in o.answers]
        if len(found) != 1 or found[0] not in codes:
            return f"answered {found}, wanted 502: {_shown(o.got)}"
        return "" if o.again else "the next client is not served rightly"

    return Check("502; the backend's connection is not used again", wrong)


def never_complete() -> Check:
    """The client cannot take what it has for the whole."""

    def wrong(o: Outcome) -> str:
        if any(answer.complete and answer.status < 500 for answer in o.answers) and o.ended != "reset":
            return f"the client takes {_shown(o.got)} for whole"
        told = o.answers and all(answer.complete for answer in o.answers)
        return "" if told or o.ended in ("closed", "reset") else f"the connection is {o.ended}"

    return Check("never complete for the client: cut short, or 502", wrong)


def ended(*how: str) -> Check:
    """What became of the client's connection."""
    return Check(
        f"connection {' or '.join(how)}", lambda o: "" if o.ended in how else f"the connection is {o.ended}"
    )


def next_unharmed() -> Check:
    """The next request, on this connection or another, gets its own answer."""
    return _told(
        "the next request gets its own answer",
        lambda o: o.ended != "poisoned" and o.again,
        "the next request got another's answer",
    )


def silent_about(part: bytes) -> Check:
    """The client is not sent these bytes."""
    return _told("", lambda o: part.lower() not in o.got.lower(), f"{part!r} reached the client")
