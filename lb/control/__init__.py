"""What answers on the control listener: liveness, readiness, metrics, and the control API under `/v1`.

    service.control(environ, start_response)

A WSGI application on falcon. It never trusts the network: see `lb.control.guard`. What it tells and changes
is the shared state (`lb.control.shared`), so that any balancer of a fleet will do.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import falcon

from lb.control.decisions import Decisions, OneDecision
from lb.control.guard import Guard
from lb.control.metrics import Metrics
from lb.control.problems import install
from lb.control.resources import Algorithm, Backend, Backends, Document, Health, Pool, Pools, Ready
from lb.control.shared import Shared
from lb.dates import http_date
from lb.service import Service
from lb.settings import Settings
from lb.wsgi import StartResponse


class Control:
    """The control application of one worker. `service` is filled in when the worker has one."""

    def __init__(self, settings: Settings) -> None:
        self.service: Service | None = None
        shared = Shared(settings, lambda: self.service)
        #: What answers at which path.
        self.routes: dict[str, object] = {
            "/healthz": Health(),
            "/readyz": Ready(lambda: self.service),
            "/metrics": Metrics(shared, lambda: self.service),
            "/v1/openapi.json": Document(bool(settings.control_token)),
            "/v1/decisions": Decisions(shared),
            "/v1/decisions/{request_id}": OneDecision(shared, lambda: self.service),
            "/v1/pools": Pools(shared),
            "/v1/pools/{pool}": Pool(shared),
            "/v1/pools/{pool}/backends": Backends(shared, settings.allowed_backends),
            "/v1/pools/{pool}/backends/{backend}": Backend(shared),
            "/v1/pools/{pool}/algorithm": Algorithm(shared),
        }
        self._app: falcon.App[falcon.Request, falcon.Response] = falcon.App()
        self._app.add_middleware(Guard(settings))
        self._app.add_middleware(self)
        install(self._app)
        for path, resource in self.routes.items():
            # A request's id may have a "/" in it, which a server has decoded by then.
            self._app.add_route(path.replace("{request_id}", "{request_id:path}"), resource)

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        return self._app(environ, start_response)

    def process_response(
        self, req: falcon.Request, resp: falcon.Response, resource: object, req_succeeded: bool
    ) -> None:
        """What every answer carries; called by the framework."""
        resp.set_header("Cache-Control", "no-store")
        resp.set_header("Date", http_date())
        resp.set_header("X-Content-Type-Options", "nosniff")
        if self.service is not None:
            resp.set_header("X-Request-Id", self.service.next_id())
