"""`dpo watch`: a job's steps, numbers and events while it runs, and its outcome."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

from openai import APIConnectionError, InternalServerError, OpenAI
from openai.types.fine_tuning import FineTuningJob
from rich.console import Console

from cli.client import connected, reason
from cli.errors import CommandFailed
from cli.job_view import NAMES, JobView, job_view, progress
from cli.words import command, duration

T = TypeVar("T")

FINAL = ("succeeded", "failed", "cancelled")
POLL_SECONDS = 0.5
LONGEST_PAUSE = 10.0
PATIENCE = 600.0
"""Seconds without an answer after which a watcher gives up; the job itself doesn't need us."""
CHOSEN = "logps/chosen_per_token"
MARGIN = 20
"""Steps before the newest one of which measurements are asked for: they may be stored a moment later than the step."""


def watch(job_id: str, console: Console) -> None:
    """Follows the job to its end and prints what came out. Raises CommandFailed unless it succeeded."""
    with connected() as client:
        job = follow(client, job_id, console)
        if job.status == "failed":
            why = job.error.message if job.error else "no reason was given"
            raise CommandFailed(f"{job.id} failed: {why}")
        if job.status == "cancelled":
            raise CommandFailed(f"{job.id} was cancelled; its checkpoints stay (`{command('models', 'list')}`)")
        for line in outcome(client, job):
            console.print(line, markup=False, highlight=False, soft_wrap=True)


def follow(client: OpenAI, job_id: str, console: Console, *, events: bool = True) -> FineTuningJob:
    """Shows the job until it is over, and returns it. `events`: also what happened to it, as lines.

    A service that stops answering is waited for. Raises CommandFailed when that takes too long, and
    OpenAIError for a job that isn't there.
    """
    job = client.fine_tuning.jobs.retrieve(job_id)
    client = client.with_options(max_retries=0)  # trying again, and saying so, is done here
    with job_view(console) as view:
        watcher = _Watcher(client, job, view, events=events)
        while True:
            watcher.look()
            if watcher.job.status in FINAL:
                return watcher.job
            time.sleep(POLL_SECONDS)


def patiently(ask: Callable[[], T], say: Callable[[str], None], go_on: str) -> T:
    """What `ask` returns, once the service answers; `say` hears that it doesn't. `ask` itself should try only once.

    Raises CommandFailed, which names the command to `go_on` with, when that takes longer than PATIENCE.
    """
    silent_since, pause = time.monotonic(), POLL_SECONDS
    while True:
        try:
            found = ask()
        except (APIConnectionError, InternalServerError) as error:
            silent = time.monotonic() - silent_since
            if silent > PATIENCE:
                raise CommandFailed(
                    f"the service has not answered for {duration(silent)} ({reason(error)}); "
                    f"once it does, go on with `{go_on}`"
                ) from None
            if pause == POLL_SECONDS:
                say(f"the service doesn't answer ({reason(error)}); trying again")
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
        else:
            if pause > POLL_SECONDS:
                say("the service answers again")
            return found


class _Watcher:
    """What has been seen of one job so far."""

    def __init__(self, client: OpenAI, job: FineTuningJob, view: JobView, *, events: bool) -> None:
        self.job = job
        self._client, self._view, self._events = client, view, events
        self._newest_event = ""
        self._trained = False
        self._longest_lease = 0
        self._silence: str | None = None

    def look(self) -> None:
        """One look at the service, however long it takes to answer."""
        patiently(self._look, self._view.line, command("watch", self.job.id))

    def _look(self) -> None:
        job = self._client.fine_tuning.jobs.retrieve(self.job.id)
        if self._events:
            self._show_new_events()
        step, _ = progress(job)
        # A resumed run goes back to its checkpoint: what was measured beyond is not the newest any more.
        lines = [line for line in measurements(self._client, job.id, "train", step - MARGIN) if line["step"] <= step]
        self._listen(job)
        if self._silence is not None:
            self._view.waiting(self._silence)
        elif lines and (job.status == "running" or job.status in FINAL):
            self._trained = True
            self._view.training(job, lines[-1]["values"])
        elif job.status not in FINAL:
            self._view.waiting(self._awaited(job))
        self.job = job

    def _show_new_events(self) -> None:
        fresh = []
        for event in self._client.fine_tuning.jobs.list_events(self.job.id, limit=20):  # newest first
            if event.id == self._newest_event:
                break
            fresh.append(event)
        for event in reversed(fresh):
            if event.level != "error":  # the job's end, which its `error` tells
                self._view.event(event)
            self._newest_event = event.id

    def _listen(self, job: FineTuningJob) -> None:
        """Whether the job's worker is heard of."""
        run = (job.model_extra or {})["run"]
        left = run.get("lease_left")
        self._longest_lease = max(self._longest_lease, left or 0)
        missed, self._silence = self._silence, silence(run["state"], left, self._longest_lease)
        if missed is not None and self._silence is None and left is not None:
            self._view.line("its worker, or another one, is heard of")

    def _awaited(self, job: FineTuningJob) -> str:
        run = (job.model_extra or {})["run"]
        gpus = run["gpus"]
        if run["state"] == "paused":
            return f"paused; to go on: {command('resume', job.id)}"
        if run["waits_for"]:
            shared = "read the data" if job.status == "validating_files" else "measured the reference"
            return f"waiting until {run['waits_for']} of the same sweep has {shared}"
        if job.status == "validating_files":
            return "waiting until a worker has read and checked the data"
        if job.status == "running":
            return "waiting for the first step: the trainer loads the model"
        again = " to go on" if self._trained else ""
        return f"waiting for a worker with {gpus} free {'slot' if gpus == 1 else 'slots'}{again}"


