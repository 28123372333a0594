"""Follows a job over HTTP and shows its steps, loss, margin and remaining time while it trains."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from openai import OpenAI
from openai.types.fine_tuning import FineTuningJob
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from service import DemoFailed

POLL_SECONDS = 0.5
FINAL = ("succeeded", "failed", "cancelled")
SHOWN = {
    "loss": "loss",
    "token_accuracy": "token accuracy",
    "rewards/margins": "margin",
    "rewards/accuracies": "preferred the right answer",
}


def follow(client: OpenAI, job: FineTuningJob, console: Console) -> FineTuningJob:
    """Returns the job once it has succeeded. Raises DemoFailed when it ends otherwise."""
    with _bar(console) as bar:
        task = bar.add_task(job.status, total=None, numbers="")
        view = View(client, job.id, bar, task, console)
        while job.status not in FINAL:
            time.sleep(POLL_SECONDS)
            job = client.fine_tuning.jobs.retrieve(job.id)
            view.update(job)
    if job.status != "succeeded":
        reason = job.error.message if job.error and job.error.message else "no reason was given"
        raise DemoFailed(f"job {job.id} ended {job.status}: {reason}")
    return job


@contextmanager
def _bar(console: Console) -> Iterator[Progress]:
    columns = (TextColumn("  {task.description:<16}"), BarColumn(24), MofNCompleteColumn())
    with Progress(*columns, TextColumn("{task.fields[numbers]}"), console=console, transient=False) as bar:
        yield bar


class View:
    """What is on the screen about one job. Where the output is no terminal, a line for every tenth of the steps."""

    def __init__(self, client: OpenAI, job_id: str, bar: Progress, task: TaskID, console: Console) -> None:
        self.client, self.job_id, self.bar, self.task, self.console = client, job_id, bar, task, console
        self.step = -1
        self.told = -1

    def update(self, job: FineTuningJob) -> None:
        query = {"split": "train"} | ({"after_step": self.step} if self.step >= 0 else {})
        path = f"/fine_tuning/jobs/{self.job_id}/metrics"
        found: Any = self.client.get(path, cast_to=object, options={"params": query})
        if not found["data"]:
            self.bar.update(self.task, description=job.status.replace("_", " "))
            return
        last = found["data"][-1]
        self.step = last["step"]
        total = (job.model_extra or {})["run"]["progress"]["total_steps"]
        numbers = describe(last["values"], job.estimated_finish)
        self.bar.update(self.task, description=job.status, completed=self.step + 1, total=total, numbers=numbers)
        tenth = 10 * (self.step + 1) // total
        if not self.console.is_terminal and tenth > self.told:
            self.told = tenth
            self.console.print(f"  step {self.step + 1:>4} of {total}  {numbers}", highlight=False)


def describe(values: dict[str, float], finish: int | None) -> str:
    """A measurement in a few words, with the time to go. `finish`: Unix second, as the API estimates it."""
    words = [f"{name} {values[key]:.3f}" for key, name in SHOWN.items() if key in values]
    if finish is not None:
        words.append(f"ETA {max(0, finish - int(time.time()))} s")
    return "  ".join(words)
