"""Whole trajectories on two ranks: every ZeRO stage, all weights and LoRA, and going on from a checkpoint.

One launch trains everything; the tests look at what it left.
"""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path

import pytest
from safetensors.torch import load_file

from dpo_core.run_directory import RunDirectory
from tests.dpo_core.runs import Workshop, final_weights, lines, losses, train_all

STAGES = (0, 1, 2, 3)
KINDS = ("full", "lora")
# dropout draws random numbers: only a restored generator makes a resumed run equal
LORA = {"rank": 4, "alpha": 8, "dropout": 0.1}
# every gradient is longer than this, so that clipping is compared too
CLIPPED = {"micro_batch_tokens": 200, "max_grad_norm": 0.05}
BFLOAT16 = (("full", 0), ("full", 1), ("full", 2), ("full", 3), ("lora", 0), ("lora", 3))
"""DeepSpeed has four ways to float32 masters: autocast, its bfloat16 optimizer, and its own two of stages 2 and 3."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunDirectory]:
    workshop = Workshop(tmp_path_factory.mktemp("two_ranks"))
    made = {}
    for kind in KINDS:
        for stage in STAGES:
            training = CLIPPED | {"zero_stage": stage, "lora": LORA if kind == "lora" else None}
            name = f"{kind}-{stage}"
            made[name] = workshop.make(name, ranks=2, training=training)
            checkpoint = made[name].checkpoints / "step-3"
            made[f"{name}-resumed"] = workshop.make(
                f"{name}-resumed", ranks=2, training=training, resume_from=checkpoint
            )
    made["again"] = workshop.make("again", ranks=2, training=CLIPPED | {"zero_stage": 2})
    for kind, stage in BFLOAT16:
        training = CLIPPED | {
            "zero_stage": stage,
            "lora": LORA if kind == "lora" else None,
            "precision": "bfloat16",
            "activation_checkpointing": True,
        }
        name = f"bfloat16-{kind}-{stage}"
        made[name] = workshop.make(name, ranks=2, training=training)
        checkpoint = made[name].checkpoints / "step-3"
        made[f"{name}-resumed"] = workshop.make(f"{name}-resumed", ranks=2, training=training, resume_from=checkpoint)
    train_all(list(made.values()), ranks=2)
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_zero_stages_agree(runs: dict[str, RunDirectory], kind: str) -> None:
    expected = losses(runs[f"{kind}-0"])
    assert len(expected) == 6
    for stage in STAGES[1:]:
        assert losses(runs[f"{kind}-{stage}"]) == pytest.approx(expected, abs=1e-5)
    assert all(values["grad_norm"] > CLIPPED["max_grad_norm"] for values in lines(runs[f"{kind}-0"]).values())


@pytest.mark.parametrize(
    ("kind", "stage"), [*product(KINDS, STAGES), *((f"bfloat16-{kind}", stage) for kind, stage in BFLOAT16)]
)
def test_a_resumed_run_equals_an_uninterrupted_one(runs: dict[str, RunDirectory], kind: str, stage: int) -> None:
    whole, resumed = runs[f"{kind}-{stage}"], runs[f"{kind}-{stage}-resumed"]
    assert losses(resumed) == losses(whole)[3:]
    assert final_weights(resumed) == final_weights(whole)
    assert lines(resumed, "validation")[6] == lines(whole, "validation")[6]
    manifest = whole.complete_checkpoints()[-1][1]
    assert resumed.complete_checkpoints()[-1][1].trained_tokens == manifest.trained_tokens


def test_the_same_run_twice_gives_the_same_bytes(runs: dict[str, RunDirectory]) -> None:
    assert final_weights(runs["again"]) == final_weights(runs["full-2"])


def test_step_zero_is_ln_2(runs: dict[str, RunDirectory]) -> None:
    for stage in STAGES:
        first = lines(runs[f"full-{stage}"])[0]
        assert first["loss"] == pytest.approx(math.log(2), abs=1e-5)
        assert first["bradley_terry"] == pytest.approx(0.5, abs=1e-5)
        assert "Step 0 is as it should be: the loss is ln 2" in runs[f"full-{stage}"].events_file.read_text()


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("kind", KINDS)
def test_before_the_first_update_every_held_out_pair_is_a_tie(
    runs: dict[str, RunDirectory], kind: str, stage: int
) -> None:
    """Nearly equal counts as equal: the reference is measured in other batches than evaluation uses."""
    first = lines(runs[f"{kind}-{stage}"], "validation")[0]
    assert first["rewards/margins"] == pytest.approx(0.0, abs=1e-6)
    assert first["rewards/accuracies"] == 0.5


def test_every_checkpoint_loads_without_us(runs: dict[str, RunDirectory], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for stage in STAGES:
        folder = runs[f"full-{stage}"].checkpoints / "step-6" / "model"
        model = AutoModelForCausalLM.from_pretrained(folder)
        stored = load_file(folder / "model.safetensors")
        assert all((model.state_dict()[name] == tensor).all() for name, tensor in stored.items())
        assert AutoTokenizer.from_pretrained(folder).chat_template is not None


def test_metrics_and_checkpoints_have_the_right_steps(runs: dict[str, RunDirectory]) -> None:
    run = runs["full-0"]
    assert sorted(lines(run)) == [0, 1, 2, 3, 4, 5]
    assert sorted(lines(run, "validation")) == [0, 3, 6]
    found = [(manifest.step, manifest.final, manifest.kind) for _, manifest in run.complete_checkpoints()]
    assert found == [(3, False, "full"), (6, True, "full")]
    status = run.status()
    assert status is not None
    assert (status.state, status.step, status.total_steps) == ("succeeded", 6, 6)
