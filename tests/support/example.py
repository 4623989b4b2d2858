"""The algorithm that docs/algorithms.md shows, installed as a reader would install it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "algorithms.md"


def blocks() -> dict[str, str]:
    """The files that the page shows, by name."""
    text = PAGE.read_text().partition("## Your own")[2]
    return dict(re.findall(r"^`([a-z_.]+)`\n\n```[a-z]+\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))


def install(source: Path, target: Path) -> Path:
    """Write them to the folder `source`, build that and install it into `target`, without a network."""
    for name, text in blocks().items():
        (source / name).write_text(text)
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"),
            *("--no-build-isolation", "--disable-pip-version-check", "--target", str(target), str(source)),
        ],
        check=True,
        timeout=50,
    )
    return target
