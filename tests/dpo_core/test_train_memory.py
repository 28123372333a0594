"""What saves memory changes no result: offload, activation checkpointing, loading on one rank.

One launch of two ranks trains everything; the tests look at what it left.
"""

from __future__ import annotations

from itertools import product

import pytest

from dpo_core.run_directory import RunDirectory
from dpo_core.spec import ModelSource
from tests.dpo_core.runs import Workshop, final_weights, losses, train_all

pytestmark = pytest.mark.long

LORA = {"rank": 4, "alpha": 8}
# every gradient is longer than this, so that clipping is compared too
CLIPPED = {"micro_batch_tokens": 128, "max_grad_norm": 0.05, "checkpoint_steps": 2, "max_steps": 4}
PLAIN: dict[str, dict[str, object]] = {
    "full-2": {"zero_stage": 2},
    "full-3": {"zero_stage": 3},
    "lora-3": {"zero_stage": 3, "lora": LORA},
    "bfloat16-3": {"zero_stage": 3, "precision": "bfloat16"},
}
SAVING: dict[str, tuple[str, dict[str, object]]] = {
    "full-2-optimizer": ("full-2", {"offload": "optimizer"}),
    "full-3-optimizer": ("full-3", {"offload": "optimizer"}),
    "full-3-parameters": ("full-3", {"offload": "parameters"}),
    "lora-3-parameters": ("lora-3", {"offload": "parameters"}),
    "bfloat16-3-parameters": ("bfloat16-3", {"offload": "parameters"}),
    "full-2-recomputed": ("full-2", {"activation_checkpointing": True}),
    "full-3-recomputed": ("full-3", {"activation_checkpointing": True}),
    "lora-3-recomputed": ("lora-3", {"activation_checkpointing": True}),
}
RESUMED = ("full-2-optimizer", "full-3-parameters", "lora-3-parameters")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunDirectory]:
    workshop = Workshop(tmp_path_factory.mktemp("memory"))
    training = {name: CLIPPED | values for name, values in PLAIN.items()}
    training |= {name: CLIPPED | PLAIN[plain] | values for name, (plain, values) in SAVING.items()}
    made = {name: workshop.make(name, ranks=2, training=values) for name, values in training.items()}
    for name in RESUMED:
        resumed, checkpoint = f"{name}-resumed", made[name].checkpoints / "step-2"
        made[resumed] = workshop.make(resumed, ranks=2, training=training[name], resume_from=checkpoint)
    path = made["lora-3"].checkpoints / "step-4" / "model"
    adapter = ModelSource(id="default/adapter", path=path, base_path=workshop.base.path)
    for kind, stage in product(("continued", "merged"), (2, 3)):
        values = CLIPPED | {"zero_stage": stage, "lora": LORA if kind == "continued" else None, "max_steps": 2}
        made[f"{kind}-{stage}"] = workshop.make(f"{kind}-{stage}", ranks=2, model=adapter, training=values)
    train_all(list(made.values()), ranks=2)
    return made


@pytest.mark.parametrize("kind", ["continued", "merged"])
def test_a_start_that_one_rank_loads_is_the_start_that_all_load(runs: dict[str, RunDirectory], kind: str) -> None:
    """Stage 3 against stage 2; both starts are an adapter on a base."""
    assert losses(runs[f"{kind}-3"]) == pytest.approx(losses(runs[f"{kind}-2"]), abs=1e-6)


@pytest.mark.parametrize("name", SAVING)
def test_saving_memory_changes_no_loss(runs: dict[str, RunDirectory], name: str) -> None:
    plain, _ = SAVING[name]
    expected = losses(runs[plain])
    assert len(expected) == 4
    assert losses(runs[name]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", RESUMED)
def test_an_offloaded_run_goes_on_as_if_never_interrupted(runs: dict[str, RunDirectory], name: str) -> None:
    whole, resumed = runs[name], runs[f"{name}-resumed"]
    assert losses(resumed) == losses(whole)[2:]
    assert final_weights(resumed) == final_weights(whole)
