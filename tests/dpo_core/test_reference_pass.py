"""The reference on two real ranks: killed while it is measured, stopped, found, and only as much as is needed."""

from __future__ import annotations

import math
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dpo_core.batches import Sampler
from dpo_core.data.run_data import load_splits
from dpo_core.engine import World
from dpo_core.recorder import Recorder
from dpo_core.reference_cache import write_shard
from dpo_core.reference_pass import ReferencePass
from dpo_core.run_directory import RunDirectory, read_lines
from tests.dpo_core.runs import Workshop, final_weights, launch, lines, losses, tail, torchrun, train_all
from tests.dpo_core.test_launch import wait_for
from tests.makers import write_preference_file, write_rows

PAIRS, BATCH = 250, 8
"""Some 100 of these short pairs fill a batch of the reference pass."""
TRAINING = {"micro_batch_tokens": 4096, "max_steps": 2, "batch_size": BATCH, "evaluation_steps": 100}
LORA = {"rank": 4, "alpha": 8}


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    workshop = Workshop(tmp_path_factory.mktemp("reference"))
    workshop.held_out = write_preference_file(workshop.folder / "many.jsonl", PAIRS, seed=5)
    return workshop


@pytest.fixture(scope="module")
def killed(workshop: Workshop) -> RunDirectory:
    """A run that lost a rank in the middle of the pass."""
    run = workshop.make("killed", ranks=2, training=TRAINING)
    result = torchrun("tests.dpo_core.dies_in_the_fill", [run], ranks=2)
    assert result.returncode != 0
    assert not (run.path / "reference.safetensors").exists(), result.stderr
    return run


@pytest.fixture(scope="module")
def runs(workshop: Workshop, killed: RunDirectory) -> dict[str, RunDirectory]:
    whole = workshop.make("whole", ranks=2, training=TRAINING)
    again = workshop.make("again", ranks=2, training=TRAINING, reference_cache=killed.reference)
    warm = workshop.make("warm", ranks=2, training=TRAINING | {"zero_stage": 3}, reference_cache=whole.reference)
    train_all([whole, again, warm], ranks=2)
    return {"whole": whole, "again": again, "warm": warm}


def frozen(run: RunDirectory) -> Tensor:
    return load_file(run.path / "reference.safetensors")["log_probabilities"]


def frozen_bytes(run: RunDirectory) -> bytes:
    return (run.path / "reference.safetensors").read_bytes()


def said(run: RunDirectory, code: str) -> dict[str, int]:
    """The numbers of the run's only event with this code."""
    (event,) = (event for event, _ in read_lines(run.events_file, 0) if event["code"] == code)
    return event["data"]


def test_a_run_killed_in_the_pass_and_started_again_equals_one_that_was_not(
    killed: RunDirectory, runs: dict[str, RunDirectory]
) -> None:
    kept = sum(len(load_file(path)["keys"]) for path in killed.reference_shards())
    counts = said(runs["again"], "reference_computed")
    assert 0 < kept == counts["found"] < counts["pairs"]
    assert frozen_bytes(runs["again"]) == frozen_bytes(runs["whole"])
    assert losses(runs["again"]) == losses(runs["whole"])
    assert final_weights(runs["again"]) == final_weights(runs["whole"])


def test_a_second_run_measures_nothing_and_starts_at_ln_2(runs: dict[str, RunDirectory]) -> None:
    counts = said(runs["warm"], "reference_found")
    assert (counts["found"], counts["computed"]) == (counts["pairs"], 0)
    assert runs["warm"].reference_shards() == []
    assert frozen_bytes(runs["warm"]) == frozen_bytes(runs["whole"])
    for run in ("whole", "warm"):
        assert lines(runs[run])[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
        assert lines(runs[run], "validation")[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert losses(runs["warm"]) == pytest.approx(losses(runs["whole"]), abs=1e-5)


def test_only_what_the_run_needs_is_measured(runs: dict[str, RunDirectory]) -> None:
    spec = runs["whole"].spec()
    items, held_out = load_splits(spec, runs["whole"].tokens)
    sampler = Sampler(len(items), BATCH, spec.training.seed)
    visited = {index for step in range(2) for index in sampler.batch(step)} | set(range(len(items), len(items) + PAIRS))
    known = frozen(runs["whole"]).isfinite()
    assert known.shape == (2, len(items) + len(held_out))
    assert torch.equal(known[0], known[1])
    assert visited <= set(known[0].nonzero().flatten().tolist())
    assert known[0].sum() < len(items) + PAIRS


def test_a_cache_of_another_model_is_not_used_and_said(workshop: Workshop, tmp_path: Path) -> None:
    key = bytes(16)
    write_shard(tmp_path / "another-group", [key], torch.zeros(2, 1, dtype=torch.float64))
    run = workshop.make("changed", training=TRAINING, reference_cache=tmp_path)
    recorder = Recorder(run, writes=True, total_steps=1)
    reference = ReferencePass(run.spec(), run, World(0, 1, torch.device("cpu")), recorder, lambda: False)
    assert reference.known([key]).isnan().all()
    assert "changed since the job was checked" in run.events_file.read_text()


def test_sigterm_in_the_pass_stops_the_run_and_keeps_what_was_measured(workshop: Workshop, tmp_path: Path) -> None:
    long = [
        {"prompt": f"{n}?", "chosen": "yes " * 600, "rejected": "no " * 900} for n in range(40)
    ]  # each a batch by itself
    file = write_rows(tmp_path / "long.jsonl", list(long))
    training = {"max_length": 4096, "batch_size": 40, "max_steps": 1}
    run = workshop.make("stopped", ranks=2, training=training, training_file=file, validation_file=None)
    process = launch(run)
    wait_for(
        lambda: "reference_started" in run.events_file.read_text() if run.events_file.exists() else False, process, run
    )
    process.send_signal(signal.SIGTERM)
    assert process.wait(300) == 0, tail(run)
    status = run.status()
    assert status is not None
    assert (status.state, status.step) == ("stopped", 0)
    kept = sum(len(load_file(path)["keys"]) for path in run.reference_shards())
    assert 0 < kept < 40
