"""The worker's ear: Celery hears "there is work" over Redis and wakes the supervisor.

A message is a hint and nothing else: acknowledged early, never retried, without a result. The truth is in
PostgreSQL, where the supervisor looks by itself too, so a worker that hears nothing still works.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from celery import Celery
from celery.worker import state as celery_state

from control_plane.hints import TASK


def make_app(redis_url: str, wake: Callable[[], None]) -> Celery:
    """The Celery app whose task calls `wake`. Connects to nothing."""
    app = Celery("dpo", set_as_current=False)
    app.conf.update(
        # Not `broker`: a CELERY_BROKER_URL in the environment, set for another program, would win over these.
        broker_read_url=redis_url,
        broker_write_url=redis_url,
        task_ignore_result=True,
        task_acks_late=False,
        # With a prefetch of 1 a busy worker keeps a hint while another is idle.
        worker_disable_prefetch=True,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={"socket_timeout": 5, "socket_connect_timeout": 5, "socket_keepalive": True},
    )

    def look() -> None:
        wake()

    app.task(look, name=TASK)
    return app


class Ear:
    """Runs Celery's worker in a thread of its own.

    The main thread is the supervisor's: it must start, fork and stop trainers whether Redis answers or not,
    while Celery waits for Redis for as long as it is away.
    """

    def __init__(self, redis_url: str, wake: Callable[[], None]) -> None:
        self._app = make_app(redis_url, wake)
        self._thread = threading.Thread(target=self._listen, name="hints", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def _listen(self) -> None:
        worker = self._app.WorkController(
            pool="threads", concurrency=1, without_gossip=True, without_mingle=True, without_heartbeat=True
        )
        worker.start()

    def stop(self) -> None:
        """Ends the thread; a Redis that doesn't answer is left behind after five seconds."""
        celery_state.should_stop = 0  # Celery's own switch: its loop looks at it and ends with this exit code
        self._thread.join(timeout=5)
