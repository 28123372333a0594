"""A job on the terminal: a bar that is redrawn with its numbers, or plain lines where the output is no terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn

from cli.words import duration

if TYPE_CHECKING:
    from openai.types.fine_tuning import FineTuningJob, FineTuningJobEvent

NAMES = {
    "loss": "loss",
    "token_accuracy": "token accuracy",
    "rewards/margins": "margin",
    "rewards/accuracies": "accuracy",
}
"""Metrics that are shown, and what they are called."""

STYLES = {"warn": "[yellow]warning:[/] ", "error": "[red]error:[/] "}


class JobView:
    """What is on the screen about one job. Plain output gets a line for every tenth of the steps."""

    def __init__(self, console: Console, bar: Progress) -> None:
        self._console, self._bar = console, bar
        self._task = bar.add_task("asking the service", total=None, steps="", numbers="")
        self._plain = not console.is_interactive
        self._phase = ""
        self._tenths = 0

    def waiting(self, why: str) -> None:
        """Nothing can be counted now; `why` says what is waited for."""
        self._bar.update(self._task, description=why, completed=0, total=None, steps="", numbers="")
        if self._plain and why != self._phase:
            self.line(why)
        self._phase = why

    def training(self, job: FineTuningJob, values: dict[str, float]) -> None:
        """`values`: the newest measurement on training data."""
        step, total = progress(job)
        self._phase = "training"
        numbers = describe(values, None if step == total else job.estimated_finish)
        steps = f"{step}/{total or '?'}"
        self._bar.update(self._task, description="training", completed=step, total=total, steps=steps, numbers=numbers)
        tenths = 10 * step // total if total else 0
        if self._plain and tenths != self._tenths:
            self._tenths = tenths
            self.line(f"step {step:>{len(str(total))}} of {total}  {numbers}")

    def event(self, event: FineTuningJobEvent) -> None:
        self.line(event_line(event), markup=True)

    def line(self, text: str, *, markup: bool = False) -> None:
        """A line that stays, above the bar."""
        self._console.print(text, markup=markup, highlight=False, soft_wrap=True)


def event_line(event: FineTuningJobEvent) -> str:
    """The event in one line of rich's markup."""
    clock = time.strftime("%H:%M:%S", time.localtime(event.created_at))
    return f"[dim]{clock}[/] {STYLES.get(event.level, '')}{escape(event.message)}"


@contextmanager
def job_view(console: Console) -> Iterator[JobView]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(24),
        TextColumn("{task.fields[steps]}"),
        TextColumn("{task.fields[numbers]}"),
    )
    with Progress(*columns, console=console, disable=not console.is_interactive) as bar:
        yield JobView(console, bar)


def progress(job: FineTuningJob) -> tuple[int, int | None]:
    """Steps done, and all steps once they are known."""
    found: dict[str, Any] = (job.model_extra or {})["run"]["progress"]
    return found["step"], found["total_steps"]


def describe(values: dict[str, float], finish: int | None) -> str:
    """A measurement in a few words, with the time to go. `finish`: Unix second, as the API estimates it."""
    words = [f"{name} {values[key]:z.3f}" for key, name in NAMES.items() if key in values]
    if finish is not None:
        words.append(f"ETA {duration(finish - time.time())}")
    return "  ".join(words)
