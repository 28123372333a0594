"""ZeRO-3 gathers whole decoder layers of several architectures, and trains as ZeRO 2 does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from dpo_core.errors import RunError
from dpo_core.layerwise import follow, leaves_of
from dpo_core.run_directory import RunDirectory
from dpo_core.scorer import Scorer
from dpo_core.spec import ModelSource
from tests.dpo_core.runs import Workshop, lines, torchrun
from tests.dpo_core.test_ways import GPT2, SIZES
from tests.makers import make_tokenizer

KINDS: dict[str, dict[str, Any]] = {  # zamba2: layers that share weights
    "gemma2": SIZES,  # its logits are capped, and its attention has windows
    "mixtral": SIZES | {"num_local_experts": 4},
    # One weight for both ends.
    "gpt2": GPT2,
    "zamba2": {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    | {"num_hidden_layers": 5, "layers_block_type": ["linear_attention", "hybrid"] * 2 + ["linear_attention"]}
    | {"mamba_d_state": 8, "n_mamba_heads": 4, "chunk_size": 16, "adapter_rank": 4, "use_mamba_kernels": False},
    "lora": SIZES,
}
SHORT = {"max_steps": 3, "evaluation_steps": 3, "checkpoint_steps": 3}


def write_model(kind: str, sizes: dict[str, Any], folder: Path) -> ModelSource:
    make_tokenizer(folder)
    tokens = {"vocab_size": 264, "bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0}
    config = AutoConfig.for_model(kind, **sizes | tokens)
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
    result = torchrun("tests.dpo_core.releases_all", list(made.values()), ranks=2)
    assert result.returncode == 0, result.stderr[-25000:]
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


def test_a_layer_that_can_not_be_followed_is_refused() -> None:
    """DeepSpeed would take its gradients for zeros, or reduce them twice."""
    layer, ran, hidden = nn.Linear(2, 2), set[nn.Module](), torch.ones(1, 2)
    layer.register_forward_pre_hook(lambda module, inputs: follow(module, inputs, ran))
    with torch.no_grad():
        layer(hidden)
    assert not hidden.requires_grad
    ran.clear()
    layer(hidden)
    assert hidden.requires_grad  # as behind a frozen embedding
    for inputs, options, why in (((hidden,), {}, "more than once"), ((), {"input": hidden}, "by keyword")):
        with pytest.raises(RunError, match=f"Linear .*{why}.*zero_stage` to 2") as caught:
            layer(*inputs, **options)
        assert (caught.value.failure.kind, caught.value.failure.param) == ("user", "training.zero_stage")
        ran.clear()


def test_layers_that_share_a_weight_are_no_leaves() -> None:
    """Nor is one whose weight stands outside of all layers, too."""

    def leaves(tie: Callable[[Any], None]) -> list[int]:
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SIZES | {"num_hidden_layers": 3}))
        tie(model)
        found = leaves_of(Scorer(model))
        return [place for place, layer in enumerate(model.model.layers) if layer in found]

    def tie_layers(model: Any) -> None:
        model.model.layers[2].mlp = model.model.layers[0].mlp

    def tie_norm(model: Any) -> None:
        model.model.norm.weight = model.model.layers[1].input_layernorm.weight

    assert leaves(lambda _: None) == [0, 1, 2]
    assert leaves(tie_layers) == [1]
    assert leaves(tie_norm) == [0, 2]
