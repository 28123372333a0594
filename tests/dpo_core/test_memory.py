"""The memory plan, against sums worked out by hand. The benchmark compares it with measured peaks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dpo_core.errors import RunError
from dpo_core.footprint import Layout, activations_per_token, adapter_parameters, amount, estimate
from dpo_core.memory import OPEN, DeviceFacts, MemoryPlan, Request, by_placement, plan
from dpo_core.model_folder import ModelFacts, Shape, shape_of
from dpo_core.spec import LoraSpec

SHAPES = {
    "1B": (1_240_000_000, Shape(16, 2048, 8192, heads=32, key_heads=8, head_size=64)),
    "8B": (8_030_000_000, Shape(32, 4096, 14336, heads=32, key_heads=8, head_size=128)),
    "70B": (70_600_000_000, Shape(80, 8192, 28672, heads=64, key_heads=8, head_size=128)),
}
MODELS = {name: ModelFacts(count, 128_256, 8192, shape) for name, (count, shape) in SHAPES.items()}
GIB = 2**30
LORA = {"lora": {}}


def planned(
    model: str, ranks: int, memory: float | None, training: dict[str, object] | None = None, longest: int = 4096
) -> MemoryPlan:
    """A plan for GPUs of `memory` GiB."""
    device = DeviceFacts("cuda", ranks, None if memory is None else round(memory * GIB))
    lora = LoraSpec() if "lora" in (training or {}) else None
    fields: dict[str, Any] = OPEN | (training or {}) | {"lora": lora}
    return plan(Request(**fields, bfloat16=True, longest_item=longest), MODELS[model], device)


def layout(**changes: object) -> Layout:
    usual = Layout("cuda", 1, 0, "none", False, 1024, True, None)
    return replace(usual, **changes)  # type: ignore[arg-type]


def test_a_ranks_share_of_the_state_by_zero_stage() -> None:
    """8 ranks: ZeRO's own table, with float32 gradients. Stage 0 has float32 weights and autocast's copies."""
    model, count = MODELS["8B"], MODELS["8B"].parameter_count
    of = {stage: estimate(model, layout(ranks=8, zero_stage=stage)) for stage in range(4)}
    assert [of[stage].weights for stage in range(4)] == [6 * count, 2 * count, 2 * count, count // 4]
    assert [of[stage].gradients for stage in range(4)] == [4 * count, 4 * count, count // 2, count // 2]
    assert [of[stage].optimizer for stage in range(4)] == [8 * count, *[12 * count // 8] * 3]
    assert of[0].peak > of[1].peak > of[2].peak > of[3].peak


def test_another_reference_is_there_whole_on_every_rank_but_before_the_policy() -> None:
    of = {name: estimate(MODELS["1B"], layout(zero_stage=2, ranks=2, reference=MODELS[name])) for name in ("1B", "70B")}
    alone, count = estimate(MODELS["1B"], layout(zero_stage=2, ranks=2)), MODELS["70B"].parameter_count
    # bfloat16 weights, 1,024 tokens that pass a layer, and their logits
    assert of["70B"].reference == 2 * count + 2 * 1024 * (3 * 28672 + 4 * 8192) + 2 * 1024 * 128_256
    assert of["70B"].peak == of["70B"].reference > alone.peak
    assert of["1B"].peak == alone.peak > of["1B"].reference > 0


def test_a_reference_that_does_not_fit_is_refused_with_a_way_out() -> None:
    device = DeviceFacts("cuda", 2, 40 * GIB)
    request = Request(**OPEN, bfloat16=True, lora=None, longest_item=4096, reference=MODELS["70B"])
    with pytest.raises(RunError) as caught:
        plan(request, MODELS["1B"], device)
    said = caught.value.failure.message
    assert "reference 133 GiB)" in said
    assert 'What would fit: `reference` "start", or a smaller model as the reference.' in said
    assert plan(replace(request, reference=MODELS["8B"]), MODELS["1B"], device).footprint.reference > 16e9


def test_what_is_offloaded_is_not_on_the_gpu() -> None:
    model = MODELS["8B"]
    kept = estimate(model, layout(ranks=8, zero_stage=3))
    optimizer = estimate(model, layout(ranks=8, zero_stage=3, offload="optimizer"))
    parameters = estimate(model, layout(ranks=8, zero_stage=3, offload="parameters"))
    assert (optimizer.optimizer, optimizer.gradients, optimizer.weights) == (0, 0, kept.weights)
    assert (parameters.optimizer, parameters.gradients, parameters.weights) == (0, 0, 0)
    assert parameters.buffers == kept.buffers > 0
    cpu = estimate(model, layout(device="cpu", ranks=8, zero_stage=3, offload="parameters", bfloat16=False))
    assert cpu.weights == 4 * model.parameter_count // 8  # the host is the device


def test_a_forward_pass_holds_no_more_than_a_batch() -> None:
    request = Request(**OPEN | {"micro_batch_tokens": 10**7}, bfloat16=True, lora=None, longest_item=152)
    device = DeviceFacts("cuda", 1, 80 * GIB)
    assert plan(replace(request, largest_batch=16 * 152), MODELS["1B"], device).layout.micro_batch_tokens == 16 * 152
    with pytest.raises(RunError, match="micro_batch_tokens"):
        plan(request, MODELS["1B"], device)


def test_what_is_offloaded_must_fit_on_the_host() -> None:
    """70B: 16 bytes a parameter of masters, moments and gradients, and 2 of weights: 1,183 GiB."""
    request = Request(**OPEN, bfloat16=True, lora=None, longest_item=1024)
    enough, little = (DeviceFacts("cuda", 2, 80 * GIB, host) for host in (2000 * GIB, 900 * GIB))
    assert plan(request, MODELS["70B"], enough).layout.offload == "parameters"
    with pytest.raises(RunError, match="of the host's memory") as caught:
        plan(request, MODELS["70B"], little)
    assert caught.value.failure.code == "memory_too_small"


def test_an_adapters_parameters() -> None:
    """Llama 3 8B, rank 16: q 8192, k and v 5120, o 8192, gate, up and down 18432, times 32 layers and the rank."""
    assert adapter_parameters(MODELS["8B"], LoraSpec()) == 16 * 32 * (8192 + 5120 * 2 + 8192 + 3 * 18432)
    assert adapter_parameters(MODELS["8B"], LoraSpec(target_modules=["q_proj", "v_proj"])) == 16 * 32 * (8192 + 5120)


def test_recomputed_activations_are_a_layers_input_each_and_one_whole_layer() -> None:
    model, shape = MODELS["1B"], MODELS["1B"].shape
    kept, recomputed = (activations_per_token(model, layout(activation_checkpointing=on)) for on in (False, True))
    layer = (kept - recomputed + shape.layers * 2 * shape.hidden) / (shape.layers - 1)
    assert 12 < layer / (2 * shape.hidden) < 40  # Korthikanti et al.: 17 of 34 bytes·h for the MLP and attention
    assert recomputed < kept / 4


@pytest.mark.parametrize(
    ("model", "ranks", "memory", "training", "expected"),
    [
        # stage, offload: what DESIGN's table says, where it fits
        ("1B", 1, 80, {}, (0, "none")),
        ("1B", 8, 80, {}, (2, "none")),
        ("8B", 8, 80, {}, (2, "none")),
        ("70B", 64, 80, {}, (3, "none")),
        ("70B", 8, 80, {}, (3, "optimizer")),
        ("8B", 1, 80, {}, (3, "optimizer")),
        ("70B", 2, 80, {}, (3, "parameters")),
        ("8B", 1, 80, LORA, (0, "none")),
        ("70B", 4, 80, LORA, (3, "none")),
        ("70B", 1, 80, LORA, (3, "parameters")),
        ("8B", 8, None, {}, (2, "none")),
        ("8B", 1, None, {}, (0, "none")),
        ("1B", 1, 80, {"zero_stage": 3}, (3, "none")),  # who asks for it gets it, and no offload without need
        ("8B", 1, 80, {"zero_stage": 3}, (3, "optimizer")),
    ],
)
def test_the_first_layout_that_fits(
    model: str, ranks: int, memory: float | None, training: dict[str, object], expected: tuple[int, str]
) -> None:
    found = planned(model, ranks, memory, training)
    assert (found.layout.zero_stage, found.layout.offload) == expected
    assert found.warnings == []
    if memory is not None:
        assert found.footprint.peak < memory * GIB


def test_activations_are_recomputed_only_where_they_would_not_fit() -> None:
    roomy, tight = planned("1B", 1, 140), planned("1B", 1, 31)
    assert (roomy.layout.activation_checkpointing, roomy.layout.micro_batch_tokens) == (False, 32768)
    assert tight.layout.activation_checkpointing
    assert "would not fit" in tight.choices()["activation_checkpointing"][1]


def test_a_micro_batch_holds_the_longest_row_and_shrinks_to_fit() -> None:
    assert planned("1B", 1, None, longest=40_000).layout.micro_batch_tokens == 40_000
    given = {"zero_stage": 0, "offload": "none", "activation_checkpointing": False}
    tokens = [planned("1B", 1, memory, given, 256).layout.micro_batch_tokens for memory in (140, 48, 40, 32)]
    assert tokens == [32768, 8192, 4096, 2048]


def test_given_values_stand() -> None:
    given = {"zero_stage": 1, "offload": "none", "activation_checkpointing": True, "micro_batch_tokens": 777}
    found = planned("1B", 2, 80, given, longest=256).layout
    assert (found.zero_stage, found.activation_checkpointing, found.micro_batch_tokens) == (1, True, 777)
    assert planned("1B", 2, 80, {"offload": "optimizer"}).layout.zero_stage == 3
    assert planned("1B", 2, 80, {"offload": "optimizer", "zero_stage": 2}).layout.offload == "optimizer"


def test_a_plan_of_a_plan_is_the_same() -> None:
    for memory in (24, 40, 80):
        first = planned("1B", 1, memory, {"lora": {}})
        values = {name: value for name, (value, _) in first.choices().items()}
        assert planned("1B", 1, memory, {"lora": {}} | values).layout == first.layout


@pytest.mark.parametrize(
    ("gpus", "training", "longest", "what", "advice"),
    [
        (("8B", 1, 80), {"zero_stage": 0}, 4096, "optimizer 59.8 GiB", "other values for what was given: zero_stage 3"),
        (("70B", 1, 8), {}, 4096, "buffers", "a larger device"),
        (("8B", 2, 12), {"lora": {}, "zero_stage": 0, "micro_batch_tokens": 16384}, 64, "weights", "zero_stage 3"),
        (("1B", 1, 12), {}, 65536, "activations", "`max_length`"),
        (("8B", 1, 80), {"offload": "none"}, 2048, "optimizer", "other values for what was given: offload optimizer"),
    ],
)
def test_what_can_not_fit_is_refused_with_numbers_and_what_would(
    gpus: tuple[str, int, float], training: dict[str, object], longest: int, what: str, advice: str
) -> None:
    with pytest.raises(RunError) as caught:
        planned(*gpus, training, longest)
    failure = caught.value.failure
    assert (failure.kind, failure.code, failure.param) == ("user", "memory_too_small", "training")
    assert what in failure.message
    assert f"there are {gpus[2]} GiB" in failure.message
    assert advice in failure.message


def test_what_hardly_fits_is_warned_of() -> None:
    needed = planned("1B", 1, None, {"zero_stage": 0, "offload": "none"}).footprint.peak / GIB
    given = {"zero_stage": 0, "offload": "none", "activation_checkpointing": False, "micro_batch_tokens": 32768}
    (warning,) = planned("1B", 1, needed, given).warnings
    assert "may not fit" in warning


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"n_embd": 768, "n_layer": 12, "n_head": 12, "n_inner": None}, Shape(12, 768, 3072, 12, 12, 64)),
        (
            {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
             "head_dim": 32, "intermediate_size": 100, "moe_intermediate_size": 10, "num_experts_per_tok": 8},
            Shape(2, 64, 80, 4, 2, 32),
        ),
        ({}, Shape(32, 512, 2048, 4, 4, 128)),
    ],
)  # fmt: skip
def test_a_models_shape_by_its_config(config: dict[str, object], expected: Shape) -> None:
    """GPT-2's names; experts; and nothing at all, with 12 · 32 · 512² parameters."""
    assert shape_of(config, 12 * 32 * 512**2) == expected


