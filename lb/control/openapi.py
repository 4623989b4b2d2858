"""The control API as an OpenAPI 3.1 document. Shapes come from the types that are read and told; the rest is
written here.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec

from lb import __version__
from lb.algorithms import names
from lb.control import answers, bodies, decisions, metrics
from lb.control.problems import KIND, ProblemDetails
from lb.decision import REQUEST_ID, Decision
from lb.state.decisions import MOST_LISTED

_REF = "#/components/schemas/{name}"

_REASONS = {
    "400": "The body, or the request itself, cannot be read.",
    "401": "The control token is missing or wrong.",
    "403": "A page of another origin asks for a change.",
    "404": "There is no such pool, backend or decision.",
    "409": "There is a backend of that id already, at another address or with other settings.",
    "413": "The body is longer than 64 KiB.",
    "415": "The body is not `application/json`, or is compressed.",
    "421": "The Host is none of this listener's (only checked where no token is set).",
    "422": "Values are out of range, of the wrong type or unknown; `errors` names each with its place.",
    "500": "A fault of the balancer's.",
    "503": "The shared state is not available.",
}
_READS = ("401", "421", "500")
_WRITES = (*_READS, "403", "503")
_BODIES = (*_WRITES, "400", "413", "415", "422")

_POOL = {
    "name": "pool",
    "in": "path",
    "required": True,
    "description": "The name of a pool.",
    "schema": {"type": "string", "minLength": 1},
    "example": "default",
}
_BACKEND = {
    "name": "backend",
    "in": "path",
    "required": True,
    "description": "The id of a backend, percent-encoded.",
    "schema": {"type": "string", "minLength": 1},
    "example": "127.0.0.1:9001",
}


_REQUEST = {
    "name": "request_id",
    "in": "path",
    "required": True,
    "description": "The id of a request: `X-Request-Id`, `id` in the access log.",
    "schema": {"type": "string", "pattern": f"^{REQUEST_ID.pattern.removesuffix(chr(92) + 'Z')}$"},
    "example": "5f3a9c0e1b7d10000000",
}


@cache
def document(locked: bool) -> dict[str, Any]:
    """The document; `locked`: is a token asked for?"""
    kinds = [
        *(answers.Liveness, answers.Readiness, answers.PoolList, answers.PoolInfo, answers.BackendList),
        *(answers.BackendInfo, answers.AlgorithmInfo, ProblemDetails, Decision, decisions.DecisionList),
        *(bodies.NewBackend, bodies.BackendChange, bodies.AlgorithmChoice),
    ]
    _, schemas = msgspec.json.schema_components(kinds, ref_template=_REF)
    for name in ("BackendChange", "BackendReport"):
        schemas[name]["minProperties"] = 1
    for name in ("AlgorithmChoice", "CanaryChoice"):
        schemas[name]["properties"]["algorithm"]["enum"] = list(names())
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "lb control API",
            "version": __version__,
            "description": "Pools, backends and algorithms of a fleet. Errors are problems (RFC 9457).",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "security": [{"token": []}] if locked else [],
        "tags": [
            {"name": "pools", "description": "What there is, and how it chooses."},
            {"name": "backends", "description": "The members of a pool."},
            {"name": "decisions", "description": "How requests got their backends."},
            {"name": "probes", "description": "For those who watch this process."},
        ],
        "paths": _paths(),
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer", "description": "`LB_CONTROL_TOKEN`"}
            },
        },
    }


def _paths() -> dict[str, Any]:
    unready = {"503": _answer("Starting, or finishing what runs.", answers.Readiness)}
    return {
        "/healthz": {
            "get": _operation(
                "health", "probes", "Does the process live?", answers.Liveness, ("500",), open_=True
            )
        },
        "/readyz": {
            "get": _operation(
                *("readiness", "probes", "May traffic be sent here?", answers.Readiness, ("500",)),
                open_=True,
                more=unready,
            )
        },
        "/metrics": {"get": _metrics()},
        "/v1/openapi.json": {
            "get": _operation("describe", "probes", "This document.", None, _READS),
        },
        "/v1/decisions": {
            "get": {
                **_operation(
                    *("listDecisions", "decisions", "The last decisions that are kept, newest first."),
                    *(decisions.DecisionList, (*_READS, "422", "503")),
                ),
                "parameters": [
                    _query("pool", "Of this pool only.", {"type": "string", "minLength": 1}, "default"),
                    _query("failed", "Of requests that failed, or did not.", {"type": "boolean"}, True),
                    _query(
                        *("limit", f"How many at most; {decisions.LIMIT} unless given."),
                        *({"type": "integer", "minimum": 1, "maximum": MOST_LISTED}, 10),
                    ),
                ],
            },
        },
        "/v1/decisions/{request_id}": {
            "parameters": [_REQUEST],
            "get": _operation(
                *("getDecision", "decisions", "How a request got its backend, or why it got none."),
                *(Decision, (*_READS, "404", "503")),
            ),
        },
        "/v1/pools": {
            "get": _operation(
                "listPools", "pools", "All pools with their backends.", answers.PoolList, (*_READS, "503")
            ),
        },
        "/v1/pools/{pool}": {
            "parameters": [_POOL],
            "get": _operation("getPool", "pools", "One pool.", answers.PoolInfo, (*_READS, "404", "503")),
        },
        "/v1/pools/{pool}/backends": {
            "parameters": [_POOL],
            "get": _operation(
                *("listBackends", "backends", "The backends of a pool.", answers.BackendList),
                (*_READS, "404", "503"),
            ),
            "post": _operation(
                *("addBackend", "backends", "Add a backend.", answers.BackendInfo, (*_BODIES, "404", "409")),
                body=bodies.NewBackend,
                example={"url": "http://127.0.0.1:9003", "weight": 2},
                said="It is there already, just so.",
                more={
                    "201": {
                        **_answer("It was added.", answers.BackendInfo),
                        "headers": {
                            "Location": {
                                "description": "Where it is.",
                                "required": True,
                                "schema": {"type": "string"},
                            }
                        },
                    },
                    "403": _problem(
                        "403", f"{_REASONS['403']} Or: the address is in none of `allowed_backends`."
                    ),
                },
            ),
        },
        "/v1/pools/{pool}/backends/{backend}": {
            "parameters": [_POOL, _BACKEND],
            "get": _operation(
                *("getBackend", "backends", "One backend.", answers.BackendInfo, (*_READS, "404", "503"))
            ),
            "patch": _operation(
                *("changeBackend", "backends", "Change a backend, or say how busy it is."),
                *(answers.BackendInfo, (*_BODIES, "404")),
                body=bodies.BackendChange,
                example={"weight": 5, "admin": "ready", "report": {"cpu": 0.4}},
            ),
            "delete": _operation(
                *("removeBackend", "backends", "Remove a backend; what it is serving is finished."),
                *(None, (*_WRITES, "404")),
                more={"204": {"description": "It is gone."}},
                empty=True,
            ),
        },
        "/v1/pools/{pool}/algorithm": {
            "parameters": [_POOL],
            "get": _operation(
                *("getAlgorithm", "pools", "How a pool chooses.", answers.AlgorithmInfo),
                (*_READS, "404", "503"),
            ),
            "put": _operation(
                *("setAlgorithm", "pools", "Switch it for the whole fleet, without losing a request."),
                *(answers.AlgorithmInfo, (*_BODIES, "404")),
                body=bodies.AlgorithmChoice,
                example={"algorithm": "round-robin", "canary": {"algorithm": "least-time", "share": 0.1}},
            ),
        },
    }


def _operation(
    name: str,
    tag: str,
    summary: str,
    answer: type[msgspec.Struct] | None,
    errors: tuple[str, ...],
    *,
    body: type[msgspec.Struct] | None = None,
    example: object = None,
    said: str = "As asked.",
    more: dict[str, Any] | None = None,
    open_: bool = False,
    empty: bool = False,
) -> dict[str, Any]:
    responses = {code: _problem(code, _REASONS[code]) for code in errors}
    if not empty:
        responses["200"] = _answer(said, answer)
    made: dict[str, Any] = {
        "operationId": name,
        "tags": [tag],
        "summary": summary,
        "responses": dict(sorted({**responses, **(more or {})}.items())),
    }
    if body is not None:
        made["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": _ref(body), "example": example}},
        }
    if open_:
        made["security"] = []
    return made


def _metrics() -> dict[str, Any]:
    made = _operation(
        *("metrics", "probes", "The fleet and this balancer in numbers, for Prometheus.", None),
        (*_READS, "503"),
    )
    text = {"schema": {"type": "string"}}
    made["responses"]["200"]["content"] = {metrics.TEXT: text, metrics.OPEN: text}
    return made


def _query(name: str, description: str, schema: dict[str, Any], example: object) -> dict[str, Any]:
    return {"name": name, "in": "query", "description": description, "schema": schema, "example": example}


def _answer(description: str, kind: type[msgspec.Struct] | None) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object"} if kind is None else _ref(kind)
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _problem(code: str, description: str) -> dict[str, Any]:
    made: dict[str, Any] = {"description": description, "content": {KIND: {"schema": _ref(ProblemDetails)}}}
    fields = {"401": ("WWW-Authenticate", "string"), "503": ("Retry-After", "integer")}
    if code in fields:
        name, kind = fields[code]
        made["headers"] = {name: {"required": True, "schema": {"type": kind}}}
    return made


def _ref(kind: type[msgspec.Struct]) -> dict[str, str]:
    return {"$ref": _REF.format(name=kind.__name__)}
