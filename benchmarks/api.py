"""`make bench-api`: list, read and create jobs over loopback at a fixed rate, in a table of many.

Requests are sent when they are due, whether earlier ones were answered or not, and a latency counts from when the
request was due: a server that falls behind can't hide it. The last line is the result as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import socket
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import psutil
from sqlalchemy import text

from benchmarks.report import machine, print_table
from benchmarks.servers import dpo, servers
from control_plane import keys, projects
from control_plane.database import Database
from control_plane.tables import File, Model
from dpo_core.spec import TrainingSpec

GOAL_MS = 50.0
SEED = 0
UNLIMITED = httpx2.Limits(max_connections=None, keepalive_expiry=2)
"""A request that is due is sent, however many are not answered; and not on a connection that the server is closing."""
JOBS = "/v1/fine_tuning/jobs"

JOBS_SQL = """
INSERT INTO jobs (id, project_id, state, method, model_id, training_file_id, gpus, seed, user_metadata, request,
                  training, resolved, result_name, progress, fence, created_at, started_at, finished_at)
SELECT 'ftjob-' || lpad(n::text, 26, '0'), :project, CASE WHEN n % 100 = 0 THEN 'paused' ELSE 'succeeded' END, 'dpo',
       :model, :file, 1, 0, jsonb_build_object('team', CAST(n % 1000 AS text)), '{}', CAST(:training AS jsonb),
       jsonb_build_object('training', CAST(:training AS jsonb)), 'default/tiny-' || n,
       '{"step": 100, "total_steps": 100}', 2, dpo_now() - interval '1 s' * (:count - n), dpo_now(),
       CASE WHEN n % 100 = 0 THEN NULL ELSE dpo_now() END
FROM generate_series(1, :count) AS n
"""
ATTEMPTS_SQL = """
INSERT INTO attempts (job_id, fence, project_id, worker_id, kind, started_at, ended_at, outcome, made_progress)
SELECT id, fence, project_id, 'w', CASE fence WHEN 1 THEN 'validate' ELSE 'train' END, dpo_now(), dpo_now(),
       'succeeded', true
