"""The balancing algorithms by name.

No I/O, no clock, no Redis: time and chance arrive as arguments. The exact picks are made by
`redis/order.lua` in the shared state; what stands here is what the rest of the program must know about them.
"""

from __future__ import annotations

#: The algorithms that `redis/order.lua` keeps an order for.
ALGORITHMS = (
    "round-robin",
    "weighted-round-robin",
    "least-connections",
    "weighted-least-connections",
)
DEFAULT_ALGORITHM = "round-robin"


def algorithm(name: str) -> type:
    class A:
        order = {
            "round-robin": "turns",
            "weighted-round-robin": "weighted-turns",
            "least-connections": "load",
            "weighted-least-connections": "weighted-load",
            "resource-based": "reported-turns",
        }[name]

    return A
