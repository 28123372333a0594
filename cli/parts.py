"""Child processes that `dpo up` (and the tests) start, wait for and stop.

A part dies with its parent, whatever happens to that: the kernel sends it `death_signal`. The signal
is sent when the *thread* that started the part ends, so parts are started from the main thread.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cli.errors import PartFailed

PR_SET_PDEATHSIG = 1


@dataclass
class Part:
    """One child process. `user` is set only where the parent is root and the program refuses to be.

    `keep_open` names file descriptors that the process inherits.
    """

    name: str
    argv: list[str]
    log: Path
    ready: Callable[[], bool]
    environment: dict[str, str] = field(default_factory=dict)
    user: str | None = None
    keep_open: tuple[int, ...] = ()
    stop_signal: signal.Signals = signal.SIGTERM
    death_signal: signal.Signals = signal.SIGTERM
    ready_seconds: float = 60.0
    stop_seconds: float = 30.0
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Starts the process and returns at once; `wait_ready` says when it can be used."""
        parent = os.getpid()
        libc = ctypes.CDLL(None, use_errno=True)
        death_signal = int(self.death_signal)

        def die_with_parent() -> None:
            libc.prctl(PR_SET_PDEATHSIG, death_signal)
            if os.getppid() != parent:
                os._exit(1)

        self.log.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.environment},
                user=self.user,
                group=self.user,
                extra_groups=[] if self.user else None,
                pass_fds=self.keep_open,
                start_new_session=True,  # Ctrl-C in the terminal reaches the parent alone, which stops in order
                preexec_fn=die_with_parent,  # noqa: PLW1509 - the main thread forks before it starts any other
            )

    def wait_ready(self) -> None:
        """Raises PartFailed when the process ends first, or takes longer than `ready_seconds`."""
        deadline = time.monotonic() + self.ready_seconds
        while not self.ready():
            if not self.alive():
                raise PartFailed(f"{self.name} ended while it started. The end of {self.log}:\n{self.log_tail()}")
            if time.monotonic() > deadline:
                raise PartFailed(f"{self.name} was not ready after {self.ready_seconds:.0f} s; see {self.log}")
            time.sleep(0.03)

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def ending(self) -> str:
        """How the process ended, in words; it must have."""
        code = self.process.returncode if self.process else None
        if code is not None and code < 0:
            return f"killed by {signal.Signals(-code).name}"
        return f"exit code {code}"

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()

    def stop(self) -> None:
        """Asks it to stop, and kills it after `stop_seconds`."""
        if self.process is None:
            return
        if self.alive():
            self.process.send_signal(self.stop_signal)
            try:
                self.process.wait(self.stop_seconds)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()

    def log_tail(self, lines: int = 15) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
