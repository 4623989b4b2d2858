"""How hard the properties are tried: the same examples on every run, or many new ones under `make fuzz`.

`FUZZ_EXAMPLES` is the number for each property, `FUZZ_SECONDS` about the longest time for each.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from time import monotonic
from typing import Any, TypeVar

from hypothesis import HealthCheck, settings

F = TypeVar("F", bound=Callable[..., None])

FUZZ = int(os.environ.get("FUZZ_EXAMPLES", "0"))
SECONDS = float(os.environ.get("FUZZ_SECONDS", "60"))
ROUND = 500
"""Examples between two looks at the clock."""


def tried(examples: int) -> Callable[[F], F]:
    """To be put above `given`: so many `examples` in the suite."""
    chosen = settings(
        max_examples=min(FUZZ, ROUND) or examples,
        derandomize=not FUZZ,
        database=None,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )
    return chosen if not FUZZ else lambda function: _in_rounds(chosen(function))


def _in_rounds(function: F) -> F:
    @functools.wraps(function)
    def rounds(*args: Any, **kwargs: Any) -> None:
        until = monotonic() + SECONDS
        for _ in range(0, FUZZ, ROUND):
            function(*args, **kwargs)
            if monotonic() > until:
                break

    return rounds  # type: ignore[return-value]
