"""Compiled layers train as plain ones do: all weights, an adapter, in bfloat16, recomputed, and sharded over ranks."""

from __future__ import annotations

import math
import shutil
from typing import Any

import pytest
import torch

from dpo_core.run_directory import RunDirectory
from dpo_core.token_scores import compiled_kernels, token_log_probabilities
from tests.dpo_core.runs import Workshop, codes, final_weights, lines, train_all

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++ on a CPU"),
]
KINDS: dict[str, dict[str, Any]] = {
    "full": {"zero_stage": 2},
    "recomputed": {"zero_stage": 0, "activation_checkpointing": True},
    "bfloat16": {"zero_stage": 2, "precision": "bfloat16"},
    "lora": {"zero_stage": 0, "lora": {"rank": 4, "alpha": 8}},
    "sharded": {"zero_stage": 3},
    "sharded, recomputed": {"zero_stage": 3, "activation_checkpointing": True},
    "sharded lora": {"zero_stage": 3, "lora": {"rank": 4, "alpha": 8}},
}
SHORT = {"max_steps": 4, "evaluation_steps": 2, "checkpoint_steps": 2}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, bool], RunDirectory]:
    workshop = Workshop(tmp_path_factory.mktemp("compiling"))
    made = {}
    for ranks in (1, 2):
        kinds = {name: values for name, values in KINDS.items() if (values["zero_stage"] == 3) == (ranks == 2)}
        runs = {
            (name, compiled): workshop.make(
                f"{name}-{compiled}", ranks=ranks, training=SHORT | values | {"compile": compiled}
            )
            for name, values in kinds.items()
            for compiled in (False, True)
        }
        train_all(list(runs.values()), ranks=ranks)
        made |= runs
    whole = made["full", True]
    training = SHORT | KINDS["full"] | {"compile": True}
    made["resumed", True] = workshop.make("resumed", training=training, resume_from=whole.checkpoints / "step-2")
    train_all([made["resumed", True]], ranks=1)
    return made


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("split", ["train", "validation"])
def test_trajectories_agree(runs: dict[tuple[str, bool], RunDirectory], kind: str, split: str) -> None:
    plain, compiled = lines(runs[kind, False], split), lines(runs[kind, True], split)
    assert plain.keys() == compiled.keys()
    for step, expected in plain.items():
        for name in ("loss", "rewards/margins", "logps/chosen"):
            assert compiled[step][name] == pytest.approx(expected[name], rel=1e-5, abs=1e-5), (step, name)


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated")
@pytest.mark.parametrize("cap", [None, 3.0])
def test_the_passes_over_the_logits_give_the_same_compiled(cap: float | None) -> None:
    generator = torch.Generator().manual_seed(0)
    kernels = compiled_kernels()
    for rows in (5, 9, 33):
        logits = (5 * torch.randn(rows, 300, generator=generator)).requires_grad_()
        tokens = torch.randint(300, (rows,), generator=generator)
        both = [token_log_probabilities(logits, tokens, way, cap) for way in (kernels, None)]
        torch.testing.assert_close(*both)
        torch.testing.assert_close(*(torch.autograd.grad(values.sum(), logits) for values in both))


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_loss_is_ln_2(runs: dict[tuple[str, bool], RunDirectory], kind: str) -> None:
    assert lines(runs[kind, True])[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_a_resumed_run_ends_with_the_same_bytes(runs: dict[tuple[str, bool], RunDirectory]) -> None:
    assert final_weights(runs["resumed", True]) == final_weights(runs["full", True])


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_had_to_be_left_plain(runs: dict[tuple[str, bool], RunDirectory], kind: str) -> None:
    assert "packing_limited" not in codes(runs[kind, True])
