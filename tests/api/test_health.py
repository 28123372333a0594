from __future__ import annotations

from collections.abc import Callable

import httpx2
from pydantic import SecretStr

from control_plane.settings import Settings
from migrations.run import downgrade
from tests.api.conftest import Api
from tests.conftest import Servers


def test_ready(api: Api) -> None:
    assert httpx2.get(f"{api.url}/healthz").json() == {"status": "ok"}
    answer = httpx2.get(f"{api.url}/readyz")
    assert answer.status_code == 200
    assert answer.json() == {"status": "ok", "database": "ok", "redis": "ok"}


def test_redis_is_only_a_shortcut(serve: Callable[[Settings], Api], settings: Settings) -> None:
    api = serve(settings.model_copy(update={"redis_url": SecretStr("redis+socket:///nowhere/redis.sock")}))
    answer = httpx2.get(f"{api.url}/readyz")
    assert (answer.status_code, answer.json()["redis"]) == (200, "unreachable")


def test_without_a_database(serve: Callable[[Settings], Api], settings: Settings) -> None:
    url = "postgresql+psycopg://nobody@/nothing?host=/nowhere"
    api = serve(settings.model_copy(update={"database_url": SecretStr(url)}))
    assert httpx2.get(f"{api.url}/healthz").status_code == 200
    answer = httpx2.get(f"{api.url}/readyz")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "database_unreachable")
    assert "nowhere" not in answer.text
    answer = httpx2.get(f"{api.url}/v1/files", headers={"Authorization": "Bearer sk-dpo-x"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "database_unreachable")


def test_an_older_schema(
    serve: Callable[[Settings], Api], settings: Settings, servers: Servers, migrated_template: str
) -> None:
    servers.execute(f"CREATE DATABASE older TEMPLATE {migrated_template}")
    api = serve(settings.model_copy(update={"database_url": SecretStr(servers.url_of("older"))}))
    downgrade(servers.url_of("older"), "base")
    answer = httpx2.get(f"{api.url}/readyz")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "database_not_migrated")
    assert "dpo migrate" in answer.json()["error"]["message"]
