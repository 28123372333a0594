from __future__ import annotations

import pytest

from dpo_core.disk import disk
from dpo_core.model_folder import ModelFacts, Shape
from dpo_core.prepare_report import Disk
from dpo_core.spec import TrainingSpec

MODEL = ModelFacts(1000, 100, None, Shape(2, 8, 16, heads=2, key_heads=1, head_size=4))


def of(total_steps: int, **training: object) -> Disk:
    resolved = {"precision": "float32", "checkpoint_steps": 10, "evaluation_steps": 5} | training
    return disk(TrainingSpec.model_validate(resolved), MODEL, total_steps)


def test_all_weights_by_hand() -> None:
    # steps 10, 20 and 25; 4 bytes a weight, and 12 for masters and moments in the newest two
    assert of(25) == Disk(checkpoints=3, model=4000, state=12_000, kept=12_000, peak=12_000 + 24_000)
    assert of(25, precision="bfloat16").model == 2000
    assert of(7) == Disk(checkpoints=1, model=4000, state=12_000, kept=4000, peak=16_000)


def test_old_ones_go_when_newer_ones_are_there() -> None:
    # steps 10, 20, … 200; the 11th goes when the newest is there, and the best may be an old one
    assert of(200) == Disk(checkpoints=11, model=4000, state=12_000, kept=44_000, peak=48_000 + 24_000)
    assert of(200, keep_last=1, keep_best=2).checkpoints == 3
    assert of(20, keep_last=1).kept == 8000


def test_an_adapter_takes_what_it_trains() -> None:
    # rank 1: of each of 2 layers q 8+8, k 8+4, v 8+4, o 8+8, gate, up and down 8+16 each: 128
    found = of(10, lora={"rank": 1})
    assert (found.model, found.state) == (2 * 128 * 4, 2 * 128 * 12)


def test_early_stopping_may_make_one_at_every_evaluation() -> None:
    assert of(25, early_stopping={"metric": "loss"}).checkpoints == 5


def test_an_auto_can_not_be_counted() -> None:
    with pytest.raises(ValueError, match="resolved"):
        of(25, checkpoint_steps="auto")
