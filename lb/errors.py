"""Everything that can go wrong, in one tree; each leaf knows its answer.

    LbError
    ├── ConfigError            a setting cannot be used (file, line, key and mend)
    ├── StoreError             the shared state
    │   ├── StoreUnavailable   not reachable, timed out, refused
    │   └── StoreConflict      another writer was first
    └── ProxyError             a request could not be served
        ├── ClientError        source "downstream": the client's message or its absence
        │   ├── BadRequest, HeaderTooLarge, BodyTooLarge, UriTooLong, UnsupportedCoding, …
        │   ├── IdempotencyRunning, IdempotencyReused, …
        │   └── ClientGone     the client went away: nobody is there to answer
        │       └── IncompleteBody     it ended its message too early, and may still read
        ├── UpstreamError      source "upstream": a backend
        │   ├── ConnectFailed, ConnectTimeout, TlsFailed   nothing was sent
        │   ├── UpstreamClosed                     reset or closed before the first byte
        │   ├── ResponseTimeout
        │   ├── BadResponse                        what came back is not HTTP
        │   └── RetryBudgetSpent, …Late            one of these, and no retry is left
        └── InternalError      source "internal": the balancer itself
            ├── NoBackend, NoPool, Overloaded, QueueFull, QueueTimeout
            ├── IdempotencyUnavailable, IdempotencyFull

`status` is the answer's status code, `code` the stable word in the access log,
`sent` says whether any byte of the request may have reached the backend.
A request may be retried after an error when `safe_to_retry(idempotent)` says so.
"""

from __future__ import annotations

from typing import ClassVar, Literal


class LbError(Exception):
    """Base of all errors of this package."""


class ConfigError(LbError):
    """A setting that cannot be used; the message names the place and the mend."""


class StoreError(LbError):
    """The shared state could not be read or written."""


class StoreUnavailable(StoreError):
    """The store cannot be reached, or did not answer in time."""


class StoreConflict(StoreError):
    """Another writer changed the pool in between, more often than it was worth trying again."""


class ProxyError(LbError):
    """A request that could not be served as asked."""

    source: ClassVar[Literal["downstream", "upstream", "internal"]] = "internal"
    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"
    sent: ClassVar[bool] = True
    #: Did it fail here, for want of descriptors, ports or memory, before the other side had a part in it?
    local: bool = False
    #: Whole seconds after which the client may try again; said with a 503.
    retry_after: int = 1

    def __init__(self, message: str = "", retry_after: int = 1) -> None:
        super().__init__(message)
        self.retry_after = retry_after

    @classmethod
    def safe_to_retry(cls, idempotent: bool) -> bool:
        """Nothing was sent, or sending it twice does no harm (RFC 9110, section 9.2.2)."""
        return cls.source == "upstream" and (idempotent or not cls.sent)


class ClientError(ProxyError):
    """The client's message cannot be taken as it is."""

    source = "downstream"
    status = 400
    code = "bad_request"


class BadRequest(ClientError):
    """Malformed or ambiguous: there is not exactly one way to read it."""


class UriTooLong(ClientError):
    """The request line is longer than `limits.request_line`."""

    status = 414
    code = "uri_too_long"


class HeaderTooLarge(ClientError):
    """More fields, or larger ones, than the limits allow."""

    status = 431
    code = "header_too_large"


class ExpectationFailed(ClientError):
    """An expectation other than 100-continue."""

    status = 417
    code = "expectation_failed"


class LastHop(ClientError):
    """OPTIONS that goes no further, because its Max-Forwards says so: answered here, and no error at all."""

    status = 200
    code = "last_hop"


class MethodNotServed(ClientError):
    """A method that is passed on, but not served by the balancer itself."""

    status = 501
    code = "method_not_served"


class VersionNotSupported(ClientError):
    """A major version other than 1 in the request line."""

    status = 505
    code = "version_not_supported"


class BodyTooLarge(ClientError):
    """A body larger than `limits.body`."""

    status = 413
    code = "body_too_large"


class IdempotencyKeyInvalid(ClientError):
    """An `Idempotency-Key` that is none: empty, too long, given twice, or of other characters."""

    code = "idempotency_key_invalid"


