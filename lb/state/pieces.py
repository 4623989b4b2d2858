"""Long work in a worker in pieces: between two of them it may see to its requests."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

PIECE = 500
"""Backends that are taken apart, or samples that are written, between two pauses."""

PAUSE = 0.001
"""Seconds between two pieces; more than none, or a worker's loop would not look at its sockets in between."""

T = TypeVar("T")


def pause() -> None:
    """Let others have a turn. By the module: in a worker with greenlets it is not the function it was."""
    time.sleep(PAUSE)


def in_pieces(items: Iterable[T], pause: Callable[[], None] | None) -> Iterator[T]:
    """The same items, with a pause, if there is one, after every `PIECE` of them."""
    for number, item in enumerate(items, 1):
        yield item
        if pause is not None and not number % PIECE:
            pause()
