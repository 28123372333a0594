"""Hints reach Redis as messages that Celery's worker understands; without Redis nothing fails."""

from __future__ import annotations

import json
import logging
import socket
from pathlib import Path

import pytest
import redis

from cli.servers import redis_server
from control_plane.hints import Hints, redis_py_url


def test_a_hint_is_a_message_for_the_workers_task(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://another.program.invalid/0")
    hints = Hints(redis_url)
    with redis.Redis.from_url(redis_py_url(redis_url)) as client:
        client.delete("celery")
        hints.send()
        hints.send()
        messages = [json.loads(message) for message in client.lrange("celery", 0, -1)]
        client.delete("celery")
    hints.close()
    assert [message["headers"]["task"] for message in messages] == ["worker.look"] * 2
    assert all(message["headers"]["expires"] for message in messages)


def test_without_redis_the_hint_is_logged_and_forgotten(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    hints = Hints(f"redis+socket://{tmp_path}/no-redis")
    with caplog.at_level(logging.WARNING, logger="control_plane.hints"):
        hints.send()
    hints.close()
    assert "workers will find the work by themselves" in caplog.text


def test_a_redis_that_answers_nothing_does_not_hold_the_caller() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hints = Hints(f"redis://127.0.0.1:{silent.getsockname()[1]}/0")
        hints.send()
        hints.close()


def test_hints_go_through_again_when_redis_is_back(tmp_path: Path) -> None:
    server, url = redis_server(tmp_path)
    hints = Hints(url)
    for _ in range(2):
        server.start()
        server.wait_ready()
        hints.send()
        with redis.Redis.from_url(redis_py_url(url)) as client:
            assert client.llen("celery") == 1
            client.delete("celery")
        server.stop()
        hints.send()
    hints.close()


@pytest.mark.parametrize(
    ("url", "expected"),
    [("redis+socket:///a/b", "unix:///a/b"), ("redis://host:6379/0", "redis://host:6379/0")],
)
def test_redis_py_url(url: str, expected: str) -> None:
    assert redis_py_url(url) == expected
