"""Trains several run directories one after the other in one process group: a launch costs 7 CPU-seconds."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from dpo_core.engine import processes
from dpo_core.run_directory import RunDirectory
from dpo_core.train import Loop


def main(paths: list[str]) -> None:
    with processes("cpu") as world:
        for path in paths:
            directory = RunDirectory(Path(path))
            Loop(directory.spec(), directory, world).run_to_end()
            torch.compiler.reset()  # compiled code counts against a limit, and a run usually has its own process


if __name__ == "__main__":
    main(sys.argv[1:])
