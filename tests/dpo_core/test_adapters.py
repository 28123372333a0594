"""What a run says when it trains an adapter on that was made otherwise than its spec asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dpo_core.adapters import what_it_keeps
from dpo_core.models import fresh_adapter, load_start, load_weights
from dpo_core.spec import LoraSpec, ModelSource, RunSpec, TrainingSpec

# peft asks transformers by a name that transformers 5.23 is retiring
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def said(base: Path, folder: Path, made: dict[str, Any], asked: dict[str, Any]) -> tuple[str, str] | None:
    """Level and message of the event, for an adapter that was `made` so and is `asked` for so."""
    adapter = fresh_adapter(load_weights(base, torch.float32), LoraSpec(**made), seed=1)
    adapter.save_pretrained(folder / "adapter")
    run = RunSpec(
        job_id="job",
        training=TrainingSpec(lora=LoraSpec(**asked)),
        model=ModelSource(id="default/taught", path=folder / "adapter", base_path=base),
        training_file=folder / "pairs.jsonl",
    )
    event = what_it_keeps(load_start(run, torch.float32).model, run)
    return (event.level, event.message) if event else None


@pytest.mark.parametrize("lora", [{}, {"rank": 4, "alpha": 8}, {"target_modules": ["v_proj", "q_proj"]}])
def test_nothing_where_both_agree(tiny_model: Path, tmp_path: Path, lora: dict[str, Any]) -> None:
    assert said(tiny_model, tmp_path, lora, lora) is None


def test_a_default_that_is_not_used_is_mentioned(tiny_model: Path, tmp_path: Path) -> None:
    level, message = said(tiny_model, tmp_path, {"alpha": 8, "target_modules": ["q_proj", "v_proj"]}, {}) or ("", "")
    assert level == "info"
    assert message.startswith("default/taught is trained on as it was made: alpha 8, target_modules q_proj v_proj. ")
    assert "alpha 16.0, target_modules all-linear" in message


def test_a_wish_that_is_not_granted_is_a_warning(tiny_model: Path, tmp_path: Path) -> None:
    level, message = said(tiny_model, tmp_path, {}, {"alpha": 32, "dropout": 0.1}) or ("", "")
    assert level == "warn"
    assert "as it was made: alpha 16, dropout 0.0. The spec's alpha 32.0, dropout 0.1 does not apply" in message
