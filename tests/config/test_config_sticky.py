"""What the settings of a sticky session's cookie may be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lb.config import read
from lb.config_sticky import check_cookie, check_cookie_path, check_secret, sticky_problems
from lb.settings import StickySettings


@pytest.mark.parametrize("name", ["", "lb", "__Host-lb", "a.b!#$%&'*+-^_`|~9"])
def test_names(name: str) -> None:
    assert check_cookie(name) == name


@pytest.mark.parametrize("name", ["a b", "a=b", "a;b", "a,b", '"a"', "ä", "a\r\nb", "a\n", "x" * 65, "a/b"])
def test_what_is_no_name(name: str) -> None:
    with pytest.raises(ValueError, match="no name of a cookie"):
        check_cookie(name)


@pytest.mark.parametrize("path", ["/", "/shop/%20=,a:b"])
def test_paths(path: str) -> None:
    assert check_cookie_path(path) == path


@pytest.mark.parametrize("path", ["", "shop", "/a;b", "/a b", "/\r\nX: y", "/ä", "/a\n"])
def test_what_is_no_path(path: str) -> None:
    with pytest.raises(ValueError, match="must start with /"):
        check_cookie_path(path)


def test_a_secret_is_long_and_never_repeated() -> None:
    assert check_secret("") == ""
    assert check_secret("x" * 16) == "x" * 16
    with pytest.raises(ValueError, match="fewer than 16") as caught:
        check_secret("hunter2")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("how", "keys"),
    [
        ({"same_site": "none", "secure": "never"}, ["same_site"]),
        ({"same_site": "none", "secure": "auto"}, []),
        ({"cookie": "__Secure-a"}, ["cookie"]),
        ({"cookie": "__secure-a", "secure": "always", "path": "/x"}, []),
        ({"cookie": "__Host-a", "path": "/x"}, ["cookie", "path"]),
        ({"cookie": "__Host-a", "secure": "always"}, []),
    ],
)
def test_what_browsers_refuse(how: dict[str, Any], keys: list[str]) -> None:
    assert [key for key, _ in sticky_problems(StickySettings(**how))] == keys


def test_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "lb.toml"
    file.write_text('[pools.a.sticky]\ncookie = "lb"\nsame_site = "none"\nsecure = "never"\nsecret = 7\n')
    (problem,) = read(str(file), {}).problems
    assert problem == f'{file}:5: pools.a.sticky.secret: must be text in quotes, "…"'
    file.write_text('[pools.a.sticky]\ncookie = "lb"\nsame_site = "none"\nsecure = "never"\n')
    (problem,) = read(str(file), {}).problems
    assert problem.startswith(f"{file}:3: pools.a.sticky.same_site: browsers refuse")
    loaded = read(str(tmp_path / "lb.toml"), {"LB_STICKY_SECRET": "hunter2"})
    assert "hunter2" not in str(loaded.problems)
