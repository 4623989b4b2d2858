from __future__ import annotations

import io
import json

from lb.health.report import MOST, Log, printable


def test_what_is_not_printable_is_escaped_and_cut() -> None:
    assert printable("a\r\nb\x1b[31m\u202e\ud800") == "a\\r\\nb\\x1b[31m\\u202e\\ud800"
    assert printable("grün") == "grün"
    assert len(printable("x" * 10_000)) == MOST
    assert len(printable("\n" * 10_000)) == MOST


def test_one_line_for_people() -> None:
    out = io.StringIO()
    Log(stream=out)("change", "pool a\nFAKE LINE", "warning", reason="\x00")
    (line,) = out.getvalue().splitlines()
    assert line.endswith("Z lb-health: warning: pool a\\nFAKE LINE")


def test_one_object_for_machines() -> None:
    out = io.StringIO()
    Log(as_json=True, stream=out)("change", "text\n", pool="p\n", seconds=1.5)
    assert out.getvalue().count("\n") == 1
    line = json.loads(out.getvalue())
    assert line["event"] == "change"
    assert line["pool"] == "p\\n"
    assert line["seconds"] == 1.5
    assert line["message"] == "text\\n"
    assert line["level"] == "info"


def test_a_log_that_cannot_be_written_stops_nothing() -> None:
    out = io.StringIO()
    out.close()
    Log(stream=out)("event", "text")
