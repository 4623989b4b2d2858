"""`/metrics` of one worker: formats, names, and what is left out when it cannot be known."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open
from prometheus_client.parser import text_string_to_metric_families as parse_text

from lb.control.metrics import FAMILIES, OPEN, TEXT
from lb.model import Backend
from lb.service import Service
from lb.settings import LogSettings, Settings
from lb.state import decide
from lb.state.decide import declare
from lb.state.embedded import start_or_join
from lb.state.registry import Registry
from lb.state.store import connect, store_url
from lb.vitals import Load
from tests.control.conftest import POOLS, Asker, Told, service_of

PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
FLEET_ONLY = {"lb_pool_queued_requests", "lb_backend_requests_in_flight", "lb_backend_requests"}


def families(told: Told) -> dict[str, Metric]:
    """By name, as a parser has them: without `_total` and `_info`."""
    assert told.status == 200
    parse = parse_open if told.fields["content-type"] == OPEN else parse_text
    return {one.name: one for one in parse(told.body.decode())}


def value(told: Told, name: str, **labels: str) -> float:
    (found,) = (
        sample.value
        for family in families(told).values()
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )
    return found


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        (None, TEXT),
        ("*/*", TEXT),
        ("text/plain", TEXT),
        ("text/html", TEXT),
        ("nonsense", TEXT),
        ("application/openmetrics-text", OPEN),
        ("application/openmetrics-text; version=1.0.0; charset=utf-8", OPEN),
        ("text/plain;q=0.5,application/openmetrics-text;q=0.4", TEXT),
        (PROMETHEUS, OPEN),
    ],
)
def test_the_format_is_the_one_preferred(ask: Asker, accept: str | None, kind: str) -> None:
    told = ask("/metrics") if accept is None else ask("/metrics", HTTP_ACCEPT=accept)
    assert told.fields["content-type"] == kind
    assert told.fields["content-length"] == str(len(told.body))
    assert value(told, "lb_shared_state_up") == 1


def test_both_formats_tell_the_same(ask: Asker) -> None:
    text = families(ask("/metrics"))
    other = families(ask("/metrics", HTTP_ACCEPT="application/openmetrics-text"))
    assert {one.documentation for one in text.values()} == {one.documentation for one in other.values()}
    samples = [
        {(sample.name, tuple(sample.labels.items())) for one in found.values() for sample in one.samples}
        for found in (text, other)
    ]
    assert samples[0] == samples[1]
    assert other["lb_backend_requests"].type == "counter"
    assert other["lb_pool_algorithm"].type == "info"
    assert text["lb_backend_requests"].type == "counter"


def test_head_has_no_body(ask: Asker) -> None:
    told = ask("/metrics", "HEAD")
    assert (told.status, told.body) == (200, b"")
    assert int(told.fields["content-length"]) > 1000


def test_before_it_serves() -> None:
    assert Asker(Settings())("/metrics").status == 503


def test_every_name_keeps_to_the_rules() -> None:
    for name, family in FAMILIES.items():
        assert name.startswith("lb_")
        assert name.endswith("_total") == (family.kind == "counter")
        assert name.endswith("_info") == (family.kind == "info")
        assert set(family.labels) <= {"pool", "backend", "state", "algorithm", "version"}
        assert family.help.endswith(".")


def test_what_the_worker_class_knows(ask: Asker, service: Service) -> None:
    told = ask("/metrics")
    assert not {"lb_client_connections", "lb_event_loop_delay_seconds"} & families(told).keys()
    assert value(told, "lb_overload_refusals_total") == 0
    service.vitals.measure(lambda: Load(1, 2, 3, 0.25), lambda: 4)
    told = ask("/metrics")
    assert value(told, "lb_client_connections") == 1
    assert value(told, "lb_client_requests_in_flight") == 2
    assert value(told, "lb_overload_refusals_total") == 3
    assert value(told, "lb_event_loop_delay_seconds") == 0.25
    assert value(told, "lb_resident_memory_bytes") == 4


def test_names_that_a_line_could_be_forged_with(ask: Asker, registry: Registry) -> None:
    """Labels are escaped, in both formats."""
    name = 'x"}\\n{y="\\'
    registry.change("web", decide.add(Backend(name, "http://c:1")))
    for accept in ("text/plain", "application/openmetrics-text"):
        told = ask("/metrics", HTTP_ACCEPT=accept)
        assert value(told, "lb_backend_weight", backend=name) == 1


def test_a_pool_of_somebody_else_in_the_same_store(ask: Asker, registry: Registry) -> None:
    registry.change("theirs", declare(POOLS["web"]))
    told = ask("/metrics")
    assert value(told, "lb_pool_queued_requests", pool="theirs") == 0
    assert value(told, "lb_backend_weight", pool="theirs", backend="one") == 3


def test_without_the_store(lone: Asker, caplog: pytest.LogCaptureFixture) -> None:
    """What this worker knows, and nothing that it cannot."""
    caplog.set_level(logging.CRITICAL, "lb")
    assert lone.control.service is not None
    lone.control.service.start()
    told = lone("/metrics")
    found = families(told)
    assert not FLEET_ONLY & found.keys()
    assert value(told, "lb_shared_state_up") == 0
    assert value(told, "lb_workers_degraded") == 1
    assert value(told, "lb_backend_weight", backend="one") == 3
    assert value(told, "lb_backend_max_connections", backend="one") == 7
    assert value(told, "lb_pool_algorithm_info", pool="web", algorithm="least-connections") == 1
    other = families(lone("/metrics", HTTP_ACCEPT="application/openmetrics-text"))
    assert other.keys() == {name.removesuffix("_info") for name in found}


@pytest.fixture
def left(caplog: pytest.LogCaptureFixture) -> Iterator[Asker]:
    """A worker whose store has just gone, which it need not have noticed."""
    caplog.set_level(logging.CRITICAL, "lb")
    folder = Path(tempfile.mkdtemp(prefix="lb-t-"))
    store = start_or_join(folder)
    settings = Settings(runtime_dir=str(folder), pools=POOLS, log=LogSettings(access=""))
    client = connect(store_url("", folder))
    Registry(client).change("web", declare(POOLS["web"]))
    client.close()
    made = service_of(settings)
    made.start()
    assert not made.fleet.degraded
    store.leave()
    yield Asker(settings, made)
    made.stop()
    shutil.rmtree(folder)


def test_a_store_that_has_just_gone(left: Asker) -> None:
    """Whoever cannot read it says that it is away, before anybody has missed it."""
    told = left("/metrics")
    assert value(told, "lb_shared_state_up") == 0
    assert not FLEET_ONLY & families(told).keys()
    assert value(told, "lb_backend_weight", backend="one") == 3
