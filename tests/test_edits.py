"""Changes of fields that a route asks for."""

from __future__ import annotations

from lb.edits import edits
from lb.settings import FieldEdits

LINES = b"Host: h\r\nX-A: 1\r\nx-a: 2\r\nB: {host}\r\n"


def test_nothing_to_do_is_nothing() -> None:
    assert edits(FieldEdits()) is None


def test_set_replaces_add_appends_remove_takes_out() -> None:
    made = edits(FieldEdits(set={"X-a": "{client_ip}"}, add={"B": "2 {path}"}, remove=("host",)))
    assert made is not None
    after = made.apply(LINES, {"client_ip": "10.0.0.1", "path": "/x"})
    assert after == b"B: {host}\r\nX-a: 10.0.0.1\r\nB: 2 /x\r\n"
