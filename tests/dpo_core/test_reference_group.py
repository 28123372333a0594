"""Whose values may stand for whose: never those of other weights, another arithmetic or another way to run them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dpo_core.reference_group import reference_group, weights_digest
from dpo_core.spec import ModelSource, RunSpec, TrainingSpec


def folder(path: Path, **files: str) -> Path:
    path.mkdir()
    for name, text in files.items():
        (path / name.replace("__", ".")).write_text(text)
    return path


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return folder(tmp_path / "base", config__json="{}", model__safetensors="weights", tokenizer__json="tokenizer")


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    return folder(tmp_path / "adapter", adapter_config__json="{}", adapter_model__safetensors="update")


def group(path: Path, base: Path | None = None, named: ModelSource | None = None, **training: Any) -> str | None:
    spec = TrainingSpec.model_validate({"precision": "float32", "zero_stage": 2} | training)
    return reference_group(
        RunSpec(
            job_id="job",
            training=spec,
            model=ModelSource(id="m", path=path, base_path=base),
            reference=named,
            training_file=Path("pairs.jsonl"),
        )
    )


def test_the_same_weights_elsewhere_and_another_tokenizer_are_the_same_reference(base: Path, tmp_path: Path) -> None:
    copy = folder(tmp_path / "copy", config__json="{}", model__safetensors="weights", tokenizer__json="another")
    assert group(copy) == group(base)
    assert group(base, beta=5.0, learning_rate=1e-3, zero_stage=3, lora={}) == group(base)


def test_one_byte_of_weights_or_config_makes_another(base: Path) -> None:
    groups = {group(base)}
    (base / "config.json").write_text("[]")
    groups.add(group(base))
    (base / "model.safetensors").write_text("weightS")
    groups.add(group(base))
    (base / "model-2.safetensors").write_text("more")
    groups.add(group(base))
    assert len(groups) == 4


def test_another_adapter_on_the_same_base_misses(base: Path, adapter: Path, tmp_path: Path) -> None:
    other = folder(tmp_path / "other", adapter_config__json="{}", adapter_model__safetensors="another update")
    bases = folder(tmp_path / "base2", config__json="{}", model__safetensors="other weights")
    groups = [group(base, lora={}), group(adapter, base, lora={}), group(other, base, lora={})]
    groups += [group(adapter, bases, lora={}), group(adapter, base)]  # the last one is merged
    assert len(set(groups)) == 5


def test_arithmetic_that_differs_is_told_apart(base: Path) -> None:
    ways: list[dict[str, Any]] = [{"precision": "float32"}, {"precision": "bfloat16"}]
    ways += [{"precision": "bfloat16", "zero_stage": 0}, {"precision": "bfloat16", "zero_stage": 0, "lora": {}}]
    ways += [way | {"compile": True} for way in ways]
    assert len({group(base, **way) for way in ways}) == 8
    assert group(base, zero_stage=0) == group(base)


def test_a_named_model_shares_with_jobs_that_start_from_it(base: Path, adapter: Path) -> None:
    named = ModelSource(id="base/m", path=base)
    assert group(adapter, base, named, reference="base/m", lora={}) == group(base)


def test_a_run_without_a_reference_has_no_group(base: Path) -> None:
    assert group(base, method="supervised") is None
    assert group(base, loss="simpo", reference="none") is None


def test_weights_that_are_not_there_have_no_digest(base: Path, adapter: Path) -> None:
    (base / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match="has no config"):
        weights_digest(ModelSource(id="m", path=adapter, base_path=base))
