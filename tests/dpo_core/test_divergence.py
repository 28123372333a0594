"""A pair that no log-probability can be had of: its step updates nothing, on any rank, at any stage; or ends the run.

The model's embedding of `~` is NaN, so whatever comes behind that letter is, too. Two epochs meet the pair twice.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from dpo_core.batches import Sampler
from dpo_core.run_directory import RunDirectory, read_lines
from tests.dpo_core.runs import TRAINING, Workshop, final_weights, launch, lines, tail, train_all

PAIRS = 44
STEPS = 12
WITHOUT_REFERENCE = {"loss": "simpo", "beta": 2, "reference": "none"}  # which would not be finite either
STAGES = range(4)


class Poisoned:
    """A model that can't read `~`, and files with one pair that has it."""

    def __init__(self, folder: Path) -> None:
        self.workshop = Workshop(folder)
        path = self.workshop.base.path
        weights = load_file(path / "model.safetensors")
        vocabulary = json.loads((path / "tokenizer.json").read_text())["model"]["vocab"]
        weights["model.embed_tokens.weight"][vocabulary["~"]] = math.nan
        save_file(weights, path / "model.safetensors", metadata={"format": "pt"})

    def make(self, name: str, place: int, *, ranks: int = 1, **changes: Any) -> RunDirectory:
        """A run over two epochs of pairs of which the one at `place` is bad."""
        rows = self.workshop.pairs.read_text().splitlines()
        row = json.loads(rows[place])
        row["preferred_output"][0]["content"] += "~"
        file = self.workshop.folder / f"{name}.jsonl"
        file.write_text("\n".join([*rows[:place], json.dumps(row), *rows[place + 1 :]]) + "\n")
        training = {**WITHOUT_REFERENCE, "epochs": 2, "skip_nonfinite_steps": 2, **changes.pop("training", {})}
        return self.workshop.make(name, ranks=ranks, training_file=file, training=training, **changes)


def met(place: int) -> list[int]:
    """The steps that see the pair at `place`."""
    sampler = Sampler(PAIRS, TRAINING["batch_size"], 42)
    return [step for step in range(STEPS) if place in sampler.batch(step)]


FIRST = Sampler(PAIRS, TRAINING["batch_size"], 42).batch(0)[0]
"""A pair of the very first step: when it is skipped AdamW has no moments yet."""
LATER = 16


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory: pytest.TempPathFactory) -> Poisoned:
    return Poisoned(tmp_path_factory.mktemp("poisoned"))


@pytest.fixture(scope="module")
def runs(poisoned: Poisoned) -> dict[str, RunDirectory]:
    make = poisoned.make
    exploding = {"lora": {"rank": 4, "alpha": 1e38}, "max_steps": 2}
    one = {
        "first": make("first", FIRST, training={"checkpoint_steps": 1}),
        "later": make("later", LATER),
        "exploding": make("exploding", LATER, training=exploding),
    }
    one["first, resumed"] = make("first-resumed", FIRST, resume_from=one["first"].checkpoints / "step-1")
    one["later, resumed"] = make("later-resumed", LATER, resume_from=one["later"].checkpoints / "step-6")
    two = {f"stage {stage}": make(f"stage-{stage}", LATER, ranks=2, training={"zero_stage": stage}) for stage in STAGES}
    for stage in (0, 3):
        checkpoint = two[f"stage {stage}"].checkpoints / "step-6"
        two[f"stage {stage}, resumed"] = make(
            f"stage-{stage}-resumed", LATER, ranks=2, training={"zero_stage": stage}, resume_from=checkpoint
        )
    train_all(list(one.values()), ranks=1)
    train_all(list(two.values()), ranks=2)
    return one | two


def events(run: RunDirectory) -> list[dict[str, Any]]:
    return [event for event, _ in read_lines(run.events_file, 0) if event["code"] == "not_finite"]