def silence(state: str, left: int | None, longest: int) -> str | None:
    """That the job's worker is not heard of, if it is not.

    `left`: seconds of its lease, `longest`: as many as there ever were. It is renewed before half of it is over.
    """
    then = "the job will be paused" if state == "pausing" else "the next free one will go on"
    if left is None or (left > 0 and 2 * left >= longest):
        return None
    return f"no news from its worker; if that lasts, {then}" if left else f"its worker is not heard of: {then}"


def measurements(client: OpenAI, job_id: str, split: str, after_step: int | None = None) -> list[dict[str, Any]]:
    """A job's measurements (`step`, `values`) by step; with `after_step`, only later ones."""
    query: dict[str, object] = {"split": split}
    if after_step is not None:
        query["after_step"] = after_step
    path = f"/fine_tuning/jobs/{job_id}/metrics"
    found: Any = client.get(path, cast_to=object, options={"params": query})
    lines: list[dict[str, Any]] = found["data"]
    return lines


def outcome(client: OpenAI, job: FineTuningJob) -> list[str]:
    """What a succeeded job learned, what to call it, and how to fetch it."""
    model = job.fine_tuned_model or ""
    step, _ = progress(job)
    lines = ["", f"{job.id} succeeded: {model}, {step} steps"]
    # The whole history of a long run is large; its beginning is needed of the held-out part alone.
    trained = measurements(client, job.id, "train", step - MARGIN)
    if trained:
        lines.append(f"  training  {_numbers(trained[-1]['values'])}")
    held_out = measurements(client, job.id, "validation")
    if held_out:
        before, after = held_out[0]["values"], held_out[-1]["values"]
        lines += [f"  held out  {_numbers(after, before)}", *likelihood(before, after)]
    best = (job.model_extra or {})["run"]["best"]
    better = best if best is not None and best["step"] != step else None
    if better is not None:
        lines.append(
            f"  best      {better['model']}: {better['metric']} {better['value']:z.4f} at step {better['step']}"
        )
    for file in job.result_files:
        lines.append(f"  all steps {command('files', 'get', file)} > {model.partition('/')[2]}.csv")
    return [*lines, "", *next_commands(model, better["model"] if better else None)]


def next_commands(model: str, best: str | None) -> list[str]:
    """How to get what was trained; `best`: the model by validation, where that is an earlier one than `model`."""
    last = command("download", model, model.partition("/")[2])
    if best is None:
        return [f"next: {last}"]
    return [f"next: {command('download', best, best.partition('/')[2])}", f"or the last step's: {last}"]


def likelihood(before: dict[str, float], after: dict[str, float]) -> list[str]:
    """Whether the chosen answers became likelier: margin and accuracy only compare them with the rejected ones."""
    if CHOSEN not in before or CHOSEN not in after:
        return []
    begin, end = round(before[CHOSEN], 2), round(after[CHOSEN], 2)
    lines = [f"            log-probability of the chosen answers, a token: {begin:z.2f} → {end:z.2f}"]
    if end < begin:
        lines.append("            they became less likely; docs/losses.md says what keeps them up")
    return lines


def _numbers(values: dict[str, float], before: dict[str, float] | None = None) -> str:
    shown = {name: key for key, name in NAMES.items() if key in values}
    start = {name: f"{before[key]:z.4f} → " if before and key in before else "" for name, key in shown.items()}
    return "   ".join(f"{name} {start[name]}{values[key]:z.4f}" for name, key in shown.items())
