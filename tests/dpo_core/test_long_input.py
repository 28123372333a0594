"""Sequences of 16,384 tokens, from files to trained weights: one pair as it is, and one that has to lose turns."""

from __future__ import annotations

import math

import pytest

from dpo_core.prepare import prepare
from dpo_core.prepare_report import Prepared
from dpo_core.run_directory import RunDirectory
from dpo_core.spec import ModelSource, RunSpec, TrainingSpec
from tests.dpo_core.runs import lines, train_all
from tests.makers import make_tiny_model, write_rows

CONTEXT = 16_384
VOCABULARY = 32_000


def row(first_turn: int, last_turn: int) -> dict[str, object]:
    """One token a letter: two turns of the user's, an answer between them, and two answers of 2,000 tokens."""
    turns = [("user", "a" * first_turn), ("assistant", "b" * 100), ("user", "c" * last_turn)]
    return {
        "prompt": [{"role": role, "content": content} for role, content in turns],
        "chosen": "d" * 2000,
        "rejected": "e" * 2000,
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Prepared, RunDirectory]:
    folder = tmp_path_factory.mktemp("long")
    model = make_tiny_model(folder / "model", vocab=VOCABULARY, hidden=16, layers=1, heads=1, context=CONTEXT)
    spec = RunSpec(
        job_id="long",
        training=TrainingSpec(max_steps=1, learning_rate=1e-3, activation_checkpointing=True),
        model=ModelSource(id="default/long", path=model),
        training_file=write_rows(folder / "pairs.jsonl", [row(6000, 8000), row(9000, 14_000)]),
    )
    prepared = prepare(spec, tmp_path_factory.mktemp("tokens"))
    directory = RunDirectory(folder / "run")
    directory.create(spec.model_copy(update={"training": prepared.training}))
    train_all([directory], ranks=1)
    return prepared, directory


def test_they_are_kept_and_cut_to_the_context(trained: tuple[Prepared, RunDirectory]) -> None:
    prepared, _ = trained
    assert prepared.training.max_length == CONTEXT
    assert (prepared.report.lengths.p50, prepared.report.lengths.longest) == (16_141, 25_141)
    assert (prepared.report.truncated, prepared.report.dropped, prepared.report.train_items) == (1, 0, 2)


def test_they_train(trained: tuple[Prepared, RunDirectory]) -> None:
    values, (_, manifest) = lines(trained[1])[0], trained[1].complete_checkpoints()[-1]
    assert values["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert values["grad_norm"] > 0
    assert (manifest.step, manifest.final) == (1, True)


def test_their_logits_never_exist_at_once(trained: tuple[Prepared, RunDirectory]) -> None:
    """8,000 predicted tokens by 32,000 entries are 1 GB, and four times that with softmax and gradients."""
    assert lines(trained[1])[0]["peak_memory_bytes"] < 1.5 * 2**30
