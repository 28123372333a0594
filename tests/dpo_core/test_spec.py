from __future__ import annotations

import ast
import inspect
import itertools
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from dpo_core import spec
from dpo_core.spec import LoraSpec, ModelSource, RunSpec, TrainingSpec


def test_defaults_are_valid_and_survive_json() -> None:
    training = TrainingSpec(lora=LoraSpec())
    assert TrainingSpec.model_validate_json(training.model_dump_json()) == training


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("beta", 0),
        ("beta", float("nan")),
        ("beta", "automatic"),
        ("learning_rate", float("inf")),
        ("learning_rate", -1e-6),
        ("label_smoothing", 0.5),
        ("batch_size", 0),
        ("batch_size", 1.5),
        ("max_length", 7),
        ("zero_stage", 4),
        ("warmup_ratio", 1),
        ("validation_fraction", 1),
        ("seed", -1),
        ("loss", "hinge"),
        ("method", "ppo"),
        ("lora", {"rank": 0}),
        ("lora", {"r": 8}),
        ("betas", 0.1),
    ],
)
def test_nonsense_is_refused(field: str, value: object) -> None:
    with pytest.raises(ValidationError) as caught:
        TrainingSpec.model_validate({field: value})
    assert caught.value.errors()[0]["loc"][0] == field


def test_a_run_spec_survives_json() -> None:
    run = RunSpec(
        job_id="job",
        training=TrainingSpec(),
        model=ModelSource(id="m", path=Path("model")),
        training_file=Path("train.jsonl"),
    )
    assert RunSpec.model_validate_json(run.model_dump_json()) == run


def test_every_training_field_is_documented_under_it() -> None:
    tree = ast.parse(inspect.getsource(spec))
    for model in (LoraSpec, TrainingSpec):
        (body,) = [node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == model.__name__]
        documented = {
            field.target.id
            for field, below in itertools.pairwise(body)
            if isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
        }
        fields: type[BaseModel] = model
        assert documented == fields.model_fields.keys()
