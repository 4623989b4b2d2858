"""`lb algorithm …` on a real store."""

from __future__ import annotations

from lb.algorithms import ALGORITHMS
from lb.model import HealthPolicy
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
