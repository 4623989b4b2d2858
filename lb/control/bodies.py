"""The bodies of requests: their shape, and how one is read, with everything that is wrong with it at once."""

from __future__ import annotations

import time
import types
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints
from urllib.parse import quote

import falcon
import msgspec
from msgspec import UNSET, Meta, UnsetType

from lb.algorithms import reports
from lb.config_checks import check_value, did_you_mean, mask
from lb.config_table import BY_KEY
from lb.control.problems import Fault, Problem
from lb.errors import ClientError, ClientGone
from lb.model import MAX_WEIGHT

MOST = 64 * 1024
"""Bytes of a body that are read at most."""

MAX_CONNECTIONS = int(BY_KEY["pools.NAME.backends[].max_connections"].high)

Url = Annotated[str, Meta(description="`http://host:port` or `https://host:port`", max_length=2048)]
Weight = Annotated[int, Meta(ge=0, le=MAX_WEIGHT, description="share of the traffic; 0: no new requests")]
Cap = Annotated[
    int, Meta(ge=0, le=MAX_CONNECTIONS, description="requests at a time from the whole fleet; 0: any number")
]
Id = Annotated[
    str,
    Meta(
        description="its name; empty: host and port of the URL",
        max_length=255,
        extra_json_schema={"pattern": r"^([A-Za-z0-9\[%][A-Za-z0-9._:+\[\]%~@-]*)?$"},
    ),
]
Zone = Annotated[
    str,
    Meta(
        description="where it stands; empty: in no zone",
        max_length=63,
        extra_json_schema={"pattern": r"^([A-Za-z0-9][A-Za-z0-9._-]*)?$"},
    ),
]
Name = Annotated[str, Meta(description="the name of an algorithm", max_length=63)]
Used = Annotated[float, Meta(ge=0, le=1, description="share in use, 0 (idle) to 1 (all of it)")]
Running = Annotated[int, Meta(ge=0, le=2**31, description="requests that it is working on")]
Capacity = Annotated[int, Meta(ge=1, le=2**31, description="requests that it can work on")]
Part = Annotated[float, Meta(gt=0, lt=1, description="share of the picks, above 0 and below 1")]


