"""`python -m dpo_core RUN_DIR`: one rank, under torchrun (see dpo_core.launch) or alone.

SIGTERM asks for a checkpoint at the end of the step, then exit 0 with status `stopped`.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path

from dpo_core.process import arm_parent_death, dump_stacks_when_asked, start_deadman
from dpo_core.run_directory import RunDirectory, Status


class StopRequest:
    """True once SIGTERM has come."""

    def __init__(self) -> None:
        self.asked = False
        signal.signal(signal.SIGTERM, self._note)

    def _note(self, _signal: int, _frame: object) -> None:
        self.asked = True

    def __call__(self) -> bool:
        return self.asked


def main(path: Path) -> int:
    """Runs one rank; returns its exit code."""
    stop = StopRequest()  # before the imports, which take seconds
    arm_parent_death()
    directory = RunDirectory(path)
    rank = int(os.environ.get("RANK", "0"))
    dump_stacks_when_asked(path, str(rank))  # first: who is written down gets the signal
    directory.record_process(str(rank))
    start_deadman(path)
    try:
        if rank == 0:
            directory.write_status(Status(state="starting"))
        run = directory.spec()
        from dpo_core.train import train

        train(run, directory, stop)
    except Exception as error:
        from dpo_core.failures import end_with

        logging.getLogger("dpo_core").exception("The run failed.")
        return end_with(directory, error)
    return 0


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m dpo_core RUN_DIR")
    sys.exit(main(Path(sys.argv[1])))
