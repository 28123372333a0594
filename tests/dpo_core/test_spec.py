from __future__ import annotations

import ast
import inspect
import itertools
import re
from pathlib import Path

import pytest
from pydantic import BaseModel, ValidationError

from dpo_core import spec
from dpo_core.loss_table import LOSSES
from dpo_core.spec import EarlyStopping, LoraSpec, ModelSource, RunSpec, TrainingFields, TrainingSpec


def test_defaults_are_valid_and_survive_json() -> None:
    training = TrainingSpec(lora=LoraSpec())
    assert TrainingSpec.model_validate_json(training.model_dump_json()) == training


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("beta", 0),
        ("beta", -0.1),
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
        ("method", "ppo"),
        ("lora", {"rank": 0}),
        ("lora", {"r": 8}),
        ("early_stopping", {"patience": 0}),
        ("early_stopping", {"min_delta": -0.1}),
        ("betas", 0.1),
    ],
)
def test_nonsense_is_refused(field: str, value: object) -> None:
    with pytest.raises(ValidationError) as caught:
        TrainingSpec.model_validate({field: value})
    assert caught.value.errors()[0]["loc"][0] == field


@pytest.mark.parametrize(
    ("training", "field", "said"),
    [
        ({"loss": "sigmiod"}, None, "There is no loss 'sigmiod'. Did you mean `sigmoid`?"),
        ({"loss": "aot"}, None, "There is no loss 'aot'. Known: sigmoid, robust"),
        ({"loss": {"sigmoid": 1, "hing": 1}}, None, "no loss 'hing'. Did you mean `hinge`?"),
        ({"loss": {}}, None, "names no loss"),
        ({"loss": None}, None, "the name of a loss, or an object"),
        ({"loss": {"sigmoid": -1}}, None, "The weight of 'sigmoid' in `loss` must be a finite number above 0, not -1."),
        ({"loss": {"sigmoid": 0}}, None, "above 0"),
        ({"loss": {"sigmoid": float("nan")}}, None, "finite"),
        ({"loss": {"sigmoid": float("inf")}}, None, "finite"),
        ({"loss": {"sigmoid": "1"}}, None, "finite number"),
        ({"loss": {"sigmoid": True}}, None, "finite number"),
        ({"loss": "exo_pair"}, "label_smoothing", "needs `label_smoothing` above 0"),
        (
            {"loss": {"hinge": 1, "ipo": 1}, "label_smoothing": 0.1},
            "label_smoothing",
            "`label_smoothing` does nothing for `hinge`, `ipo`: only `sigmoid`, `robust`, `exo_pair` take it.",
        ),
        ({"gamma_beta_ratio": 0.3}, "gamma_beta_ratio", "only `simpo` take"),
        ({"loss": "simpo", "discopop_tau": 0.1}, "discopop_tau", "does nothing for `simpo`"),
        ({"reference": "none"}, "reference", "The loss `sigmoid` needs a reference. Set `reference` to `start`"),
        ({"loss": "ipo", "reference": "none"}, "reference", "`ipo` needs a reference"),
        ({"loss": {"simpo": 1, "apo_zero": 1}, "reference": "none", "beta": 1}, "reference", "`apo_zero` needs"),
        (
            {"loss": {"sigmoid": 1, "sigmoid_norm": 1}},
            "beta",
            "0.1 for `sigmoid` and 5 for `sigmoid_norm`. Give `beta`",
        ),
        ({"method": "supervised", "loss": "ipo"}, "loss", "`loss` belongs to method `dpo`"),
        ({"method": "supervised", "label_smoothing": 0.1}, "label_smoothing", "belongs to method `dpo`"),
    ],
)
def test_a_loss_that_can_not_be_is_refused(training: dict[str, object], field: str | None, said: str) -> None:
    with pytest.raises(ValidationError) as caught:
        TrainingSpec.model_validate(training)
    (error,) = caught.value.errors()
    assert error["ctx"]["field"] == field
    assert said in error["msg"]
    assert error["msg"].endswith(".")


@pytest.mark.parametrize(
    ("loss", "value"),
    [("robust", 0.5), ("exo_pair", 0.5), ("sigmoid", -0.1)],
)
def test_label_smoothing_out_of_range(loss: str, value: float) -> None:
    with pytest.raises(ValidationError) as caught:
        TrainingSpec.model_validate({"loss": loss, "label_smoothing": value})
    assert caught.value.errors()[0]["loc"] == ("label_smoothing",)


@pytest.mark.parametrize(
    "training",
    [
        {"loss": name}
        | ({"label_smoothing": 0.001} if name == "exo_pair" else {})
        | ({"reference": "none"} if free else {})
        for name, free in ((name, not facts.needs_reference) for name, facts in LOSSES.items())
    ],
    ids=lambda training: training["loss"],
)
def test_every_loss_can_be_had(training: dict[str, object]) -> None:
    spec = TrainingSpec.model_validate(training)
    assert TrainingSpec.model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"choosen": "gut"}, "Did you mean `chosen`?"),
        ({"x": "gut"}, "Use `prompt`, "),
        ({"chosen": ""}, "`columns.chosen` is empty"),
    ],
)
def test_columns_name_fields_that_there_are(columns: dict[str, str], said: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(said)):
        TrainingSpec(columns=columns)
    assert TrainingSpec(columns={"chosen": "gut"}).columns == {"chosen": "gut"}


def test_a_sum_of_losses_can_be_had() -> None:
    spec = TrainingSpec.model_validate({"loss": {"sigmoid": 1, "sft": 0.2}, "label_smoothing": 0.1})
    assert spec.loss == {"sigmoid": 1.0, "sft": 0.2}
    assert TrainingSpec.model_validate_json(spec.model_dump_json()) == spec


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
    for model in (LoraSpec, EarlyStopping, TrainingFields):
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
