"""Redis is emptied, dies, or doesn't answer for long: it only carries hints."""

from __future__ import annotations

import time

import redis

from tests.faults.deployment import POLL_SECONDS
from tests.faults.fault import Fault, struck
from tests.faults.scene import Scene, kill
from tests.service import poll_until

LOSS_SECONDS = 8 * POLL_SECONDS
"""Stands for minutes: many hints go unheard, and many polls go by."""


def flush(scene: Scene) -> None:
    """While the hint of another job is on its way."""
    scene.others.append(scene.deployment.start_job())

    def flushed() -> bool:
        try:
            with redis.Redis(unix_socket_path=str(scene.deployment.redis_socket)) as client:
                return bool(client.flushall())
        except (redis.ConnectionError, FileNotFoundError):  # it is being started again
            return False

    scene.mark()
    poll_until(flushed, "Redis is emptied")


def restart(scene: Scene) -> None:
    kill(scene.part("redis"))


def lose(scene: Scene) -> None:
    """It answers nothing (SIGSTOP), or can't be found any more and has forgotten everybody; a job comes meanwhile."""
    hangs = scene.draw.random() < 0.5
    server, socket = scene.part("redis"), scene.deployment.redis_socket
    elsewhere = socket.with_name("elsewhere")
    if hangs:
        server.suspend()
    else:
        socket.rename(elsewhere)
        with redis.Redis(unix_socket_path=str(elsewhere)) as client:
            client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    try:
        begun = time.monotonic()
        scene.others.append(scene.deployment.start_job())
        poll_until(lambda: time.monotonic() - begun > LOSS_SECONDS, "Redis was away for long")
    finally:
        if hangs:
            server.resume()
        else:
            elsewhere.rename(socket)
    scene.mark()


FAULTS = [
    Fault(
        "Redis: FLUSHALL",
        "runs don't notice; a job whose hint is gone is found by the workers' own looking",
        struck(flush, another_attempt=False),
        trainers=("stub", "real"),
    ),
    Fault(
        "Redis: kill -9 and restart",
        "runs don't notice; workers hear hints again",
        struck(restart, another_attempt=False),
    ),
    Fault(
        "Redis: away for longer",
        "jobs are accepted, found and trained without it",
        struck(lose, another_attempt=False),
    ),
]
