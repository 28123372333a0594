"""Jobs, workers and stub trainers for the worker's tests."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from glob import glob
from pathlib import Path

import psutil
from sqlalchemy import select

from control_plane import files, jobs, projects
from control_plane.database import Database
from control_plane.ids import new_id
from control_plane.job_requests import read_request
from control_plane.settings import Settings
from control_plane.storage import DirectoryStorage, file_key, open_storage
from control_plane.tables import Attempt, Checkpoint, Event, Job, Metric, Model
from tests.service import run_processes
from tests.worker.stub_worker import stub_programs  # noqa: F401 (handed on to the tests)
from worker.launch import Programs
from worker.supervisor import Supervisor

DEADLINE_SECONDS = 120.0


def eventually(condition: Callable[[], bool], what: str) -> None:
    """Polls until `condition` holds; fails after a deadline that no healthy run comes near."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"still not so after {DEADLINE_SECONDS:g} s: {what}")
        time.sleep(0.02)


@dataclass
class World:
    """A database with a project and a base model, and its storage."""

    settings: Settings
    database: Database
    storage: DirectoryStorage
    project_id: str
    go: Path
    """The file that lets a held trainer go on."""

    @property
    def runs(self) -> Path:
        return self.storage.folder.parent / "runs"

    def job(self, text: str = "{}\n", **request: object) -> str:
        """Makes a job over a file with `text`."""
        return self.job_on(self.file(text), **request)

    def job_on(self, file_id: str, **request: object) -> str:
        with self.database.transaction() as session:
            body = {"model": "base/tiny", "training_file": file_id, **request}
            return jobs.create(session, self.project_id, read_request(body)).id

    def file(self, text: str) -> str:
        """The id of a new file with `text`."""
        file_id = new_id("file")
        with self.storage.writer(file_key(file_id)) as sink:
            sink.write(text.encode())
        with self.database.transaction() as session:
            files.add(
                session,
                self.project_id,
                filename="pairs.jsonl",
                purpose="fine-tune",
                bytes=len(text),
                sha256=hashlib.sha256(text.encode()).hexdigest(),
                storage_key=file_key(file_id),
                file_id=file_id,
            )
        return file_id

    def row(self, job_id: str) -> Job:
        with self.database.transaction() as session:
            return session.get_one(Job, job_id)

    def state(self, job_id: str) -> str:
        return self.row(job_id).state

    def reaches(self, job_id: str, *states: str) -> None:
        eventually(lambda: self.state(job_id) in states, f"{job_id} is {' or '.join(states)}")

    def outcomes(self, job_id: str) -> list[tuple[str, str | None]]:
        with self.database.transaction() as session:
            rows = session.scalars(select(Attempt).where(Attempt.job_id == job_id).order_by(Attempt.fence)).all()
        return [(row.kind, row.outcome) for row in rows]

    def codes(self, job_id: str) -> list[str]:
        with self.database.transaction() as session:
            return list(session.scalars(select(Event.code).where(Event.job_id == job_id).order_by(Event.sequence)))

    def checkpoints(self, job_id: str) -> list[Checkpoint]:
        query = select(Checkpoint).where(Checkpoint.job_id == job_id).order_by(Checkpoint.step)
        with self.database.transaction() as session:
            return list(session.scalars(query))

    def measured(self, job_id: str) -> list[int]:
        """The steps whose metrics are in the database."""
        with self.database.transaction() as session:
            return list(session.scalars(select(Metric.step).where(Metric.job_id == job_id).order_by(Metric.step)))

    def final_weights(self, job_id: str) -> str:
        with self.database.transaction() as session:
            prefix = session.get_one(Model, self.row(job_id).result_name).storage_prefix
        with self.storage.open(f"{prefix}/model/model.safetensors") as file:
            return file.read().decode()

    def processes(self) -> list[psutil.Process]:
        """Every process of a run below this world's run directories."""
        return run_processes(self.runs)

    def rank(self) -> psutil.Process:
        """The one rank that runs now, waiting for it to start."""
        eventually(lambda: len(self._ranks()) == 1, "one rank runs")
        return self._ranks()[0]

    def _ranks(self) -> list[psutil.Process]:
        ranks = []
        for process in self.processes():
            try:
                if "rank" in process.cmdline():
                    ranks.append(process)
            except psutil.NoSuchProcess:
                continue
        return ranks

    def nothing_left(self) -> None:
        eventually(lambda: not self.processes(), "no process of a run is left")
        eventually(lambda: not self.run_directories(), "no run directory is left")

    def run_directories(self) -> list[str]:
        return glob("*/*/", root_dir=self.runs)  # noqa: PTH207 - Path.glob fails where one goes meanwhile

    def held(self, job_id: str, step: int) -> None:
        """Waits until the trainer is held at `step` and everything before it was reported."""
        eventually(lambda: self.row(job_id).progress.get("step", -1) >= 0, "progress was reported")
        eventually(lambda: any(c.step == step for c in self.checkpoints(job_id)), f"checkpoint {step} is published")


def make_world(settings: Settings, database: Database, folder: Path) -> World:
    (folder / "tiny").mkdir()
    (folder / "tiny" / "config.json").write_text("{}")
    with database.transaction() as session:
        project = projects.ensure(session, "default")
        session.add(Model(id="base/tiny", kind="base", form="full", path=str(folder / "tiny"), facts={}))
    return World(settings, database, open_storage(settings.storage_url), project.id, folder / "go")


@contextmanager
def supervisor(settings: Settings, programs: Programs) -> Iterator[Supervisor]:
    """A supervisor in a thread of this process, stopped at the end."""
    with running(Supervisor(settings, programs)) as boss:
        yield boss


@contextmanager
def running(boss: Supervisor) -> Iterator[Supervisor]:
    thread = threading.Thread(target=boss.run)
    thread.start()
    try:
        yield boss
    finally:
        boss.stop()
        # By no long join: Linux tells the thread that forked of a child's end, and Python's handler runs in this one.
        eventually(lambda: not thread.is_alive(), "the supervisor stopped")


@contextmanager
def worker_process(settings: Settings, *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """`dpo worker` with the stub, as a process; stopped by SIGTERM at the end if it still runs."""
    dumped = settings.model_dump(exclude_none=True) | {
        "database_url": settings.database_url.get_secret_value(),
        "redis_url": settings.redis_url.get_secret_value(),
    }
    environment = os.environ | {f"DPO_{name.upper()}": str(value) for name, value in dumped.items()}
    root = Path(__file__).parents[2]
    process = subprocess.Popen([sys.executable, "-m", "tests.worker.stub_worker", *options], env=environment, cwd=root)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.terminate()
        process.wait(timeout=DEADLINE_SECONDS)
