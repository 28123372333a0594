"""Hints: "there is work", sent to the workers over Redis after the commit that made the work.

Only a shortcut: every worker also looks into PostgreSQL every few seconds. So a hint that can't be
sent is logged and forgotten.
"""

from __future__ import annotations

import logging

from celery import Celery
from kombu.exceptions import OperationalError

TASK = "worker.look"
"""The name of the worker's task that looks for work."""

EXPIRES_SECONDS = 60
"""An older hint says nothing that the workers' own looking has not found."""

TIMEOUTS = {"socket_connect_timeout": 0.5, "socket_timeout": 1.0, "max_retries": 0}

log = logging.getLogger(__name__)


class Hints:
    """Sends hints with Celery's producer; knows the task's name, not the worker's code."""

    def __init__(self, redis_url: str) -> None:
        self._celery = Celery(set_as_current=False)
        # Not `broker`: a CELERY_BROKER_URL in the environment, set for another program, would win over that.
        self._celery.conf.update(broker_write_url=redis_url, broker_transport_options=TIMEOUTS)

    def send(self) -> None:
        """Tells one idle worker to look for work. Call it after the commit."""
        try:
            self._celery.send_task(TASK, ignore_result=True, retry=False, expires=EXPIRES_SECONDS)
        except OperationalError as failure:
            log.warning("No hint sent, workers will find the work by themselves: Redis can't be reached (%s).", failure)

    def close(self) -> None:
        self._celery.close()


def redis_py_url(url: str) -> str:
    """The same Redis for the redis client: Celery's `redis+socket:///path` is its `unix:///path`."""
    return url.replace("redis+socket://", "unix://", 1)
