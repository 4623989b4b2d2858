"""A configuration with two pools: one that is asked by everybody, and one of a host of its own."""

from __future__ import annotations

from collections.abc import Iterable

_TEXT = """\
[pools.default]
backends = [{urls}]
[pools.{other}]
backends = [{{url = "{url}"}}]
[[routes]]
host = "{other}.example"
pool = "{other}"
[[routes]]
path = "/"
pool = "default"
"""


def two_pools(urls: Iterable[str], other: str, url: str) -> str:
    """The pool `default` of `urls`, and `other` of the one backend `url`, for the host `other`.example."""
    return _TEXT.format(urls=", ".join(f'{{url = "{one}"}}' for one in urls), other=other, url=url)
