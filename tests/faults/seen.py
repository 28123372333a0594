"""What is seen of a deployment: its jobs by its database, its workers and the processes of their attempts by /proc."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from glob import glob
from http import HTTPStatus
from typing import Any, NamedTuple, TypeVar

import httpx2
import psutil
from sqlalchemy import select
from sqlalchemy.orm import Session

from control_plane.database import DATABASE_AWAY, Database
from control_plane.job_states import FINAL
from control_plane.tables import Attempt, Job, Worker
from dpo_core.run_directory import RunDirectory, read_lines
from tests.cli.running import alive
from tests.service import Service, poll_until
from worker.sweep import MARK

T = TypeVar("T")


class Result(NamedTuple):
    """What a real job came to: the same bytes and numbers, whatever died on the way."""

    weights: bytes
    losses: dict[str, list[tuple[float, float]]]
    """Step and loss of every measurement, by split."""

    best: dict[str, Any]
    """`run.best` without the model's id."""


class Seen:
    """What a deployment is, to those who look."""

    database: Database
    service: Service
    patience: float
    """Seconds after which a job that isn't over counts as lost."""

    def ask(self, question: Callable[[Session], T]) -> T:
        """What the database says; asked again while PostgreSQL is away, which here is part of the plan."""
        deadline = time.monotonic() + self.patience
        while True:
            try:
                with self.database.transaction() as session:
                    return question(session)
            except DATABASE_AWAY:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def job(self, job_id: str) -> Job:
        return self.ask(lambda session: session.get_one(Job, job_id))

    def is_ready(self) -> bool:
        """Whether the API answers, and has all that it needs to."""
        try:
            return self.service.http.get("/readyz", timeout=2.0).status_code == HTTPStatus.OK
        except httpx2.TransportError:
            return False

    def is_over(self, job_id: str) -> bool:
        return self.job(job_id).state in FINAL

    def over(self, job_id: str) -> Job:
        """The job, once it is over."""
        poll_until(lambda: self.is_over(job_id), f"{job_id} is over", seconds=self.patience)
        return self.job(job_id)

    def attempts(self, job_id: str) -> list[Attempt]:
        query = select(Attempt).where(Attempt.job_id == job_id).order_by(Attempt.fence)
        return list(self.ask(lambda session: session.scalars(query).all()))

    def result(self, job_id: str) -> Result:
        """Of a real job that succeeded."""
        model_id = self.service.succeeded(job_id)
        losses = {
            split: [(line["step"], line["loss"]) for line in self.service.metrics(job_id, split)]
            for split in ("train", "validation")
        }
        best = (self.service.job(job_id).model_extra or {})["run"]["best"]
        assert best.pop("model") == f"{model_id}-best"
        return Result(self.service.download(model_id)["model.safetensors"], losses, best)

    # -- what runs now -----------------------------------------------------------------------------------------

    def attempt(self, job_id: str) -> RunDirectory | None:
        """The newest attempt's run directory, if there is one."""
        fences = glob("[0-9]*", root_dir=self.service.runs / job_id)  # noqa: PTH207 - Path.glob fails where it goes meanwhile
        newest = max(fences, key=int, default=None)
        return RunDirectory(self.service.runs / job_id / newest) if newest else None

    def reached(self, job_id: str) -> tuple[int, int]:
        """The newest attempt's fence, and the last step that it measured; -1 before its first."""
        run = self.attempt(job_id)
        try:
            lines = list(read_lines(run.metrics_file, 0)) if run else []
        except FileNotFoundError:  # cleared away meanwhile
            lines = []
        return int(run.path.name) if run else 0, max((line["step"] for line, _ in lines), default=-1)

    def ranks(self, job_id: str) -> list[psutil.Process]:
        """The processes of the newest attempt that wrote themselves down: ranks, or the one that validates."""
        run = self.attempt(job_id)
        return [process for process in run.recorded_processes() if alive(process)] if run else []

    def launched(self, job_id: str) -> psutil.Process | None:
        """The process of the newest attempt that its worker started: torchrun, or the one that validates."""
        for process in self.ranks(job_id):
            with suppress(psutil.NoSuchProcess):
                for above in [process, *process.parents()]:
                    parent = above.parent()
                    if parent is not None and MARK not in parent.environ():
                        return above
        return None

    def workers(self) -> list[psutil.Process]:
        """All living workers, those beside too."""
        return [process for process in map(self._process, self.ask(_registered)) if process is not None]

    def worker_of(self, job_id: str) -> psutil.Process | None:
        """The worker whose attempt is the job's newest, if it lives and the attempt is not over."""
        attempts = self.attempts(job_id)
        if not attempts or attempts[-1].ended_at is not None:
            return None
        worker = self.ask(lambda session: session.get(Worker, attempts[-1].worker_id))
        return self._process(worker) if worker is not None else None

    def _process(self, worker: Worker) -> psutil.Process | None:
        """If it lives; another process may have its pid by now."""
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied, FileNotFoundError):  # the last: see worker/sweep.py
            process = psutil.Process(worker.pid)
            ours = process.environ().get("DPO_RUNS_DIR") == str(self.service.runs)
            return process if ours and alive(process) else None
        return None


def _registered(session: Session) -> list[Worker]:
    return list(session.scalars(select(Worker).where(Worker.left_at.is_(None))))
