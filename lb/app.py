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
from lb.errors import NoPool, ProxyError
from lb.proxy.fields import forwarded
from lb.service import Service
from lb.wsgi import StartResponse, client_body, listener, problem, raw_head, raw_target

_service: Service | None = None


def application(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    """A plain WSGI callable: everything that reaches either listener comes through here."""
    started = perf_counter()
    service = _service
    if service is None:
        raise RuntimeError("this process has no service: start it with `gunicorn -c gunicorn.conf.py lb.app`")
    if listener(environ, service.control_addresses) != "data":
        return service.control(environ, start_response)
    host, client = environ.get("HTTP_HOST", ""), environ.get("REMOTE_ADDR", "")
    entry = Entry(time(), service.next_id(), client, environ["REQUEST_METHOD"], host, raw_target(environ))
    try:
        pool = service.router.only or service.router.match(host, environ["PATH_INFO"])
        if pool is None:
            raise NoPool(f"no route for {host}{environ['PATH_INFO']}")
        head = b"".join(
            (
                raw_head(environ, entry.target),
                forwarded(client, environ["wsgi.url_scheme"], environ["SERVER_PORT"]),
                b"X-Forwarded-Host: ",
                host.encode("latin-1"),
                b"\r\nX-Request-Id: ",
                entry.id.encode(),
                b"\r\n\r\n",
            )
        )
        body = client_body(environ)
        if body is not None and service.body_limit:
            body.limit_to(service.body_limit)
        answer = service.forwarders[pool].forward(
            entry, head, body, started, environ.get("lb.interim"), environ.get("lb.upgrade") is True
        )
    except ProxyError as exc:
        entry.status, entry.code, entry.duration = exc.status, exc.code, perf_counter() - started
        service.log.add(entry)
        return problem(exc, environ, start_response, entry.id)
    start_raw: Callable[[int, str, bytes, bool], None] | None = environ.get("lb.start")
    if start_raw is not None:  # our own worker takes the fields as they came
        start_raw(answer.status, answer.reason, answer.lines, answer.measured)
    else:
        start_response(f"{answer.status} {answer.reason}", answer.headers())
    whole = answer.whole()
    return answer if whole is None else (whole,)


def install(service: Service) -> None:
    """Make `service` the one of this process."""
    global _service
    _service = service


def uninstall() -> None:
    """Stop the service of this process, if there is one."""
    global _service
    service, _service = _service, None
    if service is not None:
        service.stop()
