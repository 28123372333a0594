"""Starts a part again when it ends by itself, later and later while it keeps ending."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from cli.parts import Part

FIRST_SECONDS = 0.5
LONGEST_SECONDS = 30.0
STEADY_SECONDS = 60.0


@dataclass
class Watched:
    """A running part and its record of failures. `say` tells the user what happens to it."""

    part: Part
    say: Callable[[str], None]
    failures: int = 0
    started: float = field(default_factory=time.monotonic)
    due: float | None = None
    """When it is started again (monotonic seconds); None while it runs."""

    def look(self, now: float) -> None:
        """One look at the part at monotonic second `now`; returns at once."""
        if self.due is not None:
            if now >= self.due:
                self.due, self.started = None, now
                self.part.start()
        elif not self.part.alive():
            self._plan_restart(now)

    def _plan_restart(self, now: float) -> None:
        if now - self.started > STEADY_SECONDS:
            self.failures = 0
        delay = min(FIRST_SECONDS * 2**self.failures, LONGEST_SECONDS)
        self.failures += 1
        self.due = now + delay
        self.say(f"{self.part.name} ended ({self.part.ending()}); started again in {delay:g} s; see {self.part.log}")
