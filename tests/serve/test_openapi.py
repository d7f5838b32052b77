"""The API's description: it covers every route, and the server behaves as it describes."""

from __future__ import annotations

import json
import re
from pathlib import Path

from starlette.routing import Route

from adafocus_edge.backends.registry import load_model
from adafocus_edge.bundle.store import default_bundle, read_bundle
from adafocus_edge.live.run import LiveOptions, LiveRun
from adafocus_edge.runtime.classifier import Classifier
from adafocus_edge.serve import ServeOptions
from adafocus_edge.serve.app import create_app
from adafocus_edge.serve.openapi import describe
from tests.support.fuzzing import api

FOR_PEOPLE = {"/", "/docs", "/events", "/sources", "/page/{name}", "/login", "/logout"}
OPERATIONS = 26
"""Operations whose responses end."""


def test_every_address_for_programs_is_described() -> None:
    bundle = read_bundle(default_bundle())
    with load_model(bundle, "auto", "onnxruntime-cpu", 1) as model:
        routes = create_app(
            LiveRun(Classifier(model, bundle.classes, top_k=1), [], LiveOptions()), ServeOptions()
        ).routes
    there = {
        (route.path.replace(":path", ""), method.lower())
        for route in routes
        if isinstance(route, Route) and route.path not in FOR_PEOPLE
        for method in (route.methods or set()) - {"HEAD"}
    }
    paths = describe(ServeOptions())["paths"]
    assert {(path, method) for path, methods in paths.items() for method in methods} == there


def test_only_a_server_with_a_token_asks_for_it() -> None:
    assert "security" not in describe(ServeOptions())
    locked = describe(ServeOptions(token="a-token-that-nobody-guesses"))
    assert [list(way) for way in locked["security"]] == [["token"], ["login"]]
    assert set(locked["components"]["securitySchemes"]) == {"token", "login"}
    assert locked["paths"]["/healthz"]["get"]["security"] == []


def test_every_reference_leads_to_a_component() -> None:
    document = describe(ServeOptions(token="a-token-that-nobody-guesses"))
    found = set(re.findall(r'"#/components/(\w+)/(\w+)"', json.dumps(document)))
    assert ("schemas", "Window") in found
    for kind, name in found:
        assert name in document["components"][kind]


def test_a_server_does_what_its_description_says(tmp_path: Path) -> None:
    found = api(25, 0, tmp_path)
    assert found["failures"] == [], found["text"]
    assert found["errors"] == [], found["text"]
    assert found["alive"]
    assert found["operations"]["tested"] == OPERATIONS
    assert found["test_cases"]["generated"] > 100
