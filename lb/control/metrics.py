"""`/metrics`: the fleet and this gunicorn in numbers, in Prometheus' text format 0.0.4 or OpenMetrics 1.0.

Whichever worker answers tells the same. What the fleet knows is read from the shared state; what each worker
knows of itself stands on the scoreboard that all workers of a gunicorn share. While the shared state is away
pools are told of as the answering worker knows them, and what only the fleet can know is left out.

A pool of ten thousand backends has a hundred thousand samples: they are made one by one as they are written,
with pauses in which the worker sees to its requests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from math import isnan
from typing import Literal, NamedTuple, cast, get_args

from falcon import Request, Response
from prometheus_client import CollectorRegistry, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.samples import Sample

from lb import __version__
from lb.control.problems import away
from lb.control.shared import Shared
from lb.errors import StoreUnavailable
from lb.model import State
from lb.scoreboard import Totals
from lb.service import Service
from lb.state.pieces import in_pieces, pause
from lb.state.survey import Row, Survey

TEXT, OPEN = CONTENT_TYPE_PLAIN_0_0_4, openmetrics.CONTENT_TYPE_LATEST
_open = cast("Callable[[CollectorRegistry, str], bytes]", openmetrics.generate_latest)
_MEDIA = {kind.partition(";")[0]: kind for kind in (TEXT, OPEN)}


class Family(NamedTuple):
    """The samples of one name: the fleet's about pools and backends, else the workers' of one gunicorn."""

    name: str
    kind: Literal["gauge", "counter", "info"]
    labels: tuple[str, ...]
    help: str


_BACKEND = ("pool", "backend")

FAMILIES = {
    row.name: row
    for row in (
        Family("lb_build_info", "info", ("version",), "The version that answers; always 1."),
        Family(
            "lb_shared_state_up",
            "gauge",
            (),
            "1 if every worker uses the shared state, and the one that answers could read it; else 0.",
        ),
        Family("lb_workers", "gauge", (), "Workers that show signs of life."),
        Family(
            "lb_workers_degraded",
            "gauge",
            (),
            "Workers that balance on their own view, because the shared state is away.",
        ),
        Family(
            "lb_shared_state_losses_total",
            "counter",
            (),
            "How often a worker has lost the shared state; an outage counts once for each worker.",
        ),
        Family(
            "lb_overload_refusals_total",
            "counter",
            (),
            "Requests that were answered 503 because a worker had too much to do.",
        ),
        Family(
            "lb_retries_refused_total",
            "counter",
            ("pool",),
            "Retries that were not made because the fleet had used up its retry budget.",
        ),
        Family(
            "lb_access_log_lines_lost_total",
            "counter",
            (),
            "Lines of the access log that could not be written.",
        ),
        Family("lb_client_connections", "gauge", (), "Open connections of clients, on both listeners."),
        Family(
            "lb_client_requests_in_flight",
            "gauge",
            (),
            "Requests that workers are serving, on both listeners.",
        ),
        Family(
            "lb_resident_memory_bytes",
            "gauge",
            (),
            "Resident memory of all workers; what they share counts for each.",
        ),
        Family(
            "lb_event_loop_delay_seconds",
            "gauge",
            (),
            "How late an event loop was in the last second at most, in the worker where that was worst.",
        ),
        Family(
            "lb_pool_algorithm_info",
            "info",
            ("pool", "algorithm"),
            "How a pool chooses; always 1.",
        ),
        Family(
            "lb_pool_queued_requests",
            "gauge",
            ("pool",),
            "Requests that wait because every backend is at its max_connections.",
        ),
        Family(
            "lb_backend_requests_in_flight",
            "gauge",
            _BACKEND,
            "Requests that a backend is serving.",
        ),
        Family(
            "lb_backend_requests_total",
            "counter",
            _BACKEND,
            "Requests that a backend was ever given.",
        ),
        Family(
            "lb_backend_weight",
            "gauge",
            _BACKEND,
            "Weight of a backend; 0: it gets no new requests.",
        ),
        Family(
            "lb_backend_max_connections",
            "gauge",
            _BACKEND,
            "Requests that a backend may be serving at a time; 0: any number.",
        ),
        Family(
            "lb_backend_state",
            "gauge",
            (*_BACKEND, "state"),
            "1 for the state that a backend is in, 0 for all others.",
        ),
        Family(
            "lb_backend_ejections",
            "gauge",
            _BACKEND,
            "How often in a row a backend was ejected because requests failed; 0 when it has kept well.",
        ),
    )
}
"""All there are, by name, in their order."""

_STATES = tuple(sorted(get_args(State)))


class Metrics:
    """`/metrics`."""

    def __init__(self, shared: Shared, service: Callable[[], Service | None]) -> None:
        self._shared = shared
        self._service = service

    def on_get(self, req: Request, resp: Response) -> None:
        """All metrics, in the format that is preferred; in the older one if neither is acceptable."""
        service = self._service()
        if service is None:
            raise away(StoreUnavailable("this worker is starting"))
        surveys, exact = self._shared.survey()
        scrape = Scrape(surveys, exact, service.vitals.read())
        registry = CollectorRegistry()
        registry.register(scrape)
        kind = _MEDIA[req.client_prefers(tuple(_MEDIA)) or "text/plain"]
        if kind == OPEN:
            # No name has anything to escape; looking for that takes twice as long.
            resp.data = _open(registry, openmetrics.ALLOWUTF8)
        else:
            resp.data = generate_latest(registry)
        resp.content_type = kind

    on_head = on_get


class Scrape:
    """What is told at one time; a collector of the library's. `exact`: the shared state was read."""

    def __init__(self, surveys: list[Survey], exact: bool, totals: Totals) -> None:
        self._surveys = surveys
        self._exact = exact
        self._totals = totals

    def collect(self) -> Iterator[Metric]:
        """All families of which there is anything to tell."""
        yield from self._workers()
        yield from self._fleet()

    def _workers(self) -> Iterator[Metric]:
        totals = self._totals
        up = self._exact and not totals.degraded
        yield _one("lb_build_info", 1, __version__)
        yield _one("lb_shared_state_up", up)
        yield _one("lb_workers", totals.workers)
        yield _one("lb_workers_degraded", totals.degraded)
        yield _one("lb_shared_state_losses_total", totals.losses)
        yield _one("lb_overload_refusals_total", totals.refused)
        yield _metric(
            "lb_retries_refused_total", ((value, (pool,)) for pool, value in sorted(totals.retries.items()))
        )
        yield _one("lb_access_log_lines_lost_total", totals.lost_lines)
        for name, value in (
            ("lb_client_connections", totals.connections),
            ("lb_client_requests_in_flight", totals.in_flight),
            ("lb_resident_memory_bytes", totals.resident),
            ("lb_event_loop_delay_seconds", totals.delay),
        ):
            if not isnan(value):
                yield _one(name, value)

    def _fleet(self) -> Iterator[Metric]:
        surveys = self._surveys
        yield _metric("lb_pool_algorithm_info", ((1, (one.pool, one.algorithm)) for one in surveys))
        if self._exact:
            yield _metric("lb_pool_queued_requests", ((one.queued or 0, (one.pool,)) for one in surveys))
            yield self._each("lb_backend_requests_in_flight", lambda row: row.in_flight or 0)
            yield self._each("lb_backend_requests_total", lambda row: row.requests or 0)
        yield self._each("lb_backend_weight", lambda row: row.weight)
        yield self._each("lb_backend_max_connections", lambda row: row.max_connections)
        yield _metric(
            "lb_backend_state",
            (
                (row.state == state, (one.pool, row.id, state))
                for one in surveys
                for row in one.rows
                for state in _STATES
            ),
        )
        yield self._each("lb_backend_ejections", lambda row: row.ejections)

    def _each(self, name: str, value: Callable[[Row], float]) -> Metric:
        found = ((value(row), (one.pool, row.id)) for one in self._surveys for row in one.rows)
        return _metric(name, found)


def _one(name: str, value: float, *labels: str) -> Metric:
    return _metric(name, [(value, labels)])


def _metric(name: str, values: Iterable[tuple[float, tuple[str, ...]]]) -> Metric:
    family = FAMILIES[name]
    base = name.removesuffix("_total").removesuffix("_info")
    made = Metric(base, family.help, family.kind, unit=_unit(base))
    samples = (Sample(name, dict(zip(family.labels, labels, strict=True)), value) for value, labels in values)
    # The library only goes over them, once.
    made.samples = cast("list[Sample]", in_pieces(samples, pause))
    return made


def _unit(name: str) -> str:
    last = name.rpartition("_")[2]
    return last if last in ("bytes", "seconds") else ""
