"""From a POST to the first step: when each thing happened, as seen from outside the processes that do it.

Run directories are watched, and PostgreSQL is asked when a worker claimed. A program's log is made when it is spawned,
`processes/` when its interpreter runs; the tokens are mapped once all is imported; the reference is saved once the
model is loaded and measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import select

from benchmarks.service import ATTEMPT_OF_TRAINING, JOBS, Service, wait_for
from control_plane.tables import Attempt
from dpo_core.reference import FILE_NAME as REFERENCE
from dpo_core.run_directory import RunDirectory, read_lines

LOOK_SECONDS = 0.002
MILESTONES = (
    "answered",
    "validation claimed",
    "validation spawned",
    "validation over",
    "training claimed",
    "training spawned",
    "interpreter runs",
    "imports done",
    "model loaded, reference measured",
    "step 1 done",
)


def timeline(served: Service, request: dict[str, Any]) -> dict[str, float]:
    """Seconds from the POST to each of MILESTONES."""
    posted = time.time()
    answer = served.http.post(JOBS, json=request)
    marks = {"answered": time.time()}
    job_id = str(answer.raise_for_status().json()["id"])
    validation, training = (RunDirectory(served.runs / job_id / str(n)) for n in range(1, ATTEMPT_OF_TRAINING + 1))
    marks["validation spawned"] = _when(validation.log_file.exists)
    marks["training spawned"] = _when(training.log_file.exists)
    rank = training.processes / "0.json"
    marks["interpreter runs"] = _when(rank.exists)
    marks["imports done"] = _when(lambda: _maps_tokens(training))
    marks["model loaded, reference measured"] = _when((training.path / REFERENCE).exists)
    _when(training.metrics_file.exists)
    marks["step 1 done"] = _when(lambda: _steps(training.metrics_file) > 0)
    served.require_success(job_id)
    with served.database.transaction() as session:
        first, second = session.scalars(select(Attempt).where(Attempt.job_id == job_id).order_by(Attempt.fence))
        marks["validation claimed"], marks["training claimed"] = (
            first.started_at.timestamp(),
            second.started_at.timestamp(),
        )
        assert first.ended_at is not None
        marks["validation over"] = first.ended_at.timestamp()
    return {name: round(marks[name] - posted, 3) for name in MILESTONES}


def own_share(marks: dict[str, float]) -> dict[str, float]:
    """What the service adds: from the POST to the first program, and from that one's end to the next."""
    return {
        "post_to_spawn": marks["validation spawned"],
        "validated_to_spawn": round(marks["training spawned"] - marks["validation over"], 3),
    }


def _when(condition: Callable[[], bool]) -> float:
    wait_for(condition, every=LOOK_SECONDS)
    return time.time()


def _maps_tokens(run: RunDirectory) -> bool:
    """By /proc/PID/maps (proc(5))."""
    maps = (Path(f"/proc/{process.pid}/maps").read_text() for process in run.recorded_processes())
    return any(str(run.tokens) in text for text in maps)


def _steps(metrics: Path) -> int:
    return sum(record["split"] == "train" for record, _ in read_lines(metrics, 0))
