"""Every kind of start, in one launch of one process."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dpo_core.data.run_data import load_splits
from dpo_core.metrics import WEIGHT_FIFTHS
from dpo_core.packing import rows_of
from dpo_core.run_directory import RunDirectory, read_lines
from dpo_core.spec import ModelSource
from tests.dpo_core.runs import Workshop, codes, lines, losses, train_all
from tests.makers import make_tiny_model

LORA = {"rank": 4, "alpha": 8}


def events(run: RunDirectory) -> list[dict[str, Any]]:
    return [event for event, _ in read_lines(run.events_file, 0)]


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return Workshop(tmp_path_factory.mktemp("one_rank"))


def path_of(run: RunDirectory, step: int) -> Path:
    return run.checkpoints / f"step-{step}" / "model"


@pytest.fixture(scope="module")
def runs(workshop: Workshop) -> dict[str, RunDirectory]:
    made = {"base": workshop.make("base", training={"max_steps": 1})}
    supervised = {"method": "supervised", "learning_rate": 1e-2, "checkpoint_steps": 100}
    made["supervised"] = workshop.make("supervised", training=supervised | {"lora": LORA, "epochs": 2})
    taught = path_of(made["supervised"], 12)
    adapter = ModelSource(id="default/taught", path=taught, base_path=workshop.base.path)
    short = {"max_steps": 2}
    made["continued"] = workshop.make("continued", model=adapter, training=short | {"lora": LORA})
    known = made["continued"].reference
    made["continued-warm"] = workshop.make(
        "continued-warm", model=adapter, training=short | {"lora": LORA}, reference_cache=known
    )
    second = ModelSource(id="default/2", path=path_of(made["continued"], 2), base_path=workshop.base.path)
    made["second"] = workshop.make("second", model=second, training=short | {"lora": LORA}, reference_cache=known)
    made["second-warm"] = workshop.make(
        "second-warm", model=second, training=short | {"lora": LORA}, reference_cache=made["second"].reference
    )
    made["merged"] = workshop.make("merged", model=adapter, training=short)
    other = ModelSource(id="default/other", path=make_tiny_model(workshop.folder / "other", seed=9))
    made["other"] = workshop.make("other", reference=other, training=short | {"reference": "default/other"})
    made["bfloat16"] = workshop.make(
        "bfloat16", training=short | {"precision": "bfloat16", "activation_checkpointing": True, "zero_stage": 1}
    )
    template = "{% for message in messages %}{{ message.content + '<|im_end|>' }}{% endfor %}"
    made["template"] = workshop.make("template", training=short | {"chat_template": template})
    made["without"] = workshop.make("without", training=short | {"loss": "simpo", "beta": 2, "reference": "none"})
    made["sum"] = workshop.make("sum", training=short | {"loss": {"sppo_hard": 1, "sft": 0.5}})
    train_all(list(made.values()), ranks=1)
    return made


def test_supervised_training_learns(runs: dict[str, RunDirectory]) -> None:
    values = lines(runs["supervised"])
    assert values[11]["loss"] < values[0]["loss"] - 0.5
    assert values[11]["token_accuracy"] > values[0]["token_accuracy"]


def test_every_step_says_how_much_it_computed_and_how_far_it_has_moved(runs: dict[str, RunDirectory]) -> None:
    for name, run in runs.items():
        values = lines(run).values()
        assert all(line["flops_per_second"] > 0 and "mfu" not in line for line in values), name
        if name != "supervised":
            assert all(sum(line[fifth] for fifth in WEIGHT_FIFTHS) == pytest.approx(1) for line in values), name
    first, later = lines(runs["continued"]).values()
    assert first["kl_estimate"] == pytest.approx(0, abs=1e-4)
    moved = -(later["rewards/chosen"] + later["rewards/rejected"]) / 2 / 0.1
    assert later["kl_estimate"] == pytest.approx(moved) and abs(moved) > 1e-4


def test_dpo_after_supervised_lora_starts_at_ln_2(runs: dict[str, RunDirectory]) -> None:
    for name in ("continued", "merged"):
        assert lines(runs[name])[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    # Both start from the same policy, one with the adapter beside the base and one with it merged in.
    names = ("logps/chosen", "logps/rejected")
    continued, merged, base = (lines(runs[run])[0] for run in ("continued", "merged", "base"))
    assert [continued[name] for name in names] == pytest.approx([merged[name] for name in names], abs=1e-4)
    assert abs(continued["logps/chosen"] - base["logps/chosen"]) > 1


def test_every_round_starts_at_ln_2_with_the_cache_cold_and_warm(runs: dict[str, RunDirectory]) -> None:
    """Supervised LoRA, DPO with LoRA, a second DPO with LoRA."""
    for name in ("continued", "continued-warm", "second", "second-warm"):
        assert lines(runs[name])[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
        assert lines(runs[name], "validation")[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    for name in ("continued-warm", "second-warm"):
        assert "reference_found" in codes(runs[name])
        assert losses(runs[name]) == losses(runs[name.removesuffix("-warm")])


def test_the_cache_of_another_adapter_on_the_same_base_is_not_used(runs: dict[str, RunDirectory]) -> None:
    assert {"reference_cache_ignored", "reference_computed"} <= set(codes(runs["second"]))
    assert lines(runs["second"])[0]["logps/chosen"] != lines(runs["continued"])[0]["logps/chosen"]


# peft asks transformers by a name that transformers 5.23 is retiring
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_an_adapter_names_its_base(runs: dict[str, RunDirectory], workshop: Workshop) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    for name in ("supervised", "continued"):
        folder, manifest = runs[name].complete_checkpoints()[-1]
        config = json.loads((folder / "model" / "adapter_config.json").read_text())
        assert manifest.kind == "adapter"
        assert config["base_model_name_or_path"] == "default/tiny"
        assert config["target_modules"] == sorted(config["target_modules"])
        assert "lm_head" not in config["target_modules"]
        assert (folder / "model" / "tokenizer.json").exists()
        base = AutoModelForCausalLM.from_pretrained(workshop.base.path)
        PeftModel.from_pretrained(base, folder / "model")
    assert runs["merged"].complete_checkpoints()[-1][1].kind == "full"


def test_another_reference_model(runs: dict[str, RunDirectory], workshop: Workshop) -> None:
    """Against plain forward passes, one unpadded sequence at a time."""
    from transformers import AutoModelForCausalLM

    run = runs["other"]
    frozen = load_file(run.path / "reference.safetensors")["log_probabilities"]
    items, held_out = load_splits(run.spec(), run.tokens)
    assert frozen.shape == (2, len(items) + len(held_out))
    model = AutoModelForCausalLM.from_pretrained(workshop.folder / "other")
    measured = frozen[0, : len(items)].isfinite().nonzero().flatten().tolist()
    assert len(measured) == 16, "two steps of 8 pairs"
    for index in measured[:4]:
        for place, row in enumerate(rows_of(items[index])):
            tokens = torch.tensor([row.tokens])
            with torch.no_grad():
                table = model(tokens).logits.log_softmax(-1)[0]
            expected = sum(table[at - 1, row.tokens[at]].item() for at in range(row.prompt, len(row.tokens)))
            assert frozen[place, index].item() == pytest.approx(expected, abs=1e-4)
    assert abs(lines(run)[0]["loss"] - math.log(2)) > 1e-3


def test_a_loss_without_a_reference(runs: dict[str, RunDirectory]) -> None:
    """No pass measures one and nothing is checked against it; the rewards are β log π."""
    values = lines(runs["without"])
    assert not load_file(runs["without"].path / "reference.safetensors")["log_probabilities"].any()
    assert not {"reference_started", "step_zero_check"} & {event["code"] for event in events(runs["without"])}
    assert values[0]["rewards/chosen"] == pytest.approx(2 * values[0]["logps/chosen"])
    assert values[0]["logps/chosen"] == pytest.approx(lines(runs["base"])[0]["logps/chosen"], abs=1e-4)
    assert values[1]["loss"] != values[0]["loss"]


def test_a_sum_of_losses_checks_its_own_value_at_step_zero(runs: dict[str, RunDirectory]) -> None:
    # 1/(2β²) = 50 of sppo_hard, and what half the cross-entropy of the untrained model over some 260 tokens is.
    value = lines(runs["sum"])[0]["loss"]
    assert 50 + 0.5 * 4 < value < 50 + 0.5 * 8
    (check,) = [event for event in events(runs["sum"]) if event["code"] == "step_zero_check"]
    assert check["level"] == "info"
    assert check["data"]["difference"] < 1e-3


def test_bfloat16_checkpoints_are_bfloat16(runs: dict[str, RunDirectory]) -> None:
    folder = runs["bfloat16"].complete_checkpoints()[-1][0] / "model"
    assert {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    assert lines(runs["bfloat16"])[0]["loss"] == pytest.approx(math.log(2), abs=1e-2)


def test_a_checkpoint_carries_the_template_it_was_trained_with(
    runs: dict[str, RunDirectory], workshop: Workshop
) -> None:
    def template(folder: Path) -> str:
        return (folder / "chat_template.jinja").read_text()

    ours = template(runs["template"].complete_checkpoints()[-1][0] / "model")
    assert ours == runs["template"].spec().training.chat_template
    kept = runs["merged"].complete_checkpoints()[-1][0] / "model"
    assert template(kept) == template(workshop.base.path)
    original = (workshop.base.path / "tokenizer.json").read_bytes()
    assert (kept / "tokenizer.json").read_bytes() == original