def test_every_stage_that_could_be_taken_has_its_numbers() -> None:
    """The plan's own layout is the first that fits, with the same numbers."""
    request = Request(**OPEN, bfloat16=True, lora=None, longest_item=4096)
    device = DeviceFacts("cuda", 8, 80 * GIB)
    placed = list(by_placement(request, MODELS["8B"], device))
    assert [(it.layout.zero_stage, it.layout.offload) for it in placed] == [
        (2, "none"),
        (3, "none"),
        (3, "optimizer"),
        (3, "parameters"),
    ]
    chosen = plan(request, MODELS["8B"], device)
    first = next(it for it in placed if it.fits)
    assert (first.layout, first.footprint) == (chosen.layout, chosen.footprint)
    assert [it.host > 0 for it in placed] == [False, False, True, True]
    too_small = list(by_placement(request, MODELS["70B"], DeviceFacts("cuda", 2, 4 * GIB)))
    assert [it.fits for it in too_small] == [False] * 4
    assert {it.fits for it in by_placement(request, MODELS["8B"], DeviceFacts("cuda", 8, None))} == {None}


@pytest.mark.parametrize("asked", [{"zero_stage": 3}, {"zero_stage": 1}, {"zero_stage": 2, "offload": "optimizer"}])
def test_what_was_asked_for_is_among_them(asked: dict[str, Any]) -> None:
    """The report marks the one that is taken."""
    request = Request(**OPEN | asked, bfloat16=True, lora=None, longest_item=4096)
    device = DeviceFacts("cuda", 1, 80 * GIB)
    taken = plan(request, MODELS["1B"], device).layout
    placed = [(it.layout.zero_stage, it.layout.offload) for it in by_placement(request, MODELS["1B"], device)]
    assert placed.count((taken.zero_stage, taken.offload)) == 1
    assert placed == sorted(placed, key=lambda it: it[0])


def test_zero_3_holds_some_layers_at_least_however_large_they_are() -> None:
    """8 ranks, bfloat16: a layer of the 70B has 0.87e9 parameters, of which three and its gradients are held."""
    layer = (70_600_000_000 - 128_256 * 8192) // 80
    assert estimate(MODELS["70B"], layout(ranks=8, zero_stage=3)).buffers == 2 * (3 * layer + 500_000_000 + layer)
    small = (8_030_000_000 - 128_256 * 4096) // 32
    assert estimate(MODELS["8B"], layout(ranks=8, zero_stage=3)).buffers == 2 * (10**9 + 500_000_000 + small)


def test_sizes_in_words() -> None:
    assert [amount(it) for it in (0, 5 * 2**20, 2**30 // 4, 80 * GIB)] == [
        "0 GiB",
        "5 MiB",
        "0.25 GiB",
        "80 GiB",
    ]
