"""Real architectures, tiny and random: the fast way where it is exact, the slow one where it is not, always the same
numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from dpo_core import attention, compiling, last_layer, ways
from dpo_core.engine import World
from dpo_core.packing import Batch, arrange
from dpo_core.scorer import Finish, Scorer, chunk_tokens, decoder_layers

ALONE = World(0, 1, torch.device("cpu"))
SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
}
GPT2 = {"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
GPT2 |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)


def scorer(kind: str, **changes: Any) -> Scorer:
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **(GPT2 if kind == "gpt2" else SIZES) | {"pad_token_id": 0} | changes)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():  # far from flat, so that a wrong attention shows
            parameter.mul_(4)
    return Scorer(model).eval()


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "gemma", "phi", "phi3", "mistral", "gpt2", "olmo2"])
def test_full_causal_attention_is_packed(kind: str) -> None:
    model = scorer(kind, **({"sliding_window": None} if kind in ("mistral", "phi3") else {}))
    choice = ways.choose(model, model, "shared", ALONE, bfloat16=False)
    assert choice == ways.Choice("shared", None)
    assert not model.whole


@pytest.mark.parametrize(
    ("kind", "changes", "why"),
    [
        ("mistral", {"sliding_window": 128}, "a sliding window of 128"),
        ("phimoe", {"sliding_window": 128, "num_local_experts": 2}, "a sliding window of 128"),
        ("gemma3_text", {"sliding_window": 128}, "sliding_attention"),
        ("bloom", {"n_head": 4, "n_layer": 2}, "off|replaced"),
    ],
)
def test_any_other_attention_stays_as_it_is_and_an_event_says_why(kind: str, changes: dict[str, Any], why: str) -> None:
    model = scorer(kind, **changes)
    own = model.causal.config._attn_implementation
    choice = ways.choose(model, model, "shared", ALONE, bfloat16=False)
    assert choice.way == "padded"
    assert choice.event is not None
    assert choice.event.code == "packing_limited"
    assert type(model.causal).__name__ in choice.event.message
    assert any(word in choice.event.message for word in why.split("|"))
    assert model.causal.config._attn_implementation == own


FINISHES = pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("gemma2", {"final_logit_softcapping": 3.0, "attn_logit_softcapping": None, "sliding_window": 128}),
        ("cohere", {"logit_scale": 0.3}),
        ("granite", {"logits_scaling": 7.0}),
    ],
)


def by_the_whole_model(model: Scorer) -> Tensor:
    batch = arrange(ways.sample(96), "padded")
    logits = model.causal(input_ids=batch.tokens).logits.log_softmax(-1).flatten(0, 1)
    return logits[batch.predictors].gather(1, batch.targets.unsqueeze(1)).squeeze(1)


@FINISHES
def test_a_head_that_scales_or_caps_runs_by_itself(kind: str, changes: dict[str, Any]) -> None:
    model = scorer(kind, **changes)
    ways.choose(model, model, "padded", ALONE, bfloat16=False)
    assert not model.whole
    batch = arrange(ways.sample(96), "padded")
    for chunks in (1, 3):
        assert torch.allclose(model(batch, chunks)[0], by_the_whole_model(model), atol=1e-5)


@FINISHES
def test_a_head_that_does_more_than_is_known_is_called_with_its_model(kind: str, changes: dict[str, Any]) -> None:
    model = scorer(kind, **changes)
    model.finish = Finish(1.0, None)
    choice = ways.choose(model, model, "padded", ALONE, bfloat16=False)
    assert model.whole
    assert choice.event is not None
    assert "does more with its output" in choice.event.message
    assert torch.allclose(model(arrange(ways.sample(96), "padded"))[0], by_the_whole_model(model), atol=1e-5)


@FINISHES
def test_in_bfloat16_a_head_is_judged_logit_by_logit(kind: str, changes: dict[str, Any]) -> None:
    """A tenth more or less would not show in the mean of what it predicts."""
    model = scorer(kind, **changes).bfloat16()
    ways.choose(model, model, "padded", ALONE, bfloat16=True)
    assert not model.whole
    model.finish = replace(model.finish, scale=1.1 * model.finish.scale)
    ways.choose(model, model, "padded", ALONE, bfloat16=True)
    assert model.whole


def test_a_kernel_that_refuses_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: object, **__: object) -> None:
        raise RuntimeError("head dimension not supported")

    monkeypatch.setattr(attention, "run_by_run", refuses)
    model = scorer("llama")
    choice = ways.choose(model, model, "shared", ALONE, bfloat16=False)
    assert choice.way == "padded"
    assert choice.event is not None
    assert "head dimension not supported" in choice.event.message


def test_ranks_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one rank finds out holds for all: with other ways they would run other numbers of passes, and hang."""
    monkeypatch.setattr(World, "any", lambda _, __: True)
    model = scorer("llama")
    choice = ways.choose(model, model, "shared", ALONE, bfloat16=False)
    assert choice.way == "padded"
    assert model.whole
    assert choice.event is not None
    assert "another rank" in choice.event.message


