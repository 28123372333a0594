"""A worker that was told to stop ends in time, whatever its threads wait for: PostgreSQL that hangs, a lock, a disk.

The kernel's signals come to a thread of their own here, through a pipe that Python's C code writes to. The main
thread's handlers need that thread to come back from whatever it waits for. (One that the kernel itself holds lives on
until the kernel lets it go; the ranks' own watches of the lease need nobody.)
"""

from __future__ import annotations

import faulthandler
import os
import select
import signal
import threading
import time
from contextlib import suppress

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
SAY_SECONDS = 1.0
"""A log that nobody reads may hang, too."""


def arm(first: float, again: float) -> None:
    """From the main thread: ends the process `first` seconds after the first signal to stop, or `again` seconds after
    a later one if that is sooner. Its ranks die with it; the leases that it holds run out."""
    signals, signalled = os.pipe()
    os.set_blocking(signalled, False)
    signal.set_wakeup_fd(signalled, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(signals, first, again), name="last resort", daemon=True).start()


def _watch(signals: int, first: float, again: float) -> None:
    end, patience = float("inf"), first
    while True:
        left = None if end == float("inf") else max(0.0, end - SAY_SECONDS - time.monotonic())
        if not select.select([signals], [], [], left)[0]:
            break
        for _ in range(sum(number in STOP_SIGNALS for number in os.read(signals, 4096))):
            end, patience = min(end, time.monotonic() + patience), again
    with suppress(RuntimeError):  # some versions of Python start no thread while they leave
        threading.Thread(target=_say, daemon=True).start()
    time.sleep(SAY_SECONDS)
    os._exit(1)


def _say() -> None:
    os.write(2, b"something hangs: the worker leaves without it. Where its threads stand:\n")
    faulthandler.dump_traceback_later(0.001)  # by a thread of C code: writing itself would keep us all waiting
