"""The whole service for a benchmark, and one training run with it and without it.

`under_the_worker` submits a job over HTTP and reads what its trainer writes; `alone` starts the same trainer on the
same spec and inputs, with nothing around it.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx2
import psutil

from benchmarks.servers import dpo, servers
from control_plane import keys, models, projects
from control_plane.database import Database
from dpo_core.run_directory import RunDirectory
from worker.launch import trainer_environment

T = TypeVar("T")
JOBS = "/v1/fine_tuning/jobs"
PATIENCE_SECONDS = 600.0
ATTEMPT_OF_TRAINING = 2
"""The fence: validation is the first attempt."""
MADE_BY_THE_RUN = ("processes", "checkpoints", "*.jsonl", "log.txt", "status.json", "lease", ".owner", ".*")


@dataclass(frozen=True)
class Load:
    """What of a host's cores the trainers use."""

    ranks: int
    threads: int | None = None
    """Of each rank; None shares all cores out among them."""

    @property
    def environment(self) -> dict[str, str]:
        return {} if self.threads is None else {"OMP_NUM_THREADS": str(self.threads)}


@dataclass(frozen=True)
class Service:
    http: httpx2.Client
    runs: Path
    database: Database
    processes: list[psutil.Process]
    """PostgreSQL, Redis, the API and the worker."""

    def cpu_seconds(self) -> float:
        """Of the service, PostgreSQL's processes included, without the trainers."""
        own = [*self.processes, *self.processes[0].children(recursive=True)]
        return sum(sum(process.cpu_times()[:2]) for process in own)

    def upload(self, path: Path) -> str:
        with open(path, "rb") as file:
            answer = self.http.post("/v1/files", data={"purpose": "fine-tune"}, files={"file": (path.name, file)})
        file_id = str(_checked(answer)["id"])
        wait_for(lambda: self.http.get(f"/v1/files/{file_id}/report", params={"wait": 30}).status_code == 200)
        return file_id

    def job(self, job_id: str) -> dict[str, Any]:
        return _checked(self.http.get(f"{JOBS}/{job_id}"))

    def require_success(self, job_id: str) -> None:
        # Seldom: each question costs the API what would be counted as supervision.
        wait_for(lambda: self.job(job_id)["status"] in ("succeeded", "failed", "cancelled"), every=3.0)
        job = self.job(job_id)
        if job["status"] != "succeeded":
            raise RuntimeError(f"The job {job_id} is {job['status']}: {job['error']}")


@contextmanager
def service(folder: Path, model: Path, load: Load) -> Iterator[Service]:
    """PostgreSQL, Redis, API and worker in processes of their own, with `model` registered as base/bench."""
    with servers(folder) as under, socket.create_server(("127.0.0.1", 0)) as port:
        database = Database(under.database_url)
        with database.transaction() as session:
            models.register_base(session, model, "bench")
            _, key = keys.create(session, projects.ensure(session, "default").id, "bench", requests_per_minute=0)
        own = {"DPO_CPU_SLOTS": str(load.ranks), "CUDA_VISIBLE_DEVICES": ""} | load.environment
        url, headers = f"http://127.0.0.1:{port.getsockname()[1]}", {"Authorization": f"Bearer {key}"}
        with (
            dpo(under, "api", "--fd", str(port.fileno()), keep_open=(port.fileno(),), more=own) as api,
            dpo(under, "worker", more=own) as worker,
            httpx2.Client(base_url=url, headers=headers, timeout=60) as http,
        ):
            wait_for(lambda: http.get("/readyz").status_code == 200)
            yield Service(http, folder / "runs", database, [*under.processes, api, worker])
        database.dispose()


@dataclass(frozen=True)
class Run:
    step_ends: list[float]
    """When each step's metrics were written, in seconds since 1970."""
    cpu_seconds: float
    """The service's, between the ends of the first and the last step."""

    @property
    def seconds(self) -> list[float]:
        """Of each step but the first, which warms up."""
        return [later - earlier for earlier, later in zip(self.step_ends, self.step_ends[1:], strict=False)]


def under_the_worker(served: Service, request: dict[str, Any], template: Path | None = None) -> Run:
    """Submits the job and sees it to its end. `template`: where to copy the run's spec and inputs to, for `alone`."""
    job_id = str(_checked(served.http.post(JOBS, json=request))["id"])
    run = RunDirectory(served.runs / job_id / str(ATTEMPT_OF_TRAINING))
    wait_for(run.spec_file.exists)
    if template is not None:
        # Hard links, as the worker makes them; and what is not there any more was not an input.
        shutil.copytree(run.path, template, ignore=shutil.ignore_patterns(*MADE_BY_THE_RUN), copy_function=os.link)
        (template / "spec.json").unlink()
        (template / "spec.json").write_text(run.spec_file.read_text().replace(str(run.path), "TEMPLATE"))
    wait_for(run.metrics_file.exists)
    with open(run.metrics_file, encoding="utf-8") as metrics:  # outlives its name, which goes with the run directory
        wait_for(lambda: '"split": "train"' in run.metrics_file.read_text())
        before = served.cpu_seconds()
        served.require_success(job_id)
        spent = served.cpu_seconds() - before
        return Run(_step_ends(metrics.read()), spent)


def alone(template: Path, folder: Path, load: Load) -> Run:
    """The trainer that the worker starts, on the same spec and inputs, in the same environment."""
    shutil.copytree(template, folder, copy_function=os.link)
    run = RunDirectory(folder)
    for made in (run.processes, run.checkpoints):
        made.mkdir()
    text = run.spec_file.read_text().replace("TEMPLATE", str(folder))
    run.spec_file.unlink()
    run.spec_file.write_text(text)
    with open(run.log_file, "wb") as log:
        command = [sys.executable, "-m", "dpo_core.launch", str(folder)]
        environment = trainer_environment(os.environ | load.environment, run, "cpu", [])
        subprocess.run(command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT, check=True)
    return Run(_step_ends(run.metrics_file.read_text()), 0.0)


def wait_for(condition: Callable[[], bool], every: float = 0.2) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not so after {PATIENCE_SECONDS:g} s")
        time.sleep(every)


def _step_ends(lines: str) -> list[float]:
    records = [json.loads(line) for line in lines.splitlines()]
    return [record["time"] for record in records if record["split"] == "train"]


def _checked(answer: httpx2.Response) -> dict[str, Any]:
    if answer.is_error:
        raise RuntimeError(f"{answer.request.method} {answer.request.url}: {answer.status_code} {answer.text}")
    body: dict[str, Any] = answer.json()
    return body
