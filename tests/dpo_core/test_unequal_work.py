"""Ranks whose shares differ as much as they can, at every ZeRO stage: nothing hangs, and the result is one rank's."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpo_core.run_directory import RunDirectory
from tests.dpo_core.runs import Workshop, lines, losses, train_all
from tests.makers import write_rows

STAGES = (0, 1, 2, 3)
LENGTHS = (1, 150, 2, 5, 350, 1, 3, 40, 1, 2, 450)
"""Words of each pair's prompt."""
UNEQUAL = {"batch_size": 5, "max_length": 4096, "validation_fraction": 0.0}
"""11 pairs in batches of 5, 5 and 1: none divides by two ranks, and in the last one of them has nothing to do."""


def write_unequal_file(path: Path) -> Path:
    return write_rows(
        path,
        [
            {"prompt": f"{place} " + "a " * words, "chosen": "yes " * (words % 7 + 1), "rejected": "no"}
            for place, words in enumerate(LENGTHS)
        ],
    )


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunDirectory]:
    workshop = Workshop(tmp_path_factory.mktemp("unequal"))
    workshop.pairs = write_unequal_file(workshop.folder / "unequal.jsonl")
    made = {"alone": workshop.make("alone", training=UNEQUAL)}
    train_all([made["alone"]], ranks=1)
    for stage in STAGES:
        made[f"{stage}"] = workshop.make(f"{stage}", ranks=2, training=UNEQUAL | {"zero_stage": stage})
    train_all([made[f"{stage}"] for stage in STAGES], ranks=2)
    return made


@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks_agree_with_one(runs: dict[str, RunDirectory], stage: int) -> None:
    run = runs[f"{stage}"]
    assert len(losses(run)) == 3
    assert losses(run) == pytest.approx(losses(runs["alone"]), abs=1e-5)
    for split in ("train", "validation"):
        found, expected = lines(run, split), lines(runs["alone"], split)
        assert found.keys() == expected.keys()
        for step, values in found.items():
            assert values["rewards/margins"] == pytest.approx(expected[step]["rewards/margins"], abs=1e-5)
