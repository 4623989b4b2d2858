"""Errors as problem documents (RFC 9457): those raised here, the framework's, and the shared state's."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Annotated, Any

import falcon
import msgspec
from msgspec import Meta

from lb.errors import ClientGone, ProxyError, StoreConflict, StoreError, StoreUnavailable
from lb.wsgi import REASONS

_LOG = logging.getLogger("lb")

KIND = "application/problem+json"


class Fault(msgspec.Struct, frozen=True):
    """One thing that is wrong with a body; `pointer` says where, as a URI fragment (RFC 6901, section 6)."""

    pointer: str
    detail: str


class ProblemDetails(msgspec.Struct, frozen=True, omit_defaults=True):
    """What went wrong. `errors` lists what is wrong with a body, each with its place."""

    type: str
    title: str
    status: Annotated[int, Meta(ge=400, le=599)]
    detail: str
    errors: tuple[Fault, ...] = ()


class Problem(falcon.HTTPError):
    """An answer that says why not."""

    def __init__(
        self,
        status: int,
        detail: str,
        errors: tuple[Fault, ...] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        reason = REASONS[status]
        super().__init__(f"{status} {reason}", title=reason, description=detail, headers=dict(headers or {}))
        self.errors = errors


def away(exc: StoreError) -> Problem:
    """The shared state is not to be had."""
    return Problem(503, str(exc), headers={"Retry-After": str(ProxyError.retry_after)})


def install(app: falcon.App[Any, Any]) -> None:
    """Let `app` answer with problems, and never with a traceback."""
    app.set_error_serializer(_serialize)
    app.add_error_handler(StoreError, _on_store_error)
    app.add_error_handler(ClientGone, _on_gone)
    app.add_error_handler(falcon.HTTPError, _on_http_error)
    app.add_error_handler(Exception, _on_crash)


def _serialize(req: falcon.Request, resp: falcon.Response, exc: falcon.HTTPError) -> None:
    line = falcon.code_to_http_status(exc.status)
    status = int(line[:3])
    title = REASONS.get(status, line[4:])
    resp.status = f"{status} {title}"
    detail = exc.description or _DETAILS.get(status, title)
    errors = exc.errors if isinstance(exc, Problem) else ()
    resp.content_type = KIND
    resp.data = msgspec.json.encode(ProblemDetails("about:blank", title, status, detail, errors)) + b"\n"


_DETAILS = {
    400: "the request cannot be understood",
    404: "there is no such resource",
    405: "the resource does not take this method; Allow names those that it takes",
}


def _on_http_error(req: Any, resp: falcon.Response, exc: falcon.HTTPError, params: Any) -> None:
    if exc.headers is not None:
        resp.set_headers(exc.headers)
    _serialize(req, resp, exc)


def _on_store_error(req: Any, resp: falcon.Response, exc: StoreError, params: Any) -> None:
    if isinstance(exc, StoreUnavailable | StoreConflict):
        _on_http_error(req, resp, away(exc), params)
    else:
        _on_crash(req, resp, exc, params)


def _on_gone(req: Any, resp: Any, exc: ClientGone, params: Any) -> None:
    raise exc  # nobody is there to answer: the server closes the connection


def _on_crash(req: falcon.Request, resp: falcon.Response, exc: Exception, params: Any) -> None:
    _LOG.error("control: %s %s failed", req.method, req.path, exc_info=exc)
    _on_http_error(
        req, resp, Problem(500, "this is a fault of the balancer's; its error log says more"), params
    )
