"""`python loadtest/bench/fastest.py PYTHON...`: prints which of these interpreters is the fastest.

Builds of the same version differ by a quarter, depending on how they were optimised, and the interpreter is
part of what is measured. Left out is who cannot run or build the balancer: too old, without C headers.
Runs under any Python, before anything is installed.
"""

import subprocess
import sys

PROBE = """
import sys, sysconfig, os.path, time, venv
if sys.version_info < (3, 11) or not os.path.exists(sysconfig.get_path("include") + "/Python.h"):
    sys.exit(1)
class Thing:
    def __init__(self, n): self.n = n
    def add(self, table): table[self.n] = b"%b: %d\\r\\n" % (b"name", self.n)
def work():
    table = {}
    for n in range(20000): Thing(n).add(table)
    return b"".join(table.values()).count(b"\\r\\n")
best = 1e9
for _ in range(7):
    began = time.process_time(); work(); best = min(best, time.process_time() - began)
print(best)
"""


def seconds(python: str) -> float:
    """Processor time of the probe under `python`; infinity when it will not do."""
    try:
        done = subprocess.run([python, "-c", PROBE], capture_output=True, text=True, timeout=60, check=False)
        return float(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return float("inf")


def main() -> None:
    """Print the fastest of the arguments; the first of them when none will do."""
    found = sys.argv[1:]
    print(min(found, key=seconds))


if __name__ == "__main__":
    main()
