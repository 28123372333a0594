"""A planted overfit: labels that are mostly noise, few of them, a large learning rate and many epochs."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from dpo_core.best import Best
from dpo_core.checkpoints import read_progress
from dpo_core.run_directory import RunDirectory
from tests.dpo_core.runs import Workshop, final_weights, lines, train_all
from tests.makers import write_rows

OVERFIT = {"learning_rate": 3e-3, "batch_size": 8, "epochs": 15, "evaluation_steps": 2, "checkpoint_steps": 1000}
STOPPING = OVERFIT | {"early_stopping": {"patience": 3}}


def write_noisy_file(path: Path, pairs: int, seed: int) -> Path:
    """Answers "yes" and "no" to questions that say nothing; "yes" wins three times out of four."""
    draw = random.Random(seed)
    rows: list[object] = []
    for number in range(pairs):
        answers = ["yes", "no"] if number % 4 else ["no", "yes"]
        question = "".join(draw.choices("abcdefgh", k=6))
        rows.append({"prompt": question, "chosen": answers[0], "rejected": answers[1]})
    draw.shuffle(rows)
    return write_rows(path, rows)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunDirectory]:
    workshop = Workshop(tmp_path_factory.mktemp("overfit"))
    workshop.pairs = write_noisy_file(workshop.folder / "noisy.jsonl", 16, seed=1)
    workshop.held_out = write_noisy_file(workshop.folder / "noisy_held_out.jsonl", 32, seed=2)
    made = {
        "whole": workshop.make("whole", training=OVERFIT | {"checkpoint_steps": 3}),
        "early": workshop.make("early", training=STOPPING),
    }
    train_all(list(made.values()), ranks=1)
    _, manifest = made["early"].complete_checkpoints()[-1]
    assert manifest.best is not None
    best = made["early"].checkpoints / f"step-{manifest.best.step}"
    made["resumed"] = workshop.make("resumed", training=STOPPING, resume_from=best)
    made["resumed at its end"] = workshop.make(
        "resumed at its end", training=STOPPING, resume_from=made["early"].checkpoints / f"step-{manifest.step}"
    )
    train_all([made["resumed"], made["resumed at its end"]], ranks=1)
    return made


def evaluations(run: RunDirectory) -> dict[int, float]:
    return {step: values["loss"] for step, values in lines(run, "validation").items()}


def best_of(run: RunDirectory) -> Best:
    best = run.complete_checkpoints()[-1][1].best
    assert best is not None
    return best


def test_the_best_beats_the_last_on_held_out_loss(runs: dict[str, RunDirectory]) -> None:
    for name in ("whole", "early"):
        best, measured = best_of(runs[name]), evaluations(runs[name])
        assert best.value == measured[best.step] < measured[max(measured)]
        assert (runs[name].checkpoints / f"step-{best.step}").is_dir()
    assert max(evaluations(runs["whole"])) == 30
    assert evaluations(runs["whole"])[30] > best_of(runs["whole"]).value + 0.02


def test_early_stopping_ends_the_run_when_patience_is_used_up(runs: dict[str, RunDirectory]) -> None:
    run, best = runs["early"], best_of(runs["early"])
    status, (_, last) = run.status(), run.complete_checkpoints()[-1]
    assert status is not None
    assert (status.state, status.step, status.total_steps) == ("succeeded", best.step + 6, 30)
    assert (last.step, last.final) == (status.step, True)
    events = [json.loads(line) for line in run.events_file.read_text().splitlines()]
    (said,) = [event["message"] for event in events if event["code"] == "stopped_early"]
    assert f"ends early at step {last.step} of 30: 3 evaluations in a row did not improve" in said
    assert f"validation loss {best.value:.6g} at step {best.step}" in said


def test_each_improvement_makes_a_checkpoint(runs: dict[str, RunDirectory]) -> None:
    measured = evaluations(runs["early"])
    lowest, improving = float("inf"), []
    for step in sorted(measured)[1:]:  # the first is the starting model
        if measured[step] < lowest:
            lowest = measured[step]
            improving.append(step)
    found = [manifest.step for _, manifest in runs["early"].complete_checkpoints()]
    assert found == [*improving, max(measured)]
    for _, manifest in runs["early"].complete_checkpoints()[:-1]:
        assert manifest.best == Best(step=manifest.step, metric="loss", value=measured[manifest.step])


def test_a_resumed_run_ends_at_the_same_step_with_the_same_bytes(runs: dict[str, RunDirectory]) -> None:
    early, resumed = runs["early"], runs["resumed"]
    assert final_weights(resumed) == final_weights(early)
    assert best_of(resumed) == best_of(early)
    (last, manifest), (again, _) = early.complete_checkpoints()[-1], resumed.complete_checkpoints()[-1]
    assert again.name == last.name
    assert read_progress(again).standing == read_progress(last).standing
    status = runs["resumed at its end"].status()
    assert status is not None
    assert (status.state, status.step) == ("succeeded", manifest.step)
    assert lines(runs["resumed at its end"]) == {}, "it had ended already"


def test_without_early_stopping_the_best_is_a_checkpoint_of_the_schedule(runs: dict[str, RunDirectory]) -> None:
    run = runs["whole"]
    steps = [manifest.step for _, manifest in run.complete_checkpoints()]
    assert steps == list(range(3, 31, 3))
    measured = evaluations(run)
    assert sorted(measured) == list(range(0, 31, 2)), "a checkpoint between two evaluations is not measured"
    assert best_of(run).step == min(measured.keys() & set(steps), key=lambda step: measured[step])
