"""A worker that is deaf to its signals, as it waits for something that hangs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
from sqlalchemy import text

from tests.worker.stubs import DEADLINE_SECONDS, World, eventually, worker_process
from worker.main import HANGING_SECONDS

DEAF = """
import signal, threading
from worker import last_resort
for number in (*last_resort.STOP_SIGNALS, signal.SIGCHLD):
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
        process.send_signal(number)
        _, said = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 1
    assert "something hangs" in said
    assert 'File "<string>", line 10' in said, "where it stood"


def test_a_log_that_nobody_reads_keeps_nobody() -> None:
    with deaf(first=0.2, again=0.2) as process:
        assert process.stderr is not None
        with open(f"/proc/{process.pid}/fd/2", "wb", buffering=0) as pipe:
            os.set_blocking(pipe.fileno(), False)
            with suppress(BlockingIOError):
                while pipe.write(b"x" * 4096):
                    continue
        os.read(process.stderr.fileno(), 4096)  # room for the first line, and not for all
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE_SECONDS) == 1


def test_a_second_signal_shortens_it() -> None:
    with deaf(first=10 * DEADLINE_SECONDS, again=0.2) as process:
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGCHLD)  # no order to stop
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(2.0)
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE_SECONDS) == 1


def waits_for_a_lock(world: World) -> bool:
    with world.database.transaction() as session:
        query = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
        return session.execute(text(query)).scalar_one() > 0


@pytest.mark.long
def test_a_worker_ends_though_it_waits_for_a_lock(world: World) -> None:
    """Of a session that goes on for longer than the worker may take."""
    world.settings = world.settings.model_copy(update={"stop_seconds": 1.0, "lease_seconds": 10.0})
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
            eventually(lambda: waits_for_a_lock(world), "the worker waits")
            worker.terminate()
            assert worker.wait(HANGING_SECONDS + DEADLINE_SECONDS) == 1
            eventually(lambda: not world.processes(), "its ranks are gone")
        finally:
            go_on.set()
            holder.join()
