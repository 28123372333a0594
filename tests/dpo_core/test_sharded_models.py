"""ZeRO-3 gathers whole decoder layers, whatever the architecture, and trains as ZeRO 2 does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from dpo_core.engine import refuse_hidden_input
from dpo_core.run_directory import RunDirectory
from dpo_core.spec import ModelSource
from tests.dpo_core.runs import Workshop, lines, train_all
from tests.makers import make_tokenizer

SIZES: dict[str, Any] = {
    "vocab_size": 264,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
}
KINDS: dict[str, dict[str, Any]] = {
    "gemma2": SIZES,  # its head runs with the model, and its attention has windows
    "mixtral": SIZES | {"num_local_experts": 4},
    # One weight for both ends.
    "gpt2": {"vocab_size": 264, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "cohere": SIZES,  # attention and feed-forward part side by side
    "lora": SIZES,
}
SHORT = {"max_steps": 3, "evaluation_steps": 3, "checkpoint_steps": 3}


def write_model(kind: str, sizes: dict[str, Any], folder: Path) -> ModelSource:
    make_tokenizer(folder)
    config = AutoConfig.for_model(kind, **sizes, bos_token_id=None, eos_token_id=2, pad_token_id=0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return ModelSource(id=f"default/{kind}", path=folder)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], RunDirectory]:
    workshop = Workshop(tmp_path_factory.mktemp("sharded"))
    made = {}
    for kind, sizes in KINDS.items():
        lora = kind == "lora"
        model = write_model("llama" if lora else kind, sizes, workshop.folder / f"model-{kind}")
        for stage in (2, 3):
            training = SHORT | {"zero_stage": stage, "lora": {"rank": 4, "alpha": 8} if lora else None}
            made[kind, stage] = workshop.make(f"{kind}-{stage}", ranks=2, model=model, training=training)
    train_all(list(made.values()), ranks=2)
    return made


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("split", ["train", "validation"])
def test_trajectories_are_those_of_whole_weights(
    runs: dict[tuple[str, int], RunDirectory], kind: str, split: str
) -> None:
    whole, sharded = lines(runs[kind, 2], split), lines(runs[kind, 3], split)
    assert whole.keys() == sharded.keys()
    for step, expected in whole.items():
        for name in expected.keys() & {"loss", "rewards/margins", "logps/chosen", "grad_norm"}:
            assert sharded[step][name] == pytest.approx(expected[name], rel=1e-5, abs=1e-5), (step, name)


def test_a_layer_whose_input_can_not_be_followed_is_refused() -> None:
    """DeepSpeed would take its gradients for zeros."""
    layer = nn.Linear(2, 2)
    layer.register_forward_pre_hook(refuse_hidden_input)
    hidden = torch.ones(1, 2, requires_grad=True)
    assert layer(hidden).shape == (1, 2)
    with torch.no_grad():
        layer(input=hidden)
    with pytest.raises(NotImplementedError, match="zero_stage` to 2"):
        layer(input=hidden)
