"""An adapter merged with its base answers as the adapter on its base does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from dpo_core import program
from dpo_core.merge import merge, save_merged
from dpo_core.questions import MergeSpec
from dpo_core.run_directory import Manifest, RunDirectory, sha256_of
from dpo_core.spec import ModelSource
from tests.makers import make_adapter, make_tiny_model

# peft asks transformers by a name that is going away.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
IDS = torch.arange(259).repeat(2, 1)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits.float()


@pytest.fixture
def adapter(tmp_path: Path) -> ModelSource:
    base = make_tiny_model(tmp_path / "base")
    return ModelSource(id="default/a", path=make_adapter(base, "base/tiny", tmp_path / "adapter"), base_path=base)


def test_it_answers_as_the_adapter_does(adapter: ModelSource, tmp_path: Path) -> None:
    save_merged(adapter, torch.float32, tmp_path / "merged")
    base = AutoModelForCausalLM.from_pretrained(adapter.base_path)
    before = logits(base)
    expected = logits(PeftModel.from_pretrained(base, adapter.path))
    found = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(before, expected, atol=1e-2), "an adapter that does nothing would prove nothing"


def test_in_bfloat16_each_sum_is_rounded_once(adapter: ModelSource, tmp_path: Path) -> None:
    """To the bit: W + s·B·A in float32, then bfloat16."""
    assert adapter.base_path is not None
    wide = AutoModelForCausalLM.from_pretrained(adapter.base_path).to(torch.bfloat16)
    wide.save_pretrained(adapter.base_path)
    save_merged(adapter, torch.bfloat16, tmp_path / "merged")
    config = json.loads((adapter.path / "adapter_config.json").read_text())
    parts = load_file(adapter.path / "adapter_model.safetensors")
    base, found = (load_file(folder / "model.safetensors") for folder in (adapter.base_path, tmp_path / "merged"))
    assert base.keys() == found.keys()
    changed = 0
    for name, weight in base.items():
        part = f"base_model.model.{name.removesuffix('.weight')}"
        expected = weight
        if f"{part}.lora_A.weight" in parts:
            update = parts[f"{part}.lora_B.weight"] @ parts[f"{part}.lora_A.weight"]
            expected = (weight.float() + config["lora_alpha"] / config["r"] * update).to(torch.bfloat16)
            changed += 1
        assert torch.equal(found[name], expected), name
    assert changed == 14
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "bfloat16"


def test_the_program(adapter: ModelSource, tmp_path: Path) -> None:
    """Its answer lists what it made; tokenizer and template are the adapter's own, and it names no base."""
    (adapter.path / "chat_template.jinja").write_text("its own")
    directory = RunDirectory(tmp_path / "run")
    directory.create(MergeSpec(model=adapter, dtype="F32", step=3))
    assert program.run(directory.path, merge) == 0
    manifest = Manifest.model_validate_json(directory.answer_file.read_bytes())
    assert (manifest.step, manifest.kind) == (3, "full")
    listed = {file.path: file.sha256 for file in manifest.files}
    folder = directory.merged / "model"
    assert listed == {f"model/{path.name}": sha256_of(path) for path in folder.iterdir()}
    assert {"model/model.safetensors", "model/config.json", "model/tokenizer.json"} <= listed.keys()
    assert AutoTokenizer.from_pretrained(folder).chat_template == "its own"
    assert not list(folder.glob("adapter*"))
