"""`python -m lb.cli`."""

from __future__ import annotations

from lb.cli import main

main()
