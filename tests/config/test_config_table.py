"""The one table: it covers every setting, and the page made from it is current."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lb.config_checks import check_value
from lb.config_rows import TABLE, Setting
from lb.config_table import BY_ENV, BY_KEY, LEAVES, markdown

ROOT = Path(__file__).parents[2]


def test_every_setting_has_a_row_and_every_row_a_setting() -> None:
    assert set(BY_KEY) == set(LEAVES)
    assert len(BY_KEY) == len(TABLE)


def test_every_setting_outside_of_lists_has_a_variable() -> None:
    assert [row.key for row in TABLE if not row.env] == [row.key for row in TABLE if "[]" in row.key]
    assert len({row.env for row in TABLE if row.env}) == len(BY_ENV)


def test_names_that_others_rely_on() -> None:
    names = {
        "LB_BIND": "bind",
        "LB_CONTROL_BIND": "control_bind",
        "LB_CONTROL_TOKEN": "control_token",
        "LB_REDIS_URL": "redis_url",
        "LB_BACKENDS": "pools.NAME.backends",
        "LB_ALGORITHM": "pools.NAME.algorithm",
        "LB_WORKERS": "workers",
        "LB_RUNTIME_DIR": "runtime_dir",
    }
    assert {name: BY_ENV[name].key for name in names} == names


def test_the_token_has_no_flag() -> None:
    assert BY_KEY["control_token"].flag == ""
    assert BY_KEY["workers"].flag == "--workers"


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.key)
def test_every_default_may_be_written(row: Setting) -> None:
    key = row.key
    leaf = LEAVES[key]
    if not leaf.required:
        assert check_value(key, leaf.default) == leaf.default


@pytest.mark.parametrize(
    "row", [row for row in TABLE if LEAVES[row.key].type in (int, float)], ids=lambda row: row.key
)
def test_every_number_has_a_range(row: Setting) -> None:
    assert row.limits


def test_the_page_is_current() -> None:
    assert (ROOT / "docs" / "settings.md").read_text() == markdown(), "run `make docs`"


def test_the_page_is_printed() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lb.config_table"], capture_output=True, text=True, check=True
    )
    assert done.stdout == markdown()
