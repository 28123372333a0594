"""One run of this project's way in, in a process of its own: `python -m benchmarks.data_run SETTINGS.json`."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

from dpo_core.data.dataset import load
from dpo_core.data.file_check import check_file
from dpo_core.data.options import ReadOptions
from dpo_core.data.records import TokenPair
from dpo_core.data.render import Renderer


def main(settings: dict[str, Any]) -> dict[str, Any]:
    file, started = Path(settings["file"]), time.monotonic()
    if settings["task"] == "check":
        rows, first = check_file(file).rows, None
    else:
        renderer = partial(Renderer, Path(settings["model"]))
        table = load([file], ReadOptions("dpo"), renderer, lambda _: 2048, Path(settings["output"]) / "table")
        rows, first = len(table), table[0]
    seconds = time.monotonic() - started
    found: dict[str, Any] = {"seconds": seconds, "rows": rows, "peak_bytes": peak_bytes()}
    if isinstance(first, TokenPair):
        prompt = first.chosen_prompt
        found["first"] = {
            "prompt_ids": first.chosen[:prompt],
            "chosen_ids": first.chosen[prompt:],
            "rejected_ids": first.rejected[prompt:],
        }
    return found


def peak_bytes() -> int:
    """At most so much was resident at once: this process at its peak, and every other as large as the largest."""
    own, others = (resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return (own + (len(os.sched_getaffinity(0)) - 1) * others) * 1024


if __name__ == "__main__":
    given = json.loads(Path(sys.argv[1]).read_bytes())
    Path(given["result"]).write_text(json.dumps(main(given)))
