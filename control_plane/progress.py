"""How far a run is, and when it will be done."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from control_plane.database import dpo_now
from control_plane.job_states import State
from control_plane.tables import Job


def report(session: Session, job: Job, step: int, total_steps: int | None) -> None:
    """Stores `step` of `total_steps` in `job.progress`, with where and when this attempt's first report was.

    The speed is measured from there: `from_step` at `from_time`. Times are ISO 8601, PostgreSQL's clock.
    """
    now = session.execute(dpo_now().select()).scalar_one().isoformat()
    before = job.progress
    same_attempt = before.get("fence") == job.fence
    job.progress = {
        "step": step,
        "total_steps": total_steps,
        "time": now,
        "fence": job.fence,
        "from_step": before["from_step"] if same_attempt else step,
        "from_time": before["from_time"] if same_attempt else now,
    }
    session.flush()


def estimated_finish(job: Job) -> datetime | None:
    """When the run will be done at the speed of its present attempt; None while that can't be said."""
    seen = job.progress
    if job.state != State.running or seen.get("fence") != job.fence or not seen["total_steps"]:
        return None
    steps_done = seen["step"] - seen["from_step"]
    if steps_done <= 0:
        return None
    now = datetime.fromisoformat(seen["time"])
    per_step = (now - datetime.fromisoformat(seen["from_time"])) / steps_done
    remaining: timedelta = per_step * max(0, seen["total_steps"] - seen["step"])
    return now + remaining
