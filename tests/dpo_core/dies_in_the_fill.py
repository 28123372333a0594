"""Trains a run directory whose last rank kills itself once the first round of the reference's batches is in a shard."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dpo_core import reference_pass
from dpo_core.engine import processes
from dpo_core.run_directory import RunDirectory
from dpo_core.train import Loop


def main(path: str) -> None:
    directory, fill = RunDirectory(Path(path)), reference_pass.fill

    def dying(*arguments: Any) -> Iterator[list[slice]]:
        for together in fill(*arguments):
            yield together
            while not directory.reference_shards():
                time.sleep(0.01)  # rank 0 has yet to write it
            if int(os.environ["RANK"]) == int(os.environ["WORLD_SIZE"]) - 1:
                os.kill(os.getpid(), signal.SIGKILL)

    reference_pass.fill = dying
    reference_pass.SHARD_SECONDS = 0.0
    with processes("cpu") as world:
        Loop(directory.spec(), directory, world)


if __name__ == "__main__":
    main(sys.argv[1])
