"""One row of the table of settings, and what rows have in common."""

from __future__ import annotations

import msgspec

#: Keys that are never shown, and have no flag: the arguments of a process are public.
SECRET = frozenset({"control_token", "pools.NAME.sticky.secret"})

#: Stands for the name of a pool in a key; an environment variable sets the pool `default`.
NAME = "NAME"

LOG_LEVELS = ("debug", "info", "warning", "error", "critical")


class Setting(msgspec.Struct, frozen=True):
    """One row. `env` "" means: in the file only. `low` and `high` are inclusive, of numbers only."""

    key: str
    env: str
    text: str
    unit: str = ""
    low: float = 0
    high: float = 0
    choices: tuple[str, ...] = ()

    @property
    def flag(self) -> str:
        """The flag of `lb serve`, "" if it has none."""
        if not self.env or self.key in SECRET:
            return ""
        return "--" + self.env.removeprefix("LB_").lower().replace("_", "-")

    @property
    def path(self) -> tuple[str, ...]:
        """Where the environment variable writes: the key with `default` for the pool's name."""
        return tuple("default" if part == NAME else part for part in self.key.split("."))

    @property
    def limits(self) -> bool:
        """Is it a number with a range?"""
        return self.high > self.low


DAY = 86400
MIB = 1 << 20
