"""What answers on the control listener: liveness, readiness, and the state of the fleet as JSON.

A plain WSGI application. It never trusts the network: with a token set, everything but `/healthz` and
`/readyz` asks for it.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from lb.dates import http_date
from lb.service import Service
from lb.wsgi import REASONS, StartResponse


class Control:
    """The control application of one worker. `service` is filled in when the worker has one."""

    def __init__(self, token: str) -> None:
        self.service: Service | None = None
        self._token = token
        self._routes: dict[str, Callable[[], tuple[int, Any]]] = {
            "/healthz": self._healthz,
            "/readyz": self._readyz,
            "/v1/pools": self._pools,
        }
        self._open = ("/healthz", "/readyz")

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
        extra: list[tuple[str, str]] = []
        route = self._routes.get(path)
        if path not in self._open and not self._authorized(environ):
            status, content = 401, _problem(401, "send Authorization: Bearer with the control token")
            extra.append(("WWW-Authenticate", "Bearer"))
        elif route is None:
            status, content = 404, _problem(404, "no such resource")
        elif method not in ("GET", "HEAD"):
            status, content = 405, _problem(405, "read only")
            extra.append(("Allow", "GET, HEAD"))
        else:
            status, content = route()
        body = msgspec.json.encode(content) + b"\n"
        kind = "application/problem+json" if "title" in content else "application/json"
        start_response(
            f"{status} {REASONS[status]}",
            [
                ("Content-Type", kind),
                ("Content-Length", str(len(body))),
                ("Cache-Control", "no-store"),
                ("Date", http_date()),
                *extra,
            ],
        )
        return (b"",) if method == "HEAD" else (body,)

    def _authorized(self, environ: dict[str, Any]) -> bool:
        if not self._token:
            return True
        given = environ.get("HTTP_AUTHORIZATION", "").encode("latin-1")
        return hmac.compare_digest(given, b"Bearer " + self._token.encode())

    def _healthz(self) -> tuple[int, Any]:
        return 200, {"status": "ok"}

    def _readyz(self) -> tuple[int, Any]:
        service = self.service
        if service is None or service.draining:
            return 503, {"status": "draining" if service else "starting"}
        # The store being away is no reason to take this balancer out: it goes on balancing.
        degraded = service.fleet.degraded
        return 200, {"status": "degraded" if degraded else "ready", "shared_state": degraded or "ok"}

    def _pools(self) -> tuple[int, Any]:
        assert self.service is not None
        pools = {}
        for name, claims in self.service.fleet.claims.items():
            snapshot = claims.snapshot
            pools[name] = {
                "algorithm": snapshot.settings.algorithm,
                "version": snapshot.version,
                "backends": [
                    {
                        "id": b.id,
                        "url": b.url,
                        "weight": b.weight,
                        "max_connections": b.max_connections,
                        "state": b.state,
                        "source": b.source,
                    }
                    for b in snapshot.backends.values()
                ],
            }
        return 200, {"pools": pools}


def _problem(status: int, detail: str) -> dict[str, Any]:
    return {"type": "about:blank", "title": REASONS[status], "status": status, "detail": detail}