class IdempotencyBodyTooLarge(ClientError):
    """A request with a key whose body is larger than `idempotency.max_body`."""

    status = 413
    code = "idempotency_body_too_large"


class IdempotencyRunning(ClientError):
    """The first request with this key is still being served."""

    status = 409
    code = "idempotency_running"


class IdempotencyNotKept(ClientError):
    """The first request with this key was carried out, and its answer was too large to be kept."""

    status = 409
    code = "idempotency_not_kept"


class IdempotencyReused(ClientError):
    """The first request with this key was another one."""

    status = 422
    code = "idempotency_reused"


class UnsupportedCoding(ClientError):
    """A transfer coding other than chunked."""

    status = 501
    code = "unsupported_coding"


class RequestTimeout(ClientError):
    """The client did not finish its message, or did not read its answer, in time."""

    status = 408
    code = "client_timeout"


class ClientGone(ClientError):
    """The client closed its connection; logged as 499, answered to nobody."""

    status = 499
    code = "client_gone"


class IncompleteBody(ClientGone):
    """The client ended its stream within its body. It may have kept the half in which it reads the answer."""

    status = 400
    code = "incomplete_body"


class UpstreamError(ProxyError):
    """A backend failed. `retry_on`: the word of the setting `retry.on` that lets another one be tried."""

    source = "upstream"
    status = 502
    code = "upstream_error"
    retry_on: ClassVar[str] = "reset"


class ConnectFailed(UpstreamError):
    """Refused or unreachable: nothing was sent."""

    code = "connect_failed"
    sent = False
    retry_on = "connect-failure"


class ConnectTimeout(ConnectFailed):
    """No connection within `timeouts.connect`: nothing was sent."""

    status = 504
    code = "connect_timeout"


class TlsFailed(ConnectFailed):
    """No TLS with the backend: its certificate is not trusted or has another name, or it speaks none."""

    code = "tls_failed"


class UpstreamClosed(UpstreamError):
    """The connection was reset or closed before the first byte of an answer."""

    code = "upstream_closed"


class StaleConnection(UpstreamClosed):
    """A reused connection that turned out closed; worth one fresh try on the same backend."""

    code = "stale_connection"


class ResponseTimeout(UpstreamError):
    """No answer within `timeouts.response`, or no progress within `timeouts.idle`."""

    status = 504
    code = "response_timeout"
    retry_on = "timeout"


class BadResponse(UpstreamError):
    """What the backend sent is not one HTTP message."""

    code = "bad_response"
    retry_on = "invalid-response"


class RetryBudgetSpent(UpstreamError):
    """A backend failed, and the fleet has had as many retries as it may (`retry.budget`)."""

    code = "retry_budget"


class RetryBudgetSpentLate(RetryBudgetSpent):
    """The same after a timeout."""

    status = 504


class InternalError(ProxyError):
    """The balancer has no way to serve this."""


class RequestDeadline(InternalError):
    """Request and answer took longer than `client.request`."""

    status = 504
    code = "request_deadline"


class NoBackend(InternalError):
    """The pool has no backend that may receive traffic."""

    status = 503
    code = "no_backend"


class QueueFull(InternalError):
    """Every backend is at `max_connections`, and `queue.size` requests wait already."""

    status = 503
    code = "queue_full"


class QueueTimeout(InternalError):
    """Every backend was at `max_connections` for `queue.timeout`."""

    status = 503
    code = "queue_timeout"


class IdempotencyUnavailable(InternalError):
    """A request with an `Idempotency-Key`, and the shared state, which knows it, is away."""

    status = 503
    code = "idempotency_unavailable"


class IdempotencyFull(InternalError):
    """What is kept for keys takes `idempotency.memory` already."""

    status = 503
    code = "idempotency_full"


class NoPool(InternalError):
    """No route matches the host and path."""

    status = 404
    code = "no_route"


class Overloaded(InternalError):
    """This worker has as much to do as it may (`limits`), or no descriptor left for a backend."""

    status = 503
    code = "overloaded"


class Stopping(InternalError):
    """This worker has ended, and its time to finish what it served is over."""

    status = 503
    code = "stopping"
