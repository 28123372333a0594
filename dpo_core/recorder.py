"""What a run tells while it trains: its status, metrics and events, in its run directory."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

from dpo_core.run_directory import Event, RunDirectory, Status

STATUS_INTERVAL = 0.5
"""Seconds between two writes of status.json while training: each is an fsync."""


@dataclass(slots=True)
class Recorder:
    """Rank 0's pen: status, metrics and events. The other ranks hold one that writes nothing."""

    directory: RunDirectory
    writes: bool
    total_steps: int
    last: dict[str, dict[str, float]] = field(default_factory=dict)
    status_written: float = -math.inf

    def event(self, code: str, message: str, *, warn: bool = False, **data: Any) -> None:
        if self.writes:
            level = "warn" if warn else "info"
            self.directory.append_event(Event(level=level, code=code, message=message, data=dict(data)))

    def metrics(self, split: str, step: int, values: dict[str, float]) -> None:
        """Leaves out what is not finite, for which JSON has no word. The caller checks what has to be finite."""
        values = {name: value for name, value in values.items() if math.isfinite(value)}
        self.last[split] = values
        if self.writes:
            self.directory.append_metrics(split, step, values)

    def latest(self) -> dict[str, float]:
        """The newest values of every split, named `split/metric`."""
        return {f"{split}/{name}": value for split, values in self.last.items() for name, value in values.items()}

    def recall(self, latest: dict[str, float]) -> None:
        """Takes over what `latest` said in an earlier attempt, so that a checkpoint says the same in this one."""
        for name, value in latest.items():
            split, _, metric = name.partition("/")
            self.last.setdefault(split, {})[metric] = value

    def running(self, step: int, *, now: bool = False) -> None:
        """Writes status.json, unless it was written just now and `now` is false."""
        due = time.monotonic() - self.status_written >= STATUS_INTERVAL
        if self.writes and (now or due):
            self.directory.write_status(Status(state="running", step=step, total_steps=self.total_steps))
            self.status_written = time.monotonic()

    def finish(self, status: Status) -> Status:
        if self.writes:
            self.directory.write_status(status)
        return status
