"""What a model keeps between the folder it starts from and the folder that is published."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from dpo_core.models import Start, load_start, save_model
from dpo_core.spec import LoraSpec, ModelSource, RunSpec, TrainingSpec


def run_of(folder: Path) -> RunSpec:
    return RunSpec(job_id="job", training=TrainingSpec(), model=ModelSource(id="m", path=folder), training_file=folder)


def published(start: Start, run: RunSpec, folder: Path) -> Path:
    save_model(start, {name: weight.detach() for name, weight in start.model.named_parameters()}, run, folder)
    return folder


@pytest.fixture
def base(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "base"))


def test_a_models_own_dropout_is_off_and_comes_back(tmp_path: Path) -> None:
    config = GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=16, n_positions=16, resid_pdrop=0.5, attn_pdrop=0.25)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    run = run_of(tmp_path / "base")
    start = load_start(run, torch.float32)
    start.model.train()
    tokens = torch.arange(16)[None]
    assert start.model(tokens).logits.equal(start.model(tokens).logits)
    saved = json.loads((published(start, run, tmp_path / "out") / "config.json").read_text())
    assert (saved["resid_pdrop"], saved["attn_pdrop"], saved["embd_pdrop"]) == (0.5, 0.25, 0.1)


def test_buffers_that_belong_to_the_weights_are_published(base: Path, tmp_path: Path) -> None:
    run = run_of(base)
    start = load_start(run, torch.float32)
    start.model.model.norm.register_buffer("bias", torch.tensor([1.5]))
    start.model.model.norm.register_buffer("passing", torch.tensor([2.5]), persistent=False)
    stored = load_file(published(start, run, tmp_path / "out") / "model.safetensors")
    assert stored["model.norm.bias"].tolist() == [1.5]
    assert "model.norm.passing" not in stored


def test_generation_config_and_named_templates_are_carried_on_as_they_are(base: Path, tmp_path: Path) -> None:
    # transformers warns of these flags, and models of renown have them
    (base / "generation_config.json").write_text('{"do_sample": false, "temperature": 0.9, "eos_token_id": 1}')
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    run = run_of(base)
    out = published(load_start(run, torch.float32), run, tmp_path / "out")
    for name in ("generation_config.json", "additional_chat_templates/tool_use.jinja"):
        assert (out / name).read_bytes() == (base / name).read_bytes()
    AutoModelForCausalLM.from_pretrained(out)


# peft asks transformers by a name that transformers 5.23 is retiring
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_an_adapter_in_bfloat16_keeps_the_rotary_frequencies_in_float32(base: Path, tmp_path: Path) -> None:
    """Cast with the weights they would turn every later position another way, and no engine that serves it would."""
    run = run_of(base).model_copy(update={"training": TrainingSpec(lora=LoraSpec())})
    adapter = tmp_path / "adapter"
    load_start(run, torch.float32).model.save_pretrained(adapter)
    source = ModelSource(id="a", path=adapter, base_path=base)
    expected = dict(load_start(run_of(base), torch.bfloat16).model.named_buffers())
    for training in (TrainingSpec(lora=LoraSpec()), TrainingSpec()):
        start = load_start(run.model_copy(update={"training": training, "model": source}), torch.bfloat16)
        assert {parameter.dtype for parameter in start.model.parameters()} == {torch.bfloat16}
        found = {name.removeprefix("base_model.model."): buffer for name, buffer in start.model.named_buffers()}
        assert found.keys() == expected.keys()
        assert all(found[name].dtype == buffer.dtype == torch.float32 for name, buffer in expected.items())
        assert all(torch.equal(found[name], buffer) for name, buffer in expected.items())


def test_no_model_is_published_without_its_tokenizer_where_the_bases_folder_is_gone(base: Path, tmp_path: Path) -> None:
    """Its mount goes away while the run trains."""
    run = run_of(base)
    start = load_start(run, torch.float32)
    base.rename(tmp_path / "not mounted")
    base.mkdir()
    with pytest.raises(FileNotFoundError, match="The model's folder has no config"):
        published(start, run, tmp_path / "out")
