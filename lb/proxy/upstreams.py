"""The backends of one pool as a worker reaches them: a `requests` session for all, an upstream for each."""

from __future__ import annotations

import re
import ssl
from urllib.parse import urlsplit

import requests

from lb.model import Backend
from lb.proxy.body import BodyReader
from lb.proxy.conn import Reactor
from lb.proxy.messages import ProxyRequest
from lb.proxy.transport import Transport
from lb.proxy.upstream import Upstream
from lb.settings import PoolConfig

_HOST_LINE = re.compile(rb"\r\nhost:[^\r]*", re.IGNORECASE)


class Upstreams:
    """`tls`: how `https://` backends are spoken to, as `config.tls` says."""

    def __init__(self, config: PoolConfig, reactor: Reactor | None, tls: ssl.SSLContext) -> None:
        self._config = config
        self._reactor = reactor
        self._tls = tls
        self._host = config.host
        self._known: dict[str, Upstream] = {}
        # A session is where adapters are mounted, and no more: its cookies, redirects, proxies and netrc are
        # nothing a proxy may have.
        self._session = requests.Session()
        transport = Transport(reactor, config.timeouts.idle, tls)
        for scheme in ("http://", "https://", "http+unix://"):
            self._session.mount(scheme, transport)

    def request(
        self, backend: Backend, method: str, target: str, head: bytes, body: BodyReader | bytes | None
    ) -> ProxyRequest:
        """The request with this `head` (whole) and `body`, for `backend`."""
        upstream = self._known.get(backend.url) or self._make(backend.url)
        if self._host:
            head = self._with_host(head, backend)
        return ProxyRequest(method, upstream, target, head, body)

    def _with_host(self, head: bytes, backend: Backend) -> bytes:
        """`head` with the Host that this pool's backends are to see."""
        host = self._host
        if host == "backend":
            host = urlsplit(backend.url).netloc if not backend.url.startswith("http+unix:") else "localhost"
        return _HOST_LINE.sub(b"\r\nHost: " + host.encode(), head, count=1)

    def _make(self, url: str) -> Upstream:
        settings = self._config.upstream
        upstream = Upstream(
            url,
            self._reactor,
            settings.max_idle,
            settings.idle_timeout,
            self._tls,
            self._config.tls.server_name,
        )
        upstream.send = self._session.get_adapter(url).send
        self._known[url] = upstream
        return upstream

    def accepts(self, url: str, timeout: float) -> bool | None:
        """As `Upstream.accepts`; None, too, for one that no request was sent to (any more)."""
        upstream = self._known.get(url)
        return None if upstream is None else upstream.accepts(timeout)

    def keep_only(self, urls: set[str]) -> None:
        """Forget the connections to backends that are no longer in the pool."""
        for url in self._known.keys() - urls:
            self._known.pop(url).close()

    def close(self) -> None:
        """Close all idle connections."""
        self.keep_only(set())
        self._session.close()
