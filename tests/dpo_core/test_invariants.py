"""What must not change the result: whole trajectories of 20 steps, over every way of cutting up the same work."""

from __future__ import annotations

import math
from typing import Any

import pytest

from dpo_core.run_directory import RunDirectory
from tests.dpo_core.runs import Workshop, lines, train_all

STEPS = 20
LONG = {"epochs": 4, "max_steps": STEPS, "evaluation_steps": 10, "checkpoint_steps": STEPS}
ONE_RANK: dict[str, dict[str, Any]] = {
    "shared": {},
    "one pair at a time": {"micro_batch_tokens": 1},
    "all eight pairs at once": {"micro_batch_tokens": 10_000},
    "separate": {"packing": "separate"},
    "padded": {"packing": "padded"},
    "checkpointed": {"activation_checkpointing": True},
}
TWO_RANKS: dict[str, dict[str, Any]] = {f"two ranks, stage {stage}": {"zero_stage": stage} for stage in range(4)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunDirectory]:
    workshop = Workshop(tmp_path_factory.mktemp("invariants"))
    made = {}
    for ranks, kinds in ((1, ONE_RANK), (2, TWO_RANKS)):
        some = {name: workshop.make(name, ranks=ranks, training=LONG | changes) for name, changes in kinds.items()}
        train_all(list(some.values()), ranks)
        made |= some
    return made


@pytest.mark.parametrize("name", [*list(ONE_RANK)[1:], *TWO_RANKS])
@pytest.mark.parametrize("split", ["train", "validation"])
def test_trajectories_agree(runs: dict[str, RunDirectory], name: str, split: str) -> None:
    expected, found = lines(runs["shared"], split), lines(runs[name], split)
    assert found.keys() == expected.keys()
    assert len(found) == (STEPS if split == "train" else 3)
    for step, values in expected.items():
        for metric in ("loss", "rewards/margins", "logps/chosen", "logps/rejected"):
            tolerance = 1e-5 * max(1.0, abs(values[metric]))
            assert found[step][metric] == pytest.approx(values[metric], abs=tolerance), (step, metric)


def test_the_first_gradient_is_the_same(runs: dict[str, RunDirectory]) -> None:
    """Before AdamW turns rounding into weight."""
    expected = lines(runs["shared"])[0]["grad_norm"]
    for name, run in runs.items():
        assert lines(run)[0]["grad_norm"] == pytest.approx(expected, rel=1e-5), name


def test_every_trajectory_learns_from_ln_2(runs: dict[str, RunDirectory]) -> None:
    for run in runs.values():
        values = lines(run)
        assert values[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
        assert values[STEPS - 1]["loss"] < values[0]["loss"] - 0.01
