"""A thread pool that calls whoever waits for its tasks, so that nobody has to ask again and again."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class CallingPool(ThreadPoolExecutor):
    def __init__(self, threads: int, call: Callable[[], None]) -> None:
        """`call`: from any thread, behind the end of each task."""
        super().__init__(threads, thread_name_prefix="files")
        self._call = call

    def submit(self, *args: Any, **kwargs: Any) -> Future[Any]:
        future = super().submit(*args, **kwargs)
        future.add_done_callback(lambda _: self._call())
        return future
