"""The balancing algorithms by name: those built in, and those that installed packages bring.

A package brings one by an entry point in the group `lb.algorithms`, named as the algorithm is, that points at
a subclass of `lb.algorithms.base.Algorithm`. The names of the built-in ones are taken. What is installed is
looked up when a name is asked for that is not built in, and loaded when it is used, so that a broken package
is in nobody's way who does not use it.

Importing this module imports none of the algorithms.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, get_args

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from lb.algorithms.base import Algorithm

GROUP = "lb.algorithms"
"""The entry-point group."""

_BUILT_IN = {
    "round-robin": ("ordered", "RoundRobin"),
    "weighted-round-robin": ("ordered", "WeightedRoundRobin"),
    "least-connections": ("ordered", "LeastConnections"),
    "weighted-least-connections": ("ordered", "WeightedLeastConnections"),
    "ip-hash": ("hashing", "IpHash"),
    "resource-based": ("ordered", "ResourceBased"),
    "random": ("chance", "Random"),
    "power-of-two-choices": ("chance", "PowerOfTwoChoices"),
    "least-time": ("chance", "LeastTime"),
    "consistent-hash": ("hashing", "ConsistentHash"),
}

#: The algorithms built in.
ALGORITHMS = tuple(_BUILT_IN)
DEFAULT_ALGORITHM = "round-robin"

_NAME = re.compile(r"[a-z][a-z0-9-]{0,62}")


class UnknownAlgorithm(ValueError):
    """There is no algorithm of that name, neither built in nor installed."""


class BrokenAlgorithm(ValueError):
    """An installed algorithm cannot be used; the text names its entry point and distribution."""


@cache
def _installed() -> Mapping[str, tuple[EntryPoint, ...]]:
    from importlib.metadata import entry_points

    found: dict[str, tuple[EntryPoint, ...]] = {}
    for entry in entry_points(group=GROUP):
        if entry not in found.get(entry.name, ()):  # an editable install can be listed twice
            found[entry.name] = (*found.get(entry.name, ()), entry)
    return MappingProxyType(found)


def names() -> tuple[str, ...]:
    """All there are: those built in, then the installed ones by name, loaded or not."""
    return ALGORITHMS + tuple(sorted(name for name in _installed() if name not in _BUILT_IN))


def faults() -> tuple[str, ...]:
    """What is wrong with installed algorithms, a line each. Loads them all."""
    found = [
        f"{_where(entry)} takes the name of an algorithm that is built in, and is not used"
        for name, entries in _installed().items()
        if name in _BUILT_IN
        for entry in entries
    ]
    for name in names()[len(ALGORITHMS) :]:
        try:
            algorithm(name)
        except BrokenAlgorithm as exc:
            found.append(str(exc))
    return tuple(found)


@cache
def algorithm(name: str) -> type[Algorithm]:
    """The class of an algorithm. Raises UnknownAlgorithm, or BrokenAlgorithm where it is installed but
    unusable.
    """
    known = _BUILT_IN.get(name)
    if known is not None:
        module, attribute = known
        built_in: type[Algorithm] = getattr(import_module(f"{__name__}.{module}"), attribute)
        return built_in
    entries = _installed().get(name, ())
    if not entries:
        raise UnknownAlgorithm(f"{name!r} is no algorithm")
    if len(entries) > 1:
        raise BrokenAlgorithm(f"the algorithm {name!r} is there twice: {' and '.join(map(_where, entries))}")
    return _load(entries[0])


def _load(entry: EntryPoint) -> type[Algorithm]:
    if not _NAME.fullmatch(entry.name):
        raise BrokenAlgorithm(
            f"{_where(entry)}: the name of an algorithm is lower-case letters, digits and -, a letter first"
        )
    try:
        found = entry.load()
    except Exception as exc:
        raise BrokenAlgorithm(f"{_where(entry)} cannot be loaded: {type(exc).__name__}: {exc}") from exc
    fault = _fault(entry.name, found)
    if fault:
        raise BrokenAlgorithm(f"{_where(entry)} {fault}")
    kind: type[Algorithm] = found
    return kind


def _fault(name: str, found: object) -> str:
    """What keeps an object from being the algorithm `name`; "" if nothing does."""
    from inspect import isabstract

    from lb.algorithms.base import Algorithm, Order, Rule

    if not isinstance(found, type) or not issubclass(found, Algorithm):
        return "is no subclass of lb.algorithms.base.Algorithm"
    if isabstract(found):
        return "is abstract"
    own = getattr(found, "name", None)
    if own != name:
        return f"calls itself {own!r}: entry point and class need the same name"
    if found.rule is not None and found.rule not in get_args(Rule):
        return f"has the rule {found.rule!r}; there are {', '.join(get_args(Rule))}"
    if found.order not in get_args(Order):
        return f"has the order {found.order!r}; there are {', '.join(get_args(Order))}"
    if (found.rule is None) != (found.candidates is Algorithm.candidates):
        return "needs both rule and candidates, or neither"
    return ""


def _where(entry: EntryPoint) -> str:
    dist = entry.dist
    owner = f" of {dist.name} {dist.version}" if dist else ""
    return f"the entry point {entry.name!r} ({entry.value}){owner}"
