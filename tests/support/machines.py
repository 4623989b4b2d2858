"""Running hypothesis' state machines against a real store."""

from __future__ import annotations

import redis
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test


def run_on(client: redis.Redis, machine: type[RuleBasedStateMachine], examples: int, steps: int = 35) -> None:
    """Do so many `examples` of what `machine` can do, of at most `steps` each; `client` is in its class."""
    bound = type("BoundMachine", (machine,), {"client": client})
    run_state_machine_as_test(
        bound,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
