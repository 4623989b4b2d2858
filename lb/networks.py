"""Networks of clients, proxies and backends: is an address in one of them? Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from functools import lru_cache


class Networks:
    """`networks` are in CIDR notation. An IPv4 address within IPv6 (`::ffff:…`) counts as itself."""

    def __init__(self, networks: Iterable[str]) -> None:
        self._networks = tuple(ipaddress.ip_network(network) for network in networks)
        #: Are there none?
        self.empty = not self._networks
        self._found = lru_cache(maxsize=4096)(self._look_up)

    def have(self, address: str) -> bool:
        """Is `address` (perhaps with a scope) in one of them? What is no address is in none."""
        return not self.empty and self._found(address)

    def _look_up(self, text: str) -> bool:
        try:
            address = ipaddress.ip_address(text.partition("%")[0])
        except ValueError:
            return False
        mapped = getattr(address, "ipv4_mapped", None)
        return any((mapped or address) in network for network in self._networks)
