"""Long work is done in pieces."""

from __future__ import annotations

from time import monotonic

from lb.state.pieces import PAUSE, PIECE, in_pieces, pause


def test_there_is_a_pause_after_each_piece() -> None:
    pauses: list[int] = []
    seen: list[int] = []
    seen += in_pieces(range(3 * PIECE + 1), lambda: pauses.append(len(seen)))
    assert seen == list(range(3 * PIECE + 1))
    assert pauses == [PIECE, 2 * PIECE, 3 * PIECE]
    assert list(in_pieces(range(PIECE), None)) == list(range(PIECE))


def test_a_pause_takes_time() -> None:
    started = monotonic()
    pause()
    assert monotonic() - started >= PAUSE
