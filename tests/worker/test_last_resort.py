"""A worker that is deaf to its signals, as it waits for something that hangs."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from sqlalchemy import text

from tests.worker.stubs import DEADLINE_SECONDS, World, eventually, worker_process
from worker.main import HANGING_SECONDS

DEAF = """
import signal, threading
from worker import last_resort
for number in last_resort.STOP_SIGNALS:
    signal.signal(number, lambda *_: None)
last_resort.arm(first={first}, again={again})
print("armed", flush=True)
held = threading.Lock()
held.acquire()
held.acquire()
"""


@contextmanager
def deaf(first: float, again: float) -> Iterator[subprocess.Popen[str]]:
    script = DEAF.format(first=first, again=again)
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "armed\n"
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_hangs_is_left_and_said(number: signal.Signals) -> None:
    with deaf(first=0.2, again=DEADLINE_SECONDS) as process:
        process.send_signal(signal.SIGCHLD)  # no order to stop
        process.send_signal(number)
        _, said = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 1
    assert "something hangs" in said
    assert "held.acquire" in said or 'File "<string>", line 10' in said, "where it stood"


def test_a_second_signal_shortens_it() -> None:
    with deaf(first=10 * DEADLINE_SECONDS, again=0.2) as process:
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE_SECONDS) == 1


@pytest.mark.long
def test_a_worker_ends_though_it_waits_for_a_lock(world: World) -> None:
    """Of a session that goes on for longer than the worker may take."""
    world.settings = world.settings.model_copy(update={"stop_seconds": 1.0, "lease_seconds": 2.0})
    with worker_process(world.settings, "--hold-at=3", f"--until={world.go}") as worker:
        job_id = world.job()
        world.held(job_id, step=2)
        locked, go_on = threading.Event(), threading.Event()

        def hold() -> None:
            with world.database.transaction() as session:
                session.execute(text("SELECT 1 FROM jobs WHERE id = :id FOR UPDATE"), {"id": job_id})
                locked.set()
                while not go_on.wait(1.0):
                    session.execute(text("SELECT 1"))

        holder = threading.Thread(target=hold)
        holder.start()
        try:
            assert locked.wait(DEADLINE_SECONDS)
            eventually(lambda: not world.processes(), "the ranks' watches ended them")
            worker.terminate()
            assert worker.wait(HANGING_SECONDS + DEADLINE_SECONDS) == 1
        finally:
            go_on.set()
            holder.join()
