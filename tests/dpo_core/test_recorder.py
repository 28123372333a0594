from __future__ import annotations

from pathlib import Path

from dpo_core.recorder import Recorder
from dpo_core.run_directory import RunDirectory


def test_a_resumed_run_knows_what_was_measured_before_it(tmp_path: Path) -> None:
    """Its next checkpoint names the validation of the attempt before, until there is a newer one."""
    first, second = (Recorder(RunDirectory(tmp_path), writes=False, total_steps=4) for _ in range(2))
    first.metrics("validation", 2, {"loss": 0.5, "rewards/margins": 0.25})
    first.metrics("train", 2, {"loss": 0.75})
    second.recall(first.latest())
    second.metrics("train", 3, {"loss": 0.625})
    assert second.latest() == {"validation/loss": 0.5, "validation/rewards/margins": 0.25, "train/loss": 0.625}
