"""A benchmark's workload, and one run of ours on it, as `make bench-train` makes them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import ours
from benchmarks.lengths import like_hh_rlhf
from benchmarks.shape import TINY
from benchmarks.workload import Workload, build_drawn
from dpo_core.model_folder import parameter_count


@pytest.fixture(scope="module")
def workload(tmp_path_factory: pytest.TempPathFactory) -> Workload:
    made = Workload(tmp_path_factory.mktemp("bench") / "workload", TINY, batch_size=4, max_length=4096)
    build_drawn(made, like_hh_rlhf(8, seed=3))
    return made


def test_pairs_have_the_lengths_that_were_drawn(workload: Workload) -> None:
    assert sorted(map(repr, workload.lengths())) == sorted(map(repr, like_hh_rlhf(8, seed=3)))
    assert [len(step) for step in workload.steps()] == [4, 4]
    for row in json.loads(workload.tokens.read_bytes()):
        assert row["chosen_ids"][-1] == row["rejected_ids"][-1] == 2  # the end of turn
        assert row["chosen_ids"][0] != row["rejected_ids"][0]


def test_the_model_has_its_shape(workload: Workload) -> None:
    assert parameter_count(workload.model) == TINY.weights


def test_a_run_is_timed_step_by_step_and_its_reference_is_found_again(workload: Workload, tmp_path: Path) -> None:
    cold = ours.make_run(workload, tmp_path / "cold", {"beta": 0.1, "learning_rate": 1e-4})
    first = ours.train(cold, imported=0)
    warm = ours.make_run(
        workload, tmp_path / "warm", {"beta": 0.1, "learning_rate": 1e-4}, reference_cache=cold.reference
    )
    again = ours.train(warm, imported=0)
    assert len(first.seconds) == 1
    assert first.reference_seconds > 0
    assert again.reference_seconds == 0
    assert again.losses == first.losses
