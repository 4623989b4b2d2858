"""The WSGI application: the whole path of a request on one screen.

    gunicorn -c gunicorn.conf.py lb.app

route → claim → send → stream back → settle. The configuration file sees to it that each worker process
has a `Service`: with greenlets under `lb.worker`, with threads under gunicorn's own `gthread`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from time import perf_counter, time
from typing import Any

from lb.accesslog import Entry
from lb.algorithms.request import HeadRequest
from lb.errors import NoPool, ProxyError, Stopping
from lb.service import Service
from lb.sticky import Bond
from lb.wsgi import (
    StartResponse,
    client_body,
    https_redirect,
    listener,
    problem,
    raw_fields,
    raw_head,
    raw_target,
    variables,
)

_service: Service | None = None
_ended: Service | None = None


def application(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    """A plain WSGI callable: everything that reaches either listener comes through here."""
    started = perf_counter()
    service = _service
    if service is None:
        return _without(environ, start_response)
    if listener(environ, service.control_addresses) != "data":
        return service.control(environ, start_response)
    host, client = environ.get("HTTP_HOST", ""), environ.get("REMOTE_ADDR", "")
    entry = Entry(time(), service.next_id(), client, environ["REQUEST_METHOD"], host, "")
    forwarding = service.forwarding
    if not forwarding.plain:
        fields = raw_fields(environ)
        entry.client = forwarding.client(client, fields)
        entry.id = forwarding.request_id(client, fields) or entry.id
    try:
        entry.target = raw_target(environ)
        route = service.router.only or service.router.match(host, environ["PATH_INFO"])
        if route is None:
            raise NoPool(f"no route for {host}{environ['PATH_INFO']}")
        if route.redirect and service.scheme(environ) == "http":
            answered = https_redirect(environ, start_response, entry)
            entry.duration = perf_counter() - started
            service.log.add(entry)
            return answered
        if not route.pool:
            raise NoPool(f"the route for {host}{environ['PATH_INFO']} only redirects to https")
        target = entry.target
        if route.prefix:
            target, environ["lb.head"] = route.strip(target), None  # it cannot go on as it came
        head = b"".join((raw_head(environ, target), service.about_client(environ, host), b"X-Request-Id: "))
        head += entry.id.encode() + b"\r\n\r\n"
        bond: Bond | None = None
        if service.sticky and (sticky := service.sticky.get(route.pool)) is not None:
            bond, head = sticky.read(head, service.scheme(environ) == "https", entry.time)
        sent = head
        if route.request is not None:
            line, _, lines = head.partition(b"\r\n")
            edited = route.request.apply(lines[:-2], variables(environ, entry))
            head = b"%b\r\n%b\r\n" % (line, edited)
        body = client_body(environ)
        if body is not None and service.body_limit:
            body.limit_to(service.body_limit)
        own, home = ("", "") if bond is None else (bond.backend, bond.home)
        upgrade = environ.get("lb.upgrade") is True
        interim = environ.get("lb.interim")
        once = service.once.get(route.pool) if service.once else None
        if once is not None and "HTTP_IDEMPOTENCY_KEY" in environ:
            key, asked = environ["HTTP_IDEMPOTENCY_KEY"], HeadRequest(sent, entry.client, entry.target)
            answer = once.forward(key, asked, entry, head, body, started, interim, own, home)
        else:
            answer = service.forwarders[route.pool].forward(
                entry, head, body, started, interim, upgrade, own, home
            )
    except ProxyError as exc:
        entry.target = entry.target or str(environ.get("RAW_URI", ""))  # one that is not to be read
        entry.status, entry.code, entry.duration = exc.status, exc.code, perf_counter() - started
        service.log.add(entry)
        return problem(exc, environ, start_response, entry.id, service.about(entry))
    if route.response is not None:
        answer.lines = route.response.apply(answer.lines, variables(environ, entry))
    if bond is not None and answer.backend.id:
        answer.lines = bond.mark(answer.lines, answer.backend)
    start_raw: Callable[[int, str, bytes, bool], None] | None = environ.get("lb.start")
    if start_raw is not None:  # our own worker takes the fields as they came
        start_raw(answer.status, answer.reason, answer.lines, answer.measured)
    else:
        start_response(f"{answer.status} {answer.reason}", answer.headers())
    whole = answer.whole()
    return answer if whole is None else (whole,)


def _without(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    """Under `gthread` what waited for a thread may get one when `graceful_timeout` is over."""
    if _ended is None:
        raise RuntimeError("this process has no service: start it with `gunicorn -c gunicorn.conf.py lb.app`")
    return problem(Stopping("the worker has ended"), environ, start_response, _ended.next_id())


def install(service: Service) -> None:
    """Make `service` the one of this process."""
    global _service
    _service = service


def uninstall() -> None:
    """Stop the service of this process, if there is one."""
    global _service, _ended
    service, _service = _service, None
    if service is not None:
        _ended = service
        service.stop()
