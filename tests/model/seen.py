"""Everything that is committed about jobs, as one statement of somebody who looks from outside sees it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import psycopg

LOOK = """
SELECT json_build_object(
  'jobs', (SELECT json_agg(r) FROM (SELECT id, state, fence, extract(epoch FROM lease_until) AS lease_until, gpus,
    result_name, extract(epoch FROM created_at) AS created_at, user_metadata->>'request' AS request,
    to_jsonb(jobs) - '{request,training,resolved}'::text[] AS columns FROM jobs) r),
  'attempts', (SELECT json_agg(r) FROM (SELECT job_id, fence, ended_at IS NULL AS open, outcome FROM attempts) r),
  'events', (SELECT json_agg(r ORDER BY r.sequence) FROM (SELECT job_id, sequence, code, level, data FROM events) r),
  'checkpoints', (SELECT json_agg(r) FROM (SELECT job_id, step, fence, storage_prefix, state_kept FROM checkpoints) r),
  'metrics', (SELECT json_agg(r) FROM (SELECT job_id, step, fence FROM metrics) r),
  'models', (SELECT json_agg(r) FROM (SELECT id, job_id, step, storage_prefix FROM models WHERE job_id IS NOT NULL) r)
)
"""


@dataclass
class Job:
    """A row of `jobs`, and what other tables say of it."""

    id: str
    state: str
    fence: int
    lease_until: float | None
    """Seconds since 1970, by the injected clock."""
    gpus: int
    result_name: str
    created_at: float
    request: str | None
    """Which of the clients' requests it came from."""
    columns: dict[str, Any]
    """All of the row but its large parts."""
    attempts: dict[int, dict[str, Any]] = field(default_factory=dict)
    """By fence."""
    events: list[dict[str, Any]] = field(default_factory=list)
    """Oldest first."""
    checkpoints: dict[int, dict[str, Any]] = field(default_factory=dict)
    """By step."""
    metrics: dict[int, int] = field(default_factory=dict)
    """The fence of whoever measured a step."""
    models: dict[str, dict[str, Any]] = field(default_factory=dict)


Jobs = dict[str, Job]


def look(connection: psycopg.Connection) -> Jobs:
    """`connection` commits by itself, so this sees what is committed."""
    row = connection.execute(LOOK).fetchone()
    assert row is not None
    tables = defaultdict(list, {name: rows or [] for name, rows in row[0].items()})
    jobs = {line["id"]: Job(**line) for line in tables["jobs"]}
    for line in tables["attempts"]:
        jobs[line["job_id"]].attempts[line["fence"]] = line
    for line in tables["events"]:
        jobs[line["job_id"]].events.append(line)
    for line in tables["checkpoints"]:
        jobs[line["job_id"]].checkpoints[line["step"]] = line
    for line in tables["metrics"]:
        jobs[line["job_id"]].metrics[line["step"]] = line["fence"]
    for line in tables["models"]:
        jobs[line["job_id"]].models[line["id"]] = line
    return jobs
