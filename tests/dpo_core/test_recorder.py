from __future__ import annotations

import math
from pathlib import Path

from dpo_core.recorder import Recorder
from dpo_core.run_directory import RunDirectory, read_lines


def test_a_resumed_run_knows_what_was_measured_before_it(tmp_path: Path) -> None:
    """Its next checkpoint names the validation of the attempt before, until there is a newer one."""
    first, second = (Recorder(RunDirectory(tmp_path), writes=False, total_steps=4) for _ in range(2))
    first.metrics("validation", 2, {"loss": 0.5, "rewards/margins": 0.25})
    first.metrics("train", 2, {"loss": 0.75})
    second.recall(first.latest())
    second.metrics("train", 3, {"loss": 0.625})
    assert second.latest() == {"validation/loss": 0.5, "validation/rewards/margins": 0.25, "train/loss": 0.625}


def test_what_is_not_finite_is_left_out_and_ends_no_run(tmp_path: Path) -> None:
    """A rejected answer that became impossible makes margins infinite, and the loss 0."""
    recorder = Recorder(RunDirectory(tmp_path), writes=True, total_steps=4)
    recorder.metrics("validation", 2, {"loss": 0.0, "rewards/margins": math.inf, "logps/rejected": -math.inf})
    ((record, _),) = read_lines(recorder.directory.metrics_file, 0)
    assert record["values"] == {"loss": 0.0}
    assert recorder.latest() == {"validation/loss": 0.0}
