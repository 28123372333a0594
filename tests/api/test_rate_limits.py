from __future__ import annotations

from collections.abc import Callable, Iterator

import httpx2
import pytest

from control_plane import keys, projects
from control_plane.database import Database
from control_plane.rate_limits import RateLimits
from control_plane.settings import Settings
from tests.api.conftest import Api
from tests.api.test_errors import error_of


@pytest.fixture
def slow_key(database: Database) -> str:
    """May ask three times, and once every 20 s."""
    with database.transaction() as session:
        project = projects.ensure(session, "default")
        return keys.create(session, project.id, "slow", requests_per_minute=3)[1]


@pytest.fixture
def limits(redis_url: str) -> Iterator[RateLimits]:
    limits = RateLimits(redis_url)
    yield limits
    limits.close()


def test_a_key_that_asks_too_often_is_told_when_to_come_back(api: Api, slow_key: str) -> None:
    with httpx2.Client(base_url=api.url, headers={"Authorization": f"Bearer {slow_key}"}) as http:
        answers = [http.get("/v1/files") for _ in range(4)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
        assert [answer.headers["x-ratelimit-remaining-requests"] for answer in answers] == ["2", "1", "0", "0"]
        assert {answer.headers["x-ratelimit-limit-requests"] for answer in answers} == {"3"}
        assert "Retry-After" not in answers[0].headers
        error = error_of(answers[3], 429)
        assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
        assert "3 times a minute" in (error["message"] or "")
        assert 1 <= int(answers[3].headers["retry-after"]) <= 20
        assert answers[3].headers["x-ratelimit-reset-requests"].endswith("s")
        # a refused change is no change, and a wrong key takes nothing
        assert http.post("/v1/files").status_code == 429
        assert httpx2.get(f"{api.url}/v1/files", headers={"Authorization": "Bearer x"}).status_code == 401


def test_other_keys_and_open_routes_are_not_held_up(api: Api, slow_key: str, secret: str) -> None:
    for _ in range(4):
        httpx2.get(f"{api.url}/v1/files", headers={"Authorization": f"Bearer {slow_key}"})
    answer = httpx2.get(f"{api.url}/v1/files", headers={"Authorization": f"Bearer {secret}"})
    assert (answer.status_code, answer.headers["x-ratelimit-limit-requests"]) == (200, "6000")
    assert "x-ratelimit-limit-requests" not in httpx2.get(f"{api.url}/healthz").headers


def test_a_bucket_fills_evenly(limits: RateLimits) -> None:
    """600 a minute are ten a second: once it is empty, the next token is at most 0.1 s away."""
    taken = [limits.take("key-fills", 600) for _ in range(700)]
    refused = [verdict for verdict in taken if verdict is not None and not verdict.allowed]
    assert refused
    assert all(0 < verdict.next_in <= 0.1 and 59 < verdict.full_in <= 60 for verdict in refused)
    assert all(verdict.headers["Retry-After"] == "1" for verdict in refused)


def test_without_redis_nobody_is_limited(
    serve: Callable[[Settings], Api], settings: Settings, slow_key: str, caplog: pytest.LogCaptureFixture
) -> None:
    from pydantic import SecretStr

    api = serve(settings.model_copy(update={"redis_url": SecretStr("redis+socket:///nowhere/redis.sock")}))
    for _ in range(5):
        answer = httpx2.get(f"{api.url}/v1/files", headers={"Authorization": f"Bearer {slow_key}"})
        assert answer.status_code == 200
        assert "x-ratelimit-limit-requests" not in answer.headers
    told = [record for record in caplog.records if record.name == "control_plane.rate_limits"]
    assert len(told) == 1  # it isn't asked again at once
