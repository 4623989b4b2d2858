"""Tables and JSON."""

from __future__ import annotations

import json

import pytest

from lb.cli.output import print_json, print_table


def test_text_is_shown_as_it_is_and_never_cut(capsys: pytest.CaptureFixture[str]) -> None:
    long = "http://" + "x" * 300
    print_table("[bold]title", ("a", "n"), [("[red]x[/red]", 1), (long, 1000)], numbers=("n",))
    title, head, first, second = capsys.readouterr().out.splitlines()
    assert title == "[bold]title"
    assert head.split() == ["a", "n"]
    assert first.split() == ["[red]x[/red]", "1"]
    assert second.split() == [long, "1000"]
    assert first.rstrip().endswith("   1")


def test_json_is_one_document(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": (1, "é")})
    out = capsys.readouterr().out
    assert out.endswith("}\n")
    assert json.loads(out) == {"a": [1, "é"]}