class NewBackend(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A backend to add."""

    url: Url
    weight: Weight = 1
    max_connections: Cap = 0
    id: Id = ""
    zone: Zone = ""


class BackendReport(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How busy a backend is, for `resource-based`: at least one share, or `running` and `capacity`."""

    cpu: Used | None = None
    memory: Used | None = None
    load: Used | None = None
    running: Running | None = None
    capacity: Capacity | None = None

    def checked(self) -> reports.Report:
        """The report, as of now. Raises ValueError where it says nothing."""
        return reports.check(
            reports.Report(time.time(), self.cpu, self.memory, self.load, self.running, self.capacity)
        )


class BackendChange(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What to change of a backend; what is left out stays. `admin` "ready" also forgets that it was found
    down, and ends its ejection.
    """

    weight: Weight | UnsetType = UNSET
    max_connections: Cap | UnsetType = UNSET
    zone: Zone | UnsetType = UNSET
    admin: Literal["ready", "drain"] | UnsetType = UNSET
    report: BackendReport | UnsetType = UNSET


class CanaryChoice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An algorithm to try out beside the pool's own."""

    algorithm: Name
    share: Part


class AlgorithmChoice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a pool shall choose, as a whole: without `canary` nothing is tried out (any more)."""

    algorithm: Name
    canary: CanaryChoice | None = None


_SETTINGS = {
    "url": "pools.NAME.backends[].url",
    "id": "pools.NAME.backends[].id",
    "zone": "pools.NAME.backends[].zone",
    "algorithm": "pools.NAME.algorithm",
}
"""The setting by whose rules the text of a field is checked."""

S = TypeVar("S", bound=msgspec.Struct)


def read(req: falcon.Request, kind: type[S]) -> S:
    """The body of `req` as a `kind`. Raises Problem: 400, 413, 415, or 422 with every fault and its place."""
    raw = _raw(req)
    try:
        value = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
        raise Problem(400, f"the body is not JSON: {exc}") from None
    faults: list[Fault] = []
    made = _struct(kind, value, "#", faults)
    if isinstance(made, BackendChange):
        _check_change(made, faults)
    if faults or not isinstance(made, kind):
        raise invalid(*faults)
    return made


def invalid(*faults: Fault) -> Problem:
    """The problem with a body that can be read but not taken."""
    return Problem(422, "; ".join(f"{fault.pointer}: {fault.detail}" for fault in faults[:3]), faults)


def _raw(req: falcon.Request) -> bytes:
    kind = str(req.env.get("CONTENT_TYPE", "")).partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Problem(415, "send Content-Type: application/json", headers={"Accept": "application/json"})
    if req.env.get("HTTP_CONTENT_ENCODING", "identity").strip().lower() not in ("", "identity"):
        raise Problem(415, "send the body as it is, without Content-Encoding")
    length = str(req.env.get("CONTENT_LENGTH") or "")
    chunked = "chunked" in req.env.get("HTTP_TRANSFER_ENCODING", "").lower()
    most = MOST + 1
    if length.isdigit() and not chunked:
        most = min(int(length), most)
    elif not chunked:
        most = 0
    try:
        body: bytes = req.env["wsgi.input"].read(most) if most > 0 else b""
        if most > MOST and len(body) <= MOST and not chunked:
            raise Problem(400, "the body ends before its length")
    except ClientGone:
        raise
    except ClientError as exc:
        raise Problem(exc.status, str(exc)) from None
    except OSError:
        raise Problem(400, "the body cannot be read") from None
    if len(body) > MOST:
        raise Problem(413, f"a body has at most {MOST} bytes here")
    return body


def _struct(kind: type[msgspec.Struct], raw: object, at: str, faults: list[Fault]) -> msgspec.Struct | None:
    if not isinstance(raw, dict):
        faults.append(Fault(at, "must be an object"))
        return None
    before = len(faults)
    fields = {field.name: field for field in msgspec.structs.fields(kind)}
    for name in raw:
        if name not in fields:
            shown = str(name)[:64]
            faults.append(
                Fault(f"{at}/{_escaped(shown)}", f"there is no such key{did_you_mean(shown, fields)}")
            )
    values: dict[str, Any] = {}
    hints: Mapping[str, Any] = get_type_hints(kind, include_extras=True)
    for name, field in fields.items():
        if name in raw:
            values[name] = _value(name, hints[name], raw[name], f"{at}/{name}", faults)
        elif field.required:
            faults.append(Fault(at, f"{name!r} is missing"))
    return kind(**values) if len(faults) == before else None


def _value(name: str, kind: Any, raw: object, at: str, faults: list[Fault]) -> object:
    inner = _struct_in(kind)
    if inner is not None and not (raw is None and type(None) in get_args(kind)):
        return _struct(inner, raw, at, faults)
    try:
        value = msgspec.convert(raw, kind)
        return check_value(_SETTINGS[name], value) if name in _SETTINGS else value
    except ValueError as exc:  # msgspec's is one
        faults.append(Fault(at, mask(str(exc))))
        return None


def _struct_in(kind: Any) -> type[msgspec.Struct] | None:
    options = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    for option in options:
        if isinstance(option, type) and issubclass(option, msgspec.Struct):
            return option
    return None


def _check_change(change: BackendChange, faults: list[Fault]) -> None:
    if change == BackendChange():
        faults.append(Fault("#", "changes nothing; give weight, max_connections, zone, admin or report"))
    elif not isinstance(change.report, UnsetType):
        try:
            change.report.checked()
        except ValueError as exc:
            faults.append(Fault("#/report", str(exc)))


def _escaped(name: str) -> str:
    """A name within a pointer that is a URI fragment."""
    return quote(name.replace("~", "~0").replace("/", "~1"), safe="~")
