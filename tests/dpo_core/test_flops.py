"""Operations of a step, counted from the model itself, against the count by hand and the benchmarks' by shape."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from benchmarks import flops
from benchmarks.lengths import PairLengths
from benchmarks.shape import Shape
from dpo_core.data.records import TokenExample, TokenPair
from dpo_core.flops import Work, known_peak, peak_of

SHAPE = Shape(hidden=32, layers=2, heads=4, key_value_heads=2, intermediate=64, vocabulary=264)


def llama(**changes: object) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=264,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        **changes,
    )
    return LlamaForCausalLM(config)


def pair(prompt: int, chosen: int, rejected: int) -> TokenPair:
    start = list(range(prompt))
    return TokenPair(1, start + [100] * chosen, start + [101] * rejected, prompt, prompt)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
def test_a_model_counts_as_its_shape_does(tied: bool, frozen: bool) -> None:
    work = Work.of(llama(tie_word_embeddings=tied), frozen=frozen)
    assert work is not None
    assert (work.linear, work.head) == (SHAPE.backbone_weights, 32 * 264)
    lengths = [(10, 4, 7), (3, 1, 1), (1, 20, 2)]
    expected = flops.shared(SHAPE, [PairLengths(*it) for it in lengths], lora=frozen)
    assert work.operations(pair(*it) for it in lengths) == expected


def test_an_example_by_hand() -> None:
    work = Work(linear=1000, channels=64, head=500, frozen=False)
    # four of five tokens are read, two are predicted, and attention has 4 · 5 / 2 scores
    assert work.operations([TokenExample(1, [1, 2, 3, 4, 5], 3)]) == 3 * (2 * 1000 * 4 + 2 * 500 * 2 + 4 * 64 * 10)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks for it
def test_an_adapter_costs_nothing_itself(tiny_model: Path) -> None:
    from peft import LoraConfig, get_peft_model

    plain = Work.of(AutoModelForCausalLM.from_pretrained(tiny_model), frozen=True)
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny_model), LoraConfig(r=4, target_modules="all-linear")
    )
    assert Work.of(adapted.get_base_model(), frozen=True) == plain


def test_a_mixture_of_experts_is_not_counted() -> None:
    config = MixtralConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=2,
    )  # fmt: skip
    assert Work.of(MixtralForCausalLM(config), frozen=False) is None


def test_peaks() -> None:
    assert known_peak("NVIDIA H200") == 989e12
    assert known_peak("NVIDIA GeForce GTX 1080") is None
    assert peak_of(torch.device("cpu")) is None
