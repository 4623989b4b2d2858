from __future__ import annotations

from typing import Any

import msgspec
import pytest

from lb.health.policy import Overrides, check, effective, parse_status, seconds
from lb.model import HealthPolicy


def test_status_is_a_list_of_codes_and_ranges() -> None:
    assert parse_status("200") == {200}
    assert parse_status("200-202, 401") == {200, 201, 202, 401}
    assert len(parse_status("200-399")) == 200


@pytest.mark.parametrize(
    "text", ["", "abc", "200-", "399-200", "99", "099-200", "200-600", "200,,201", "2000", "-200", "٢٠٠"]
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="status"):
        parse_status(text)


@pytest.mark.parametrize(
    "fields",
    [
        {"path": "health"},
        {"path": "/a b"},
        {"path": "/a\r\nX-Evil: 1"},
        {"path": "/ä"},
        {"interval": float("nan")},
        {"interval": -1.0},
        {"timeout": 0.0},
        {"timeout": float("inf")},
        {"jitter": 1.1},
        {"jitter": -0.1},
        {"rise": 0},
        {"fall": 0},
        {"status": "ok"},
        {"type": "icmp"},
    ],
)
def test_a_policy_that_cannot_be_used_says_which_field(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))):
        check(HealthPolicy(**fields))


def test_the_command_line_fills_in_what_a_pool_leaves_open() -> None:
    line = Overrides(interval=7.0, path="/up", rise=1, fall=9, timeout=0.5, type="tcp", status="204")
    assert effective(HealthPolicy(), line) == HealthPolicy(
        interval=7.0, path="/up", rise=1, fall=9, timeout=0.5, type="tcp", status="204"
    )
    own = HealthPolicy(path="/own", interval=3.0, rise=4, fall=5, timeout=1.0, status="200")
    assert effective(own, line) == msgspec.structs.replace(own, type="tcp")


def test_no_backend_is_probed_more_often_than_ten_times_a_second() -> None:
    assert effective(HealthPolicy(interval=0.001), Overrides()).interval == 0.1


def test_without_options_only_the_interval_is_filled_in() -> None:
    assert effective(HealthPolicy(), Overrides(interval=2.5)) == HealthPolicy(interval=2.5)


@pytest.mark.parametrize("text", ["nan", "inf", "-1", "0", "0.05", "1e9", "x"])
def test_seconds_are_finite_and_not_below_the_least(text: str) -> None:
    with pytest.raises(ValueError):
        seconds(text, 0.1)
    assert seconds("0.1", 0.1) == 0.1
