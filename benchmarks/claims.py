"""How long a worker's claim takes in a queue of many jobs, with many workers: `leases.claim` and its commit.

Each worker looks for work once every POLL_SECONDS, at a time of its own, whether others were answered or not. A latency
counts from when the look was due. Workers are threads in a few processes, each with a connection that has asked often
enough that PostgreSQL keeps its plan; what a worker has claimed it ends at once, outside the time that is counted, so
that the queue stays as it is in service.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

from sqlalchemy import event, text
from sqlalchemy.orm import Session

from benchmarks.api import summary
from control_plane import leases, projects, results
from control_plane.database import Database
from control_plane.tables import File, Model
from dpo_core.process import die_with
from dpo_core.run_directory import Failure
from dpo_core.spec import TrainingSpec

POLL_SECONDS = 2.0
"""The default of the setting."""
PROCESSES = 4
PROJECTS = 10
SLOTS = 8
"""Of each worker."""
TO_CONNECT = 12.0
"""Seconds until the first look."""
ASKED_BEFORE = 12
"""psycopg prepares a statement the sixth time, and PostgreSQL plans it five times before it keeps a plan."""
CONNECTIONS = 200
"""PostgreSQL's own default of 100 is what 100 workers alone would take."""
ENDED = Failure(kind="user", code="bench", message="Ended by the benchmark.")

JOBS_SQL = """
INSERT INTO jobs (id, project_id, state, priority, method, model_id, training_file_id, gpus, seed, request, training,
                  resolved, result_name, fence, created_at)
SELECT 'ftjob-' || lpad(n::text, 26, '0'), projects[1 + n % array_length(projects, 1)], 'queued', 0, 'dpo', 'base/tiny',
       'file-1', (CAST(:sizes AS bigint[]))[1 + n % :kinds], 0, '{}', CAST(:training AS jsonb), '{}',
       'default/tiny-' || n, 1, dpo_now() - interval '1 s' * (:count - n)
FROM generate_series(1, :count) AS n, (SELECT array_agg(id ORDER BY id) AS projects FROM projects) AS known
"""
VALIDATIONS_SQL = """
INSERT INTO attempts (job_id, fence, project_id, worker_id, kind, started_at, ended_at, outcome)
SELECT id, 1, project_id, 'worker-0', 'validate', created_at, created_at, 'succeeded' FROM jobs
"""


@dataclass(frozen=True)
class Queue:
    """What waits, and what a worker has for it."""

    name: str
    sizes: tuple[int, ...]
    """GPUs of the waiting jobs, in turn."""
    free: int
    """Of the worker's SLOTS."""


QUEUES = (
    Queue("jobs of 1 to 8 GPUs, workers idle", (1, 1, 1, 2, 4, 8), free=SLOTS),
    Queue("jobs of 8 GPUs, workers with 1 free", (8,), free=1),
)


def fill(database: Database, queue: Queue, count: int) -> None:
    """`count` jobs of PROJECTS projects that were validated and wait to be trained; nothing else."""
    training = TrainingSpec(batch_size=16, epochs=1, beta=0.1, learning_rate=1e-6).model_dump_json()
    with database.transaction() as session:
        for table in ("events", "attempts", "jobs"):
            session.execute(text(f"TRUNCATE {table} CASCADE"))
        made = [projects.ensure(session, f"project-{number}") for number in range(PROJECTS)]
        if session.get(Model, "base/tiny") is None:
            session.add(Model(id="base/tiny", kind="base", form="full", path="/tiny", facts={}))
            facts = {"filename": "a.jsonl", "purpose": "fine-tune", "bytes": 1, "sha256": "0", "status": "processed"}
            session.add(File(id="file-1", project_id=made[0].id, storage_key="files/file-1", **facts))
            session.flush()
        given = {"count": count, "training": training, "sizes": list(queue.sizes), "kinds": len(queue.sizes)}
        session.execute(text(JOBS_SQL), given)
        session.execute(text(VALIDATIONS_SQL))
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))


@dataclass(frozen=True)
class Look:
    """Milliseconds."""

    since_due: float
    since_begun: float
    commit: float
    """The last part of it: what was claimed is flushed to the disk."""
    claim: leases.Claim | None


def look(database: Database, number: int, free: int, due: float | None = None) -> Look:
    """One look for work by the worker of this number, due at this time of the monotonic clock."""
    began = time.monotonic()
    with database.transaction() as session:
        claim = _claim(session, number, free)
        claimed = time.monotonic()
    now = time.monotonic()
    return Look(1000 * (now - (due or began)), 1000 * (now - began), 1000 * (now - claimed), claim)


def _claim(session: Session, number: int, free: int, total: int = SLOTS) -> leases.Claim | None:
    return leases.claim(session, worker_id=f"worker-{number}", free=free, total=total, lease_seconds=30.0)


