"""TLS at the front: gunicorn's own handling of it, the same path behind it."""

from __future__ import annotations

import hashlib
import http.client
import os
import ssl
import subprocess
from pathlib import Path

import pytest

from tests.support.backends import Backend, chunked, head_of, ok, once, serve
from tests.support.need import need_binary
from tests.support.processes import System


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `cert` and `key` for 127.0.0.1."""
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        [
            *(need_binary("openssl", "openssl"), "req", "-x509", "-newkey", "ec", "-nodes", "-days", "2"),
            *("-pkeyopt", "ec_paramgen_curve:prime256v1", "-subj", "/CN=test"),
            *("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", folder / "key", "-out", folder / "cert"),
        ],
        check=True,
        capture_output=True,
    )
    return folder


@pytest.mark.parametrize("worker", ["gevent", "gthread"])
def test_tls(system: System, certificate: Path, worker: str) -> None:
    content = os.urandom(300_000)
    with Backend(serve(lambda seen: ok(hashlib.sha256(seen.body).hexdigest().encode()))) as backend:
        balancer = system.balancer(
            backends=backend.url,
            worker=worker,
            options=("--certfile", str(certificate / "cert"), "--keyfile", str(certificate / "key")),
            wait=False,
        )
        trust = ssl.create_default_context(cafile=str(certificate / "cert"))
        balancer.process.until(lambda: "shared state in use" in balancer.process.err, "the worker to serve")
        connection = http.client.HTTPSConnection("127.0.0.1", balancer.port, timeout=20, context=trust)
        connection.request("GET", "/secret")
        assert connection.getresponse().read().decode() == hashlib.sha256(b"").hexdigest()
        connection.request("POST", "/up", content)
        assert connection.getresponse().read().decode() == hashlib.sha256(content).hexdigest()
        backend.hang_up()
        backend.script = once(head_of(200, "Transfer-Encoding: chunked") + chunked(content, b"end"))
        connection.request("GET", "/down")
        assert connection.getresponse().read() == content + b"end"
        connection.close()
        first = backend.requests[0]
        assert first.target == "/secret"
        assert first.values("X-Forwarded-Proto") == ["https"]
        assert first.values("X-Forwarded-Port") == [str(balancer.port)]
        control = http.client.HTTPSConnection("127.0.0.1", balancer.control, timeout=20, context=trust)
        control.request("GET", "/readyz")
        assert control.getresponse().status == 200
        control.close()
        balancer.idle()
        assert balancer.logged("/up")["status"] == 200
        assert balancer.stop() == 0
