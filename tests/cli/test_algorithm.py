"""`lb algorithm …` on a real store."""

from __future__ import annotations

import pytest

from lb.algorithms import ALGORITHMS
from lb.model import Canary, HealthPolicy
from lb.settings import PoolConfig
from lb.state import decide
from lb.state.registry import Registry
from tests.cli.conftest import Lb


def test_list(lb: Lb) -> None:
    assert lb("algorithm", "list").out.split()[0] == ALGORITHMS[0]
    assert lb("algorithm", "list", "--json").json == {
        "algorithms": list(ALGORITHMS),
        "default": "round-robin",
    }


def test_get_and_set_leave_the_rest_alone(lb: Lb, registry: Registry) -> None:
    registry.change("default", decide.declare(PoolConfig(health=HealthPolicy(path="/up"))))
    assert lb("algorithm", "get").out == "round-robin\n"
    assert (
        lb("algorithm", "set", "weighted-least-connections").out
        == "pool default: weighted-least-connections\n"
    )
    assert lb("algorithm", "get", "--json").json == {
        "pool": "default",
        "algorithm": "weighted-least-connections",
        "canary": None,
    }
    assert registry.load("default").settings.health.path == "/up"


def test_set_names_what_is_meant(lb: Lb, registry: Registry) -> None:
    registry.change("default", decide.declare(PoolConfig()))
    result = lb("algorithm", "set", "round-robbin")
    assert result.code == 2
    assert "'round-robbin' is no algorithm; did you mean 'round-robin'?" in result.err
    for name in ALGORITHMS:
        assert lb("algorithm", "set", name).code == 0
        assert registry.load("default").settings.algorithm == name


def test_a_canary_is_begun_shown_and_ended(lb: Lb, registry: Registry) -> None:
    registry.change("default", decide.declare(PoolConfig("random")))
    result = lb("algorithm", "set", "least-time", "--canary", "10%")
    assert result == (0, "pool default: least-time for 0.1 of the picks\n", "")
    settings = registry.load("default").settings
    assert (settings.algorithm, settings.canary) == ("random", Canary("least-time", 0.1))
    assert lb("algorithm", "get").out == "random, least-time for 0.1 of the picks\n"
    assert lb("algorithm", "get", "--json").json == {
        "pool": "default",
        "algorithm": "random",
        "canary": {"algorithm": "least-time", "share": 0.1},
    }
    ended = lb("algorithm", "set", "least-time", "--canary", "0%")
    assert ended.out == "pool default: least-time is no longer tried out\n"
    assert lb("algorithm", "get").out == "random\n"
    lb("algorithm", "set", "least-time", "--canary", "0.5")
    assert lb("algorithm", "set", "least-time", "--canary", "100%").out == "pool default: least-time\n"
    settings = registry.load("default").settings
    assert (settings.algorithm, settings.canary) == ("least-time", None)


@pytest.mark.parametrize(
    ("share", "text"),
    [
        ("a lot", "'a lot' is no share; write 10% or 0.1"),
        ("%", "'%' is no share"),
        ("101%", "'101%' is out of range; use 0% to 100%"),
        ("-0.1", "'-0.1' is out of range"),
        ("10", "'10' is out of range"),
        ("nan", "'nan' is out of range"),
        ("inf%", "'inf%' is out of range"),
    ],
)
def test_what_is_no_share(lb: Lb, registry: Registry, share: str, text: str) -> None:
    registry.change("default", decide.declare(PoolConfig()))
    result = lb("algorithm", "set", "random", "--canary", share)
    assert result.code == 2
    assert text in result.err
    assert registry.load("default").settings.canary is None
