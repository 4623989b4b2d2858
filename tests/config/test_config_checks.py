"""What each value may be."""

from __future__ import annotations

import pytest

from lb.config_checks import check_value, did_you_mean, is_private, mask, split_bind


@pytest.mark.parametrize(
    ("key", "value", "normal"),
    [
        ("bind", ":8000", "0.0.0.0:8000"),
        ("bind", "localhost:1", "localhost:1"),
        ("bind", "[::1]:65535", "[::1]:65535"),
        ("bind", "unix:/run/lb/data.sock", "unix:/run/lb/data.sock"),
        ("control_token", "aB3-._~+/==", "aB3-._~+/=="),
        ("redis_url", "", ""),
        ("redis_url", "redis://h", "redis://h"),
        (
            "redis_url",
            "rediss://u:p%40ss@h:6380/3?ssl_cert_reqs=none",
            "rediss://u:p%40ss@h:6380/3?ssl_cert_reqs=none",
        ),
        ("redis_url", "unix:///run/redis.sock?db=1", "unix:///run/redis.sock?db=1"),
        ("log.access", "off", ""),
        ("log.access", "/var/log/lb.log", "/var/log/lb.log"),
        ("pools.NAME.backends[].url", "HTTP://Host/", "http://host:80"),
        ("pools.NAME.backends[].id", "10.0.0.1:80", "10.0.0.1:80"),
        ("pools.NAME.backends[].id", "[::1]:80+tls", "[::1]:80+tls"),
        ("pools.NAME.backends[].zone", "eu-west_1.a", "eu-west_1.a"),
        ("zone", "", ""),
        ("pools.NAME.tls.server_name", "Backend.Example.", "backend.example"),
        ("pools.NAME.tls.server_name", "[::1]", "::1"),
        ("pools.NAME.tls.server_name", "", ""),
        ("tls.min_version", "1.3", "1.3"),
        ("pools.NAME.health.path", "/healthz?full=1", "/healthz?full=1"),
        ("pools.NAME.health.status", " 200-299 , 401 ", "200-299,401"),
        ("pools.NAME.outlier.unhealthy_status", "500, 502-504", "500,502-504"),
        ("pools.NAME.outlier.unhealthy_status", " ", ""),
        ("routes[].host", "*.Example.COM.", "*.example.com"),
        ("routes[].host", "*", ""),
        ("routes[].host", "[2001:DB8::1]", "[2001:db8::1]"),
        ("routes[].path", "/api/v1", "/api/v1"),
        ("pools.NAME.hash.key", "ip", "ip"),
        ("pools.NAME.hash.key", "path", "path"),
        ("pools.NAME.hash.key", "header:X-Tenant", "header:X-Tenant"),
        ("pools.NAME.hash.key", "cookie:sid", "cookie:sid"),
        ("pools.NAME.hash.balance", 0, 0),
        ("pools.NAME.hash.balance", 1.01, 1.01),
        ("workers", 0, 0),
        ("pools.NAME.health.jitter", 1.0, 1.0),
    ],
)
def test_good_values_get_their_normal_form(key: str, value: object, normal: object) -> None:
    assert check_value(key, value) == normal


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("bind", "0.0.0.0", "has no port"),
        ("bind", "0.0.0.0:0", "out of range"),
        ("bind", "0.0.0.0:65536", "out of range"),
        ("bind", "0.0.0.0:٣", "has no port"),
        ("bind", "::1:80", "needs brackets"),
        ("bind", "[::g]:80", "no IPv6 address"),
        ("bind", "256.0.0.1:80", "no IPv4 address"),
        ("bind", "a b:80", "no host name"),
        ("bind", "unix:run.sock", "no absolute path"),
        ("bind", "unix:/" + "x" * 107, "107 bytes"),
        ("control_token", "a\r\nb", "letters"),
        ("pools.NAME.tls.server_name", "*.example", "no name of a server"),
        ("pools.NAME.tls.server_name", "a.example:443", "must be a host alone"),
        ("tls.min_version", "1.1", "not known"),
        ("redis_url", "redis+cluster://h", "must start with one of redis://, rediss://, unix://"),
        ("redis_url", "redis://", "names no host"),
        ("redis_url", "redis://h:0", "port 0"),
        ("redis_url", "redis://h:99999", "is no URL"),
        ("redis_url", "unix://", "names no socket"),
        ("runtime_dir", "/" + "x" * 100, "too long"),
        ("log.access", "a\nb", "line end"),
        ("pools.NAME.backends[].url", "http://h:0", "port 0"),
        ("pools.NAME.backends[].url", "http://h/path", "must end after"),
        ("pools.NAME.backends[].id", "_", "is no id"),
        ("pools.NAME.backends[].id", "a b", "is no id"),
        ("pools.NAME.backends[].zone", "a/b", "is no name of a zone"),
        ("zone", "-a", "is no name of a zone"),
        ("pools.NAME.zone_threshold", 1.1, "use 0 to 1"),
        ("pools.NAME.backends[].id", "x" * 256, "is no id"),
        ("pools.NAME.health.path", "healthz", "must start with /"),
        ("pools.NAME.health.path", "/a b", "white space"),
        ("pools.NAME.health.path", "/a\r\nX: y", "white space"),
        ("pools.NAME.health.status", "", "no status"),
        ("pools.NAME.health.status", "2xx", "is no status"),
        ("pools.NAME.outlier.unhealthy_status", "429,503", "is no fault of backends"),
        ("pools.NAME.outlier.unhealthy_status", "499-503", "is no fault of backends"),
        ("pools.NAME.health.status", "99", "is no status"),
        ("pools.NAME.health.status", "200-600", "is no status"),
        ("pools.NAME.health.status", "300-200", "runs backwards; write 200-300"),
        ("routes[].host", "example.com:80", "host alone"),
        ("routes[].host", "http://example.com", "host alone"),
        ("routes[].host", "a.*.com", "no host name"),
        ("routes[].path", "/a?b", "leave out"),
        ("routes[].pool", "a}b", "no pool name"),
        ("pools.NAME.algorithm", "iphash", "is no algorithm; did you mean 'ip-hash'?"),
        ("pools.NAME.hash.key", "", "write ip, path, header:NAME or cookie:NAME"),
        ("pools.NAME.hash.key", "header", "is nothing to hash by"),
        ("pools.NAME.hash.key", "header:", "is nothing to hash by"),
        ("pools.NAME.hash.key", "header:A B", "is nothing to hash by"),
        ("pools.NAME.hash.key", "ip:", "is nothing to hash by"),
        ("pools.NAME.hash.key", "query:q", "is nothing to hash by"),
        ("pools.NAME.hash.balance", 1, "leaves no room above the shares"),
        ("pools.NAME.hash.balance", 0.5, "use more than 1, such as 1.25, or 0"),
        ("pools.NAME.hash.balance", -1, "is out of range"),
        ("log.level", "loud", "is not known"),
        ("pools.NAME.retry.attempts", 0, "use 1 to 100"),
        ("pools.NAME.health.jitter", 1.01, "use 0 to 1"),
    ],
)
def test_bad_values(key: str, value: object, why: str) -> None:
    with pytest.raises(ValueError) as caught:
        check_value(key, value)
    assert why in str(caught.value)


@pytest.mark.parametrize(
    ("bind", "private"),
    [
        ("127.0.0.1:1", True),
        ("127.9.9.9:1", True),
        ("localhost:1", True),
        ("[::1]:1", True),
        ("unix:/x", True),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("10.0.0.1:1", False),
        ("example.com:1", False),
        ("localhost.example.com:1", False),
    ],
)
def test_who_can_reach_an_address(bind: str, private: bool) -> None:
    assert is_private(bind) is private


def test_split_bind() -> None:
    assert split_bind("[::1]:80") == ("::1", 80)
    assert split_bind("unix:/a") == "/a"


def test_mask() -> None:
    assert mask("redis://user:p@ss@host:1/2 and http://x@y") == "redis://***@host:1/2 and http://***@y"
    assert mask("redis://h?db=1&ssl_password=x&a=b") == "redis://h?db=1&ssl_password=***&a=b"
    assert mask("http://host/path") == "http://host/path"


def test_did_you_mean() -> None:
    assert did_you_mean("wieght", ["weight", "url"]) == "; did you mean 'weight'?"
    assert did_you_mean("zzz", ["weight", "url"]) == "; there are url, weight"
    assert did_you_mean("zzz", []) == ""
