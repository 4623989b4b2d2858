"""The document tells of everything that is there, and of nothing else."""

from __future__ import annotations

import json
from typing import Any

from lb.control.openapi import document
from tests.control.conftest import Asker

METHODS = ("get", "put", "post", "patch", "delete")


def references(node: Any) -> set[str]:
    if isinstance(node, dict):
        own = {node["$ref"]} if "$ref" in node else set()
        return own.union(*(references(value) for value in node.values()))
    return set().union(*map(references, node)) if isinstance(node, list) else set()


def test_paths_and_methods_are_those_that_are_served(ask: Asker) -> None:
    told = ask("/v1/openapi.json").json
    assert told["openapi"] == "3.1.0"
    assert set(told["paths"]) == set(ask.control.routes)
    for path, resource in ask.control.routes.items():
        served = {method for method in METHODS if hasattr(resource, f"on_{method}")}
        assert served == set(told["paths"][path]) - {"parameters"}, path


def test_every_reference_leads_somewhere() -> None:
    made = json.loads(json.dumps(document(False)))
    names = {f"#/components/schemas/{name}" for name in made["components"]["schemas"]}
    assert references(made) == names


def test_every_operation_is_whole() -> None:
    paths = document(True)["paths"]
    seen = set()
    for path, item in paths.items():
        for method in METHODS:
            if (operation := item.get(method)) is None:
                continue
            seen.add(operation["operationId"])
            assert operation["summary"].endswith((".", "?"))
            assert any(code.startswith("2") for code in operation["responses"])
            assert ("401" in operation["responses"]) == (operation.get("security") != [])
            assert ("requestBody" in operation) == (method in ("put", "post", "patch"))
            assert ("404" in operation["responses"]) == ("{" in path)
    assert len(seen) == 15


def test_a_token_is_asked_for_where_one_is_set() -> None:
    assert document(True)["security"] == [{"token": []}]
    assert document(False)["security"] == []
