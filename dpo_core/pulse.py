"""A trainer's pulse: a small file that changes while it gets on, and names the phase that it is in.

Whoever supervises the run looks whether the file changes. That a process lives says nothing: one that waits for ever
for its peer, a lock or a file lives, too. Rank 0's pulse is enough, as ranks wait for each other every step.
Imports no torch.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Literal

from dpo_core.run_directory import RunDirectory, replace_unsynced
from dpo_core.spec import StrictModel

Phase = Literal["starting", "loading", "reference", "first step", "training", "evaluation", "checkpoint"]

INTERVAL = 1.0
"""Seconds between two writes within a phase."""


class Beat(StrictModel):
    """`pulse.json`."""

    phase: Phase
    count: int
    """Forward passes and phases so far."""


@dataclass(slots=True)
class Pulse:
    directory: RunDirectory
    writes: bool
    """False on ranks other than 0."""

    phase: Phase = "starting"
    count: int = 0
    written: float = -math.inf

    def enter(self, phase: Phase) -> None:
        if phase != self.phase:
            self.phase, self.written = phase, -math.inf
        self.beat()

    def beat(self) -> None:
        """Something was done. Cheap: called once a forward pass."""
        self.count += 1
        now = time.monotonic()
        if self.writes and now - self.written >= INTERVAL:
            self.written = now
            replace_unsynced(self.directory.pulse_file, Beat(phase=self.phase, count=self.count).model_dump_json())