def test_layers_that_can_not_be_compiled_run_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Scorer) -> None:
        raise RuntimeError("Failed to find C compiler.\nMore lines.")

    monkeypatch.setattr(compiling, "compile_scorer", refuse)
    model = scorer("llama")
    choice = ways.choose(model, model, "shared", ALONE, bfloat16=False, compiled=True)
    assert (choice.way, choice.compiled, model.kernels) == ("shared", False, None)
    assert choice.event is not None
    assert "not compiled, as they can't be compiled here (Failed to find C compiler.)" in choice.event.message


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "gemma", "phi", "mistral", "gpt2"])
def test_every_way_and_every_chunking_gives_the_same_log_probabilities_and_gradients(kind: str) -> None:
    model = scorer(kind, **({"sliding_window": None} if kind == "mistral" else {})).double()
    # Some norms compute in float32 all the same.
    found = {}
    for way, chunks in (("padded", 1), ("separate", 1), ("shared", 1), ("shared", 5)):
        if way == "separate":
            assert ways.choose(model, model, "shared", ALONE, bfloat16=False).way == "shared"
        batch = arrange(ways.sample(96), way)
        values, first = model(batch, chunks, ranks_first=True)
        sums = batch.sums(values)
        weights = torch.arange(1.0, len(sums) + 1, dtype=torch.float64)
        gradients = torch.autograd.grad((sums * weights).sum(), list(model.parameters()))
        found[way, chunks] = sums.detach(), first[batch.entries], gradients
    expected = found["padded", 1]
    for sums, first, gradients in found.values():
        assert torch.allclose(sums, expected[0], atol=1e-5)
        assert torch.equal(first, expected[1])
        for ours, theirs in zip(gradients, expected[2], strict=True):
            assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


