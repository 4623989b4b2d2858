"""`python -m loadtest`: see `loadtest.run`."""

from __future__ import annotations

from loadtest.run import main

if __name__ == "__main__":
    main(prog_name="python -m loadtest")
