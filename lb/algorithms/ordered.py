"""The algorithms that leave the choice to the order of the shared state: exact over the whole fleet.

They name no candidates: who is next follows from what all workers have done, which only the shared state
knows (`redis/order.lua`).
"""

from __future__ import annotations

from lb.algorithms.base import Algorithm


class RoundRobin(Algorithm):
    """Each backend in turn, whatever its weight."""

    name = "round-robin"
    order = "turns"


class WeightedRoundRobin(Algorithm):
    """Turns in proportion to the weights, interleaved: a fair queue (earliest deadline first; Demers, Keshav
    and Shenker, "Analysis and Simulation of a Fair Queueing Algorithm", 1989).
    """

    name = "weighted-round-robin"
    order = "weighted-turns"


class LeastConnections(Algorithm):
    """The backend with the fewest connections; equals take turns."""

    name = "least-connections"
    order = "load"


class WeightedLeastConnections(Algorithm):
    """The backend with the fewest connections over its weight; equals take turns."""

    name = "weighted-least-connections"
    order = "weighted-load"


class ResourceBased(Algorithm):
    """Turns in proportion to the weight times the share that a backend reports as free
    (`lb.algorithms.reports`).
    """

    name = "resource-based"
    order = "reported-turns"