def test_a_chunk_of_the_head_is_bounded_in_bytes() -> None:
    assert chunk_tokens(128_256, torch.device("cpu")) * 128_256 * 4 <= 2**26
    assert chunk_tokens(10**9, torch.device("cpu")) == 16


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What torch.compile sees: each graph of it, run as it is."""
    found: list[Any] = []

    def backend(module: Any, _: Any) -> Any:
        found.append(module)
        return module.forward

    torch.compiler.reset()
    monkeypatch.setattr(compiling, "HOW", {"dynamic": True, "backend": backend})
    monkeypatch.setattr(compiling, "compiled_kernels", lambda: None)
    return found


def test_layers_are_compiled_once_whatever_a_row_holds(graphs: list[Any]) -> None:
    """A guard on the layout or on the number of tokens would compile for every row anew, and give up soon."""
    model = scorer("llama")
    model.causal.set_attn_implementation(attention.NAME)
    compiling.compile_scorer(model)
    pairs = ways.sample(96)
    with torch.no_grad():
        model(arrange(pairs, "shared"))
        first = len(graphs)
        assert first > 0
        for count in (1, 3, 5, 4):
            model(arrange([pairs[index % 2] for index in range(count)], "shared"))
    assert len(graphs) == first


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # Dynamo looks at every input's
def test_recomputed_layers_are_compiled_too(graphs: list[Any]) -> None:
    """transformers recomputes inside a layer's forward, where Dynamo would give the layer up."""
    batch, gradients = arrange(ways.sample(96), "shared"), []
    attention.register()
    for recomputed, compiled in ((False, False), (True, True)):
        model = scorer("llama")
        model.causal.set_attn_implementation(attention.NAME)
        if recomputed:
            model.causal.activation_checkpointing_enable({"use_reentrant": False})
        if compiled:
            compiling.compile_scorer(model)
        model.train()
        torch.autograd.backward(model(batch)[0].sum())
        gradients.append([weight.grad for weight in model.parameters()])
    assert graphs
    for found, expected in zip(*gradients, strict=True):
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("failing", [0, 1])
def test_what_could_not_be_compiled_is_as_before(
    graphs: list[Any], monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    model = scorer("llama")
    choice = ways.choose(model, model, "shared", ALONE, bfloat16=False)
    assert (choice.way, model.pruned) == ("shared", True)
    layers = list(decoder_layers(model.causal))
    before, expected = [vars(layer).get("forward") for layer in layers], model(arrange(ways.sample(96), "shared"))[0]
    really, calls = torch.compile, []

    def refuse(*arguments: Any, **options: Any) -> Any:
        calls.append(arguments)
        if len(calls) > failing:
            raise RuntimeError("unknown option")
        return really(*arguments, **options)

    monkeypatch.setattr(torch, "compile", refuse)
    with pytest.raises(RuntimeError, match="unknown option"):
        compiling.compile_scorer(model)
    for _ in range(2):
        compiling.leave(model)
        assert [vars(layer).get("forward") for layer in layers] == before
    assert torch.equal(model(arrange(ways.sample(96), "shared"))[0], expected)


@pytest.mark.parametrize(
    ("kind", "changes", "pruned"),
    [
        ("llama", {}, True),
        ("qwen3", {}, True),
        ("phi3", {"sliding_window": None, "resid_pdrop": 0.0}, True),
        ("phi3", {"sliding_window": None, "resid_pdrop": 0.1}, False),  # it would be left out
        ("granite", {"residual_multiplier": 0.5}, False),  # the same parts, put together in another way
        ("olmo2", {}, False),
        ("phi", {}, False),
        ("gpt2", {}, False),
    ],
)
def test_the_last_layer_answers_for_predictors_alone_where_that_changes_no_number(
    kind: str, changes: dict[str, Any], pruned: bool
) -> None:
    model = scorer(kind, **changes)
    choice = ways.choose(model, model, "shared", ALONE, bfloat16=False)
    assert choice.event is None
    assert model.pruned is pruned
    layer = last_layer.last_layer(model.causal)
    assert layer is None or ("forward" in vars(layer)) is pruned
    batch = arrange(ways.sample(96), "shared")
    rows = []
    if layer is not None:
        layer.mlp.register_forward_hook(lambda _, given, __: rows.append(given[0].shape[1]))
        model(batch)
        assert rows == [len(batch.predictors) if pruned else batch.tokens.shape[1]]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_a_pruned_layer_may_be_recomputed_and_have_an_adapter() -> None:
    import peft

    plain = scorer("llama")
    config = peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    model = Scorer(peft.get_peft_model(plain.causal, config)).eval()
    batch = arrange(ways.sample(96), "shared")

    model.causal.activation_checkpointing_enable({"use_reentrant": False})
    ways.choose(model, model, "shared", ALONE, bfloat16=False)
    assert model.pruned
    found = gradients_in_training(model, batch)
    model.causal.activation_checkpointing_disable()
    last_layer.restore(model.causal)
    model.pruned = False
    for ours, theirs in zip(found, gradients_in_training(model, batch), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


def gradients_in_training(model: Scorer, batch: Batch) -> list[torch.Tensor]:
    """Layers are recomputed only there."""
    model.train()
    model.causal.enable_input_require_grads()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    return list(torch.autograd.grad(model(batch)[0].sum(), trained))
