"""docs/api.md names every route that there is, docs/hub.md those of the Hub's protocol."""

from __future__ import annotations

from pathlib import Path

import httpx2

DOCS = Path(__file__).parents[2] / "docs"


def test_the_guide_names_every_route(http: httpx2.Client) -> None:
    routes = http.get("/openapi.json").json()["paths"]
    guide, hub = ((DOCS / name).read_text(encoding="utf-8") for name in ("api.md", "hub.md"))
    for path in routes:
        if path.startswith("/hf/"):
            route = path.removeprefix("/hf").replace("{project}/{name}", "{id}")
            assert f" {route}`" in hub, path
            continue
        tail = path.replace("/v1/fine_tuning/jobs/{job_id}", "…/{id}").replace("/v1/uploads/{upload_id}", "…/{id}")
        tail = tail.replace("/v1/webhook_endpoints/{endpoint_id}", "…/{id}").replace("{delivery_id}", "{id}")
        for name in ("{sweep_id}", "{file_id}", "{model_id}", "{project}/{name}"):
            tail = tail.replace(name, "{id}")
        assert f"{tail}`" in guide or f"{tail.replace('…', '/v1/fine_tuning/jobs')}`" in guide, path
