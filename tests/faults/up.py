"""`python -m tests.faults.up [--stub OPTIONS…] up …`: `dpo up` for the harness.

A part that ends is started again after half a second, always: here a fault every few seconds is no broken part.
With `--stub` the worker's trainer is tests/stub_trainer.py, with these options for `train`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cli import restarts, service
from cli.main import main

STUB_WORKER = ("-m", "tests.worker.stub_worker")


def program(stub: Sequence[str] | None) -> list[str]:
    """The command line up to `up`: with a stub trainer that has these options, or with the real one."""
    return [sys.executable, "-m", __spec__.name, *(("--stub", *stub) if stub is not None else ())]


def run(arguments: list[str]) -> None:
    before = arguments.index("up")
    ours, sys.argv[1:] = arguments[:before], arguments[before:]
    restarts.STEADY_SECONDS = 0.0
    if ours:
        dpo = service._dpo

        def with_stub(part: str, *options: str) -> list[str]:
            return [sys.executable, *STUB_WORKER, *ours[1:]] if part == "worker" else dpo(part, *options)

        service._dpo = with_stub
    main()


if __name__ == "__main__":
    run(sys.argv[1:])
