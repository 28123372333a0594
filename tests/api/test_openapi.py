"""The OpenAPI document is whole: summaries, examples and refusals of every route."""

from __future__ import annotations

import json
from typing import Any

import httpx2

from api.auth import PUBLIC
from api.openapi import operations


def test_every_route_says_what_it_takes_and_answers(http: httpx2.Client) -> None:
    document: dict[str, Any] = http.get("/openapi.json").json()
    found = list(operations(document))
    assert len(found) > 30
    for path, operation in found:
        assert operation["summary"], path
        assert "422" not in operation["responses"], path
        wanted = {"500", "503"} if path in PUBLIC else {"400", "401", "403", "404", "429", "500", "503"}
        assert wanted <= operation["responses"].keys(), path
        for parameter in operation.get("parameters", ()):
            assert parameter["in"] != "path" or parameter.get("example"), (path, parameter["name"])
        for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
            assert media_type != "application/json" or "example" in content, path
    text = json.dumps(document)
    named = {part.split('"')[0] for part in text.split("#/components/schemas/")[1:]}
    assert named <= document["components"]["schemas"].keys()