def end(database: Database, claim: leases.Claim) -> None:
    with database.transaction() as session:
        results.fail(session, claim, ENDED, max_attempts=1)


@dataclass(frozen=True)
class Share:
    """The workers of one process."""

    url: str
    first: int
    workers: int
    free: int
    start: float
    """On the monotonic clock, which all processes of a host share."""
    seconds: float


def at_their_pace(share: Share) -> list[Look]:
    def work(number: int, database: Database) -> list[Look]:
        draw = random.Random(number)
        looks, due = [], share.start + POLL_SECONDS * draw.random()
        while due < share.start + share.seconds:
            time.sleep(max(0.0, due - time.monotonic()))
            seen = look(database, number, share.free, due)
            if seen.claim is not None:
                end(database, seen.claim)
            if due > share.start + POLL_SECONDS:  # the first look of each process puts statements together
                looks.append(seen)
            due += POLL_SECONDS
        return looks

    return [look for looks in _in_threads(work, share) for look in looks]


def without_a_pause(share: Share) -> int:
    """How many jobs they claim, one after another."""

    def work(number: int, database: Database) -> int:
        count = 0
        time.sleep(max(0.0, share.start - time.monotonic()))
        while time.monotonic() < share.start + share.seconds:
            count += look(database, number, share.free).claim is not None
        return count

    return sum(_in_threads(work, share))


def _in_threads(work: Any, share: Share) -> list[Any]:
    database = Database(share.url, pool_size=share.workers)
    with ThreadPoolExecutor(share.workers) as threads:
        list(threads.map(_connect, [database] * share.workers, [threading.Barrier(share.workers)] * share.workers))
        assert time.monotonic() < share.start, "connecting took longer than TO_CONNECT"
        answers = list(
            threads.map(lambda number: work(number, database), range(share.first, share.first + share.workers))
        )
    database.dispose()
    return answers


def _connect(database: Database, all_have_one: threading.Barrier) -> None:
    """One more connection in the pool, which has asked for work before, in vain: without a slot in all."""
    with database.engine.connect() as connection:
        all_have_one.wait()
        for _ in range(ASKED_BEFORE):
            with Session(connection) as session, session.begin():
                assert _claim(session, 0, free=1, total=0) is None


def measure(url: str, queue: Queue, *, jobs: int, workers: int, seconds: float) -> dict[str, Any]:
    """Latencies at the workers' own pace, then how many claims a second they reach together without a pause."""
    database = Database(url)
    fill(database, queue, jobs)
    spawn = get_context("spawn")
    with ProcessPoolExecutor(PROCESSES, spawn, initializer=die_with, initargs=(os.getpid(),)) as processes:
        list(processes.map(time.sleep, [0.2] * PROCESSES))  # they have imported everything
        looks = [
            look for share in processes.map(at_their_pace, _shares(url, queue, workers, seconds)) for look in share
        ]
        closed = seconds / 4
        claimed = sum(processes.map(without_a_pause, _shares(url, queue, workers, closed)))
    database.dispose()
    return {
        "found": sum(look.claim is not None for look in looks),
        "since_due_ms": summary([look.since_due for look in looks]),
        "since_begun_ms": summary([look.since_begun for look in looks]),
        "before_the_commit_ms": summary([look.since_begun - look.commit for look in looks]),
        "commit_ms": summary([look.commit for look in looks]),
        "claims_per_second": round(claimed / closed),
    }


def _shares(url: str, queue: Queue, workers: int, seconds: float) -> list[Share]:
    each = workers // PROCESSES
    start = time.monotonic() + TO_CONNECT
    return [Share(url, number * each, each, queue.free, start, seconds) for number in range(PROCESSES)]


def plans(url: str, queue: Queue) -> str:
    """EXPLAIN ANALYZE of every statement of one claim, which is taken back, as planned for its values. The plan that
    PostgreSQL keeps for any is told by EXPLAIN EXECUTE under `plan_cache_mode=force_generic_plan`."""
    database = Database(url)
    lines = []
    with database.engine.connect() as connection:
        with _noting(database) as statements, Session(connection) as session:
            _claim(session, 0, queue.free)  # and rolled back
        for statement, parameters in statements:
            explained = connection.exec_driver_sql(f"EXPLAIN (ANALYZE, BUFFERS) {statement}", parameters)
            lines += [statement, *(f"    {row[0]}" for row in explained), ""]
        connection.rollback()
    database.dispose()
    return "\n".join(lines)


@contextmanager
def _noting(database: Database) -> Iterator[list[tuple[str, Any]]]:
    statements: list[tuple[str, Any]] = []

    def note(_connection: object, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        statements.append((statement, parameters))

    event.listen(database.engine, "before_cursor_execute", note)
    yield statements
    event.remove(database.engine, "before_cursor_execute", note)
