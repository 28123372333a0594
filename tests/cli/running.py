"""A `dpo up` of its own for a test: started, waited for, and never left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from worker.sweep import alive

SECONDS = 120.0


def dpo(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a `dpo` command to its end, with none of the caller's DPO_ variables."""
    return subprocess.run(
        argv(arguments), capture_output=True, text=True, timeout=SECONDS, check=False, env=clean(environment)
    )


def until(true: Callable[[], bool], what: str) -> None:
    """Polls; fails after a generous deadline."""
    deadline = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < deadline, f"waited {SECONDS:.0f} s: {what}"
        time.sleep(0.05)


class Running:
    """One `dpo up --data DATA`, ready. `environment`: variables for it and all its parts; `program`: what is run
    instead of `dpo`."""

    def __init__(
        self, data: Path, cpu_slots: int = 1, *, port: int = 0, program: Sequence[str] = (), **environment: str
    ) -> None:
        self.data = data
        self.output = data.with_name(f"{data.name}-output.txt")
        arguments = ("up", "--data", data, "--port", port, "--cpu-slots", cpu_slots)
        with open(self.output, "w") as output:
            self.process = subprocess.Popen(
                [*program, *map(str, arguments)] if program else argv(arguments),
                stdout=output,
                stderr=subprocess.STDOUT,
                env=clean(environment),
            )
        until(self.ready_or_ended, "dpo up is ready")
        assert self.process.poll() is None, self.said()
        self.record = json.loads((data / "service.json").read_bytes())
        self.family = psutil.Process(self.process.pid).children(recursive=True)

    def ready_or_ended(self) -> bool:
        return self.process.poll() is not None or (self.said().count("ready:") > 0 and self._announced())

    def _announced(self) -> bool:
        try:
            return bool(json.loads((self.data / "service.json").read_bytes())["pid"] == self.process.pid)
        except FileNotFoundError:
            return False

    def said(self) -> str:
        return self.output.read_text()

    def part(self, name: str) -> psutil.Process | None:
        """The living part of that name: a program, or our own interpreter with that command."""
        for child in psutil.Process(self.process.pid).children():
            try:
                if child.name().startswith(name) or name in child.cmdline()[3:]:
                    return child
            except psutil.NoSuchProcess:  # a zombie is one too
                continue
        return None

    def stop(self, number: signal.Signals = signal.SIGINT) -> int:
        self.process.send_signal(number)
        return self.process.wait(SECONDS)

    def gone(self) -> bool:
        return not any(alive(process) for process in self.family)

    def clean_up(self) -> None:
        """For a test that failed: nothing is left behind."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        until(self.gone, "the parts end with dpo up")


def argv(arguments: tuple[object, ...]) -> list[str]:
    return [sys.executable, "-P", "-m", "cli", *map(str, arguments)]


def clean(extra: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(("DPO_", "OPENAI_"))} | extra
