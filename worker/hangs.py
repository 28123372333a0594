"""A trainer that lives but no longer gets on: noticed by its pulse, never by its pid; then its stacks are taken.

The clock is this worker's own: a pulse that changed counts from when the change was seen.
"""

from __future__ import annotations

import signal
import time
from contextlib import suppress
from pathlib import Path

import psutil
from pydantic import ValidationError

from dpo_core.pulse import Beat, Phase
from dpo_core.run_directory import Failure, RunDirectory

LOOK_SECONDS = 1.0
UNEVEN: frozenset[Phase] = frozenset({"starting", "loading", "first step", "checkpoint"})
"""Phases without a beat in between, whose length depends on the model's size and on compilers."""
UNEVEN_TIMES = 4
UNEVEN_LEAST = 600.0
DUMP_SECONDS = 10.0
"""How long the ranks have for their stacks. A dump takes milliseconds; a process that is frozen never writes one."""
FRAMES = 16
"""Of each rank's stack in the event; the log has all of them."""
TRAINER_HUNG = "trainer_hung"
NOTHING_WRITTEN = "  nothing was written: it is frozen, or waits in the kernel"


def patience(phase: Phase, hang_seconds: float) -> float:
    """For how long a trainer may make no progress in `phase`."""
    return max(UNEVEN_TIMES * hang_seconds, UNEVEN_LEAST) if phase in UNEVEN else hang_seconds


class Watch:
    """Of one trainer, from its launch on."""

    def __init__(self, run: RunDirectory, hang_seconds: float) -> None:
        self._run = run
        self._hang_seconds = hang_seconds
        self._seen: tuple[bytes, bytes] = (b"", b"")
        self._changed = self._next_look = time.monotonic()
        self._asked_at: float | None = None

    def look(self) -> Failure | None:
        """The verdict on a trainer that hangs, once its stacks are written. Call it often; it reads once a second."""
        now = time.monotonic()
        if now < self._next_look:
            return None
        self._next_look = now + LOOK_SECONDS
        seen = (_content(self._run.pulse_file), _content(self._run.status_file))
        if seen != self._seen:
            self._seen, self._changed, self._asked_at = seen, now, None
            return None
        phase = _phase(seen[0])
        if now - self._changed < patience(phase, self._hang_seconds):
            return None
        if self._asked_at is None:
            self._asked_at = now
            self._ask_for_stacks()
            return None
        if now - self._asked_at < DUMP_SECONDS and not self._all_written():
            return None
        return self._verdict(phase, now - self._changed)

    def _ask_for_stacks(self) -> None:
        for process in self._run.recorded_processes():
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGUSR1)

    def _all_written(self) -> bool:
        stacks = list(self._run.stacks.glob("*.txt"))
        return bool(stacks) and all(path.stat().st_size for path in stacks)

    def _verdict(self, phase: Phase, seconds: float) -> Failure:
        stacks = {path.stem: path.read_text(errors="replace") for path in sorted(self._run.stacks.glob("*.txt"))}
        with suppress(OSError), open(self._run.log_file, "a", encoding="utf-8") as log:
            for rank, text in stacks.items():
                log.write(f"\n--- rank {rank} made no progress; its stacks:\n{text or NOTHING_WRITTEN}\n")
        status = self._run.status()
        where = f" at step {status.step}" if status is not None and status.total_steps is not None else ""
        message = (
            f"The trainer made no progress for {seconds:.0f} s ({phase}{where}) and was killed. Where each rank stood "
            "is in this event, and in full in the job's log."
        )
        heads = "\n".join(f"rank {rank}:\n{head(text)}" for rank, text in stacks.items())
        return Failure(kind="infrastructure", code=TRAINER_HUNG, message=message, log=heads or None)


def head(stacks: str) -> str:
    """The top of the main thread's stack, as faulthandler writes it: the signal reached that one."""
    _, found, rest = stacks.rpartition("Current thread")
    lines = rest.split("\n\n")[0].splitlines()[1 : 1 + FRAMES] if found else []
    return "\n".join(lines) or NOTHING_WRITTEN


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


def _phase(pulse: bytes) -> Phase:
    try:
        return Beat.model_validate_json(pulse).phase
    except ValidationError:
        return "starting"