FROM (SELECT id, project_id FROM jobs) AS job, generate_series(1, 2) AS fence
"""
EVENTS_SQL = """
INSERT INTO events (id, project_id, job_id, level, type, code, message)
SELECT 'ftevent-' || n || '-' || id, project_id, id, 'info', 'message', 'told', 'Something happened.'
FROM (SELECT id, project_id FROM jobs) AS job, generate_series(1, 5) AS n
"""


def seed(database: Database, count: int) -> tuple[str, str]:
    """`count` jobs of one project, with attempts and events. Returns a key and the file that new jobs name."""
    training = TrainingSpec(batch_size=16, epochs=1, beta=0.1, learning_rate=1e-6).model_dump_json()
    with database.transaction() as session:
        project = projects.ensure(session, "default")
        session.add(Model(id="base/tiny", kind="base", form="full", path="/tiny", facts={}))
        facts = {"filename": "a.jsonl", "purpose": "fine-tune", "bytes": 1, "sha256": "0", "status": "processed"}
        session.add(File(id="file-1", project_id=project.id, storage_key="files/file-1", **facts))
        session.flush()
        given = {"project": project.id, "model": "base/tiny", "file": "file-1", "training": training, "count": count}
        session.execute(text("SET LOCAL session_replication_role = replica"))  # no foreign key is looked up
        session.execute(text(JOBS_SQL), given)
        session.execute(text(ATTEMPTS_SQL))
        session.execute(text(EVENTS_SQL))
        _, key = keys.create(session, project.id, "bench", requests_per_minute=0)
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE"))
    return key, "file-1"


@contextmanager
def serving(count: int) -> Iterator[tuple[str, str, psutil.Process]]:
    """`dpo api` in a process of its own, over a PostgreSQL and a Redis of its own. Yields its URL and a key, too."""
    with (
        tempfile.TemporaryDirectory(prefix="dpo-bench-api-") as folder,
        servers(Path(folder)) as under,
        socket.create_server(("127.0.0.1", 0)) as port,
    ):
        database = Database(under.database_url)
        began = time.monotonic()
        key, _ = seed(database, count)
        print(f"{count:,} jobs put into the table in {time.monotonic() - began:.0f} s", flush=True)
        database.dispose()
        with dpo(under, "api", "--fd", str(port.fileno()), keep_open=(port.fileno(),)) as api:
            yield f"http://127.0.0.1:{port.getsockname()[1]}", key, api


def requests(client: httpx2.AsyncClient, count: int) -> dict[str, Callable[[], Awaitable[httpx2.Response]]]:
    """What is asked: a page of 20 from the newest on, any job, a new job."""
    draw = random.Random(SEED)
    body = {"model": "base/tiny", "training_file": "file-1", "method": {"type": "dpo"}}
    return {
        "list": lambda: client.get(JOBS),
        "get": lambda: client.get(f"{JOBS}/ftjob-{draw.randint(1, count):026d}"),
        "create": lambda: client.post(JOBS, json=body | {"seed": draw.randrange(2**31)}),
    }


async def load(ask: Callable[[], Awaitable[httpx2.Response]], rate: float, seconds: float) -> list[float]:
    """Latencies in milliseconds, each from when its request was due."""
    start = time.monotonic()

    async def one(due: float) -> float:
        await asyncio.sleep(due - time.monotonic())
        answer = await ask()
        answer.raise_for_status()
        return 1000 * (time.monotonic() - due)

    return await asyncio.gather(*(one(start + number / rate) for number in range(int(rate * seconds))))


async def measure(
    url: str, key: str, api: psutil.Process, *, count: int, rate: float, seconds: float
) -> dict[str, dict[str, float]]:
    """Latencies of each kind of request, and what it costs the API's process, which a busy machine changes less."""
    found = {}
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx2.AsyncClient(base_url=url, headers=headers, timeout=60, limits=UNLIMITED) as client:
        await _ready(client)
        for name, ask in requests(client, count).items():
            await load(ask, rate, 2)  # code and caches are warm, as in a server that runs
            before = sum(api.cpu_times()[:2])
            latencies = await load(ask, rate, seconds)
            spent = 1000 * (sum(api.cpu_times()[:2]) - before) / len(latencies)
            found[name] = {**summary(latencies), "api_cpu": round(spent, 2)}
    return found


async def _ready(client: httpx2.AsyncClient) -> None:
    deadline = time.monotonic() + 60
    while (await client.get("/readyz")).status_code != 200:
        if time.monotonic() > deadline:
            raise TimeoutError("the API is not ready after 60 s")
        await asyncio.sleep(0.1)


def summary(latencies: list[float]) -> dict[str, float]:
    """Milliseconds; a percentile is the smallest latency that as many are no slower than."""
    ranked = sorted(latencies)
    at = {f"p{share}": ranked[-(-len(ranked) * share // 100) - 1] for share in (50, 95, 99)}
    return {
        "requests": len(ranked),
        **{name: round(value, 2) for name, value in at.items()},
        "max": round(ranked[-1], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--rate", type=float, default=50.0, help="requests a second")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each kind of request")
    given = parser.parse_args()
    with serving(given.jobs) as (url, key, api):
        asked = {"count": given.jobs, "rate": given.rate, "seconds": given.seconds}
        found = asyncio.run(measure(url, key, api, **asked))
    columns = ("", "requests", "p50 ms", "p95 ms", "p99 ms", "max ms", "API's CPU ms")
    rows = [(name, *(f"{value:g}" for value in values.values())) for name, values in found.items()]
    print_table(
        f"{given.jobs:,} jobs in the table, {given.rate:g} requests a second of each kind in turn", columns, rows
    )
    reached = all(values["p99"] < GOAL_MS for values in found.values())
    facts: dict[str, Any] = {"jobs": given.jobs, "rate": given.rate, "milliseconds": found, "goal_ms": GOAL_MS}
    print(json.dumps({**facts, "reached": reached, "machine": {"cores": machine()["cores"], "cpu": machine()["cpu"]}}))


if __name__ == "__main__":
    main()
