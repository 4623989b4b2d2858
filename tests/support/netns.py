"""Hosts that are network namespaces of this machine, joined by cables that can be unplugged.

    HOST a ── 198.18.N.0/30 ── this machine ── 198.18.N.4/30 ── HOST b
       └─── 198.19.0.0/30 ─── HOST store ─── 198.19.0.4/30 ───┘

N is one for each test process: those addresses are this machine's. The others are seen by the hosts only.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator

import pytest

from tests.support.need import need_binary


class Wire:
    """The three hosts. `outside` is the address of this machine that both balancer hosts can reach."""

    def __init__(self, ip: str, stack: contextlib.ExitStack) -> None:
        self._ip = ip
        self._tag = f"lb{os.getpid()}"
        net = f"198.18.{os.getpid() % 250 + 1}"
        self.outside = f"{net}.1"
        #: The address of each balancer host as this machine sees it, and of the store as that host does.
        self.address = {"a": f"{net}.2", "b": f"{net}.6"}
        self.store = {"a": "198.19.0.2", "b": "198.19.0.6"}
        for host in ("a", "b", "store"):
            self.run("netns", "add", self.name(host))
            stack.callback(self.run, "netns", "del", self.name(host))
            self.run("-n", self.name(host), "link", "set", "dev", "lo", "up")
        for host, ours, inner in (("a", f"{net}.1", "198.19.0.1"), ("b", f"{net}.5", "198.19.0.5")):
            there = self.name(host)
            self.run("link", "add", f"{there}o", "type", "veth", "peer", "name", "out", "netns", there)
            # A namespace takes its cables with it, but may go only when its last connection has timed out.
            stack.callback(self.run, "link", "del", f"{there}o")
            self.run("addr", "add", f"{ours}/30", "dev", f"{there}o")
            self.run("link", "set", "dev", f"{there}o", "up")
            self._plug(there, "out", self.address[host])
            self.run("-n", there, "route", "add", "default", "via", ours)
            self.run(
                "-n",
                there,
                "link",
                "add",
                "store",
                "type",
                "veth",
                "peer",
                "name",
                host,
                "netns",
                self.name("store"),
            )
            self._plug(there, "store", inner)
            self._plug(self.name("store"), host, self.store[host])

    def _plug(self, where: str, device: str, address: str) -> None:
        self.run("-n", where, "addr", "add", f"{address}/30", "dev", device)
        self.run("-n", where, "link", "set", "dev", device, "up")

    def run(self, *arguments: str) -> None:
        """Run `ip ARGUMENTS`."""
        subprocess.run([self._ip, *arguments], check=True, capture_output=True, text=True, timeout=20)

    def name(self, host: str) -> str:
        """The name of its namespace."""
        return f"{self._tag}{host[0]}"

    def prefix(self, host: str) -> tuple[str, ...]:
        """What to put before a command that is to run there."""
        return (self._ip, "netns", "exec", self.name(host))

    def cut(self, host: str) -> None:
        """Unplug the cable between `host` and the store: what is sent is lost, and nothing says so."""
        self.run("-n", self.name("store"), "link", "set", "dev", host, "down")

    def mend(self, host: str) -> None:
        """Plug it in again."""
        self.run("-n", self.name("store"), "link", "set", "dev", host, "up")


@contextlib.contextmanager
def three_hosts() -> Iterator[Wire]:
    """Make them; the test is skipped where the system does not let us."""
    ip = need_binary("ip", "iproute2")
    if os.geteuid() != 0:
        pytest.skip("network namespaces take root")
    trial = f"lb{os.getpid()}t"
    tried = subprocess.run([ip, "netns", "add", trial], capture_output=True, text=True, timeout=20)
    if tried.returncode:
        pytest.skip(f"network namespaces are not allowed here: {tried.stderr.strip()}")
    subprocess.run([ip, "netns", "del", trial], check=True, timeout=20)
    with contextlib.ExitStack() as stack:
        yield Wire(ip, stack)