def test_what_is_not_finite_is_skipped_and_its_pair_is_named(runs: dict[str, RunDirectory]) -> None:
    values, steps = lines(runs["later"]), met(LATER)
    assert len(steps) == 2 and steps[0] < 6 <= steps[1]
    assert sorted(values) == list(range(STEPS))
    assert [step for step in values if "loss" not in values[step]] == steps, "JSON knows no NaN"
    assert [values[step]["skipped_steps"] for step in range(STEPS)] == [
        sum(met <= step for met in steps) for step in range(STEPS)
    ]
    first, second = events(runs["later"])
    assert first["message"] == (
        f"At step {steps[0]} the loss is nan: pair at line {LATER + 1}. "
        "The step was skipped, so no weight changed: 1 of 2 that may be."
    )
    assert first["data"]["pairs"] == [{"file": None, "line": LATER + 1}]
    assert second["data"]["skipped"] == 2


def test_a_skipped_step_changes_no_weight(runs: dict[str, RunDirectory]) -> None:
    folder, steps = runs["first"].checkpoints, met(FIRST)
    assert steps[0] == 0
    start = load_file(runs["first"].spec().model.path / "model.safetensors")
    after = load_file(folder / "step-1" / "model" / "model.safetensors")
    assert all(after[name].nan_to_num().equal(start[name].nan_to_num()) for name in after)
    before, behind = (folder / f"step-{step}" / "model" / "model.safetensors" for step in (steps[1], steps[1] + 1))
    assert before.read_bytes() == behind.read_bytes()
    moved = folder / f"step-{steps[1] + 2}" / "model" / "model.safetensors"
    assert moved.read_bytes() != behind.read_bytes()


@pytest.mark.parametrize("stage", STAGES)
def test_all_ranks_skip_the_same_steps_at_every_stage(runs: dict[str, RunDirectory], stage: int) -> None:
    expected, found = lines(runs["later"]), lines(runs[f"stage {stage}"])
    assert found.keys() == expected.keys()
    for step, values in expected.items():
        assert found[step].get("loss") == pytest.approx(values.get("loss"), abs=1e-5)
        assert found[step]["skipped_steps"] == values["skipped_steps"]
    assert [event["data"]["pairs"] for event in events(runs[f"stage {stage}"])] == 2 * [
        [{"file": None, "line": LATER + 1}]
    ]


@pytest.mark.parametrize("name", ["first", "later", "stage 0", "stage 3"])
def test_a_run_that_skipped_and_was_resumed_ends_in_the_same_bytes(runs: dict[str, RunDirectory], name: str) -> None:
    whole, resumed = runs[name], runs[f"{name}, resumed"]
    assert final_weights(resumed) == final_weights(whole)
    assert lines(resumed)[STEPS - 1]["loss"] == lines(whole)[STEPS - 1]["loss"]
    assert lines(resumed)[STEPS - 1]["skipped_steps"] == 2


def test_a_gradient_that_explodes_alone_names_the_batch(runs: dict[str, RunDirectory]) -> None:
    values = lines(runs["exploding"])
    assert [values[step].get("grad_norm") for step in values] == [None, None]
    assert min(met(LATER)) > 1
    (first, _) = events(runs["exploding"])
    assert "the gradient is not finite: one of pairs at line" in first["message"]
    assert len(first["data"]["pairs"]) == TRAINING["batch_size"]


def test_one_more_than_may_be_skipped_ends_the_run_with_its_line(poisoned: Poisoned) -> None:
    run = poisoned.make("ends", LATER, training={"skip_nonfinite_steps": 1})
    assert launch(run).wait(300) == 1, tail(run)
    status = run.status()
    assert status is not None and status.failure is not None
    assert (status.failure.kind, status.failure.code, status.failure.line) == ("divergence", "not_finite", LATER + 1)
    assert f"pair at line {LATER + 1}. The last checkpoint is still good." in status.failure.message
    assert [event["data"]["skipped"] for event in events(run)] == [1, 1]
    assert [manifest.step for _, manifest in run.complete_checkpoints()] == [3, 6, 9]
