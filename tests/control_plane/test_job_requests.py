"""A request that makes no sense is refused with the field's path and a way out."""

from __future__ import annotations

from typing import Any

import pytest

from control_plane.errors import InvalidRequest
from control_plane.job_requests import read_request, training_spec
from tests.control_plane.rows import body


def dpo(**hyperparameters: Any) -> dict[str, Any]:
    return {"type": "dpo", "dpo": {"hyperparameters": hyperparameters}}


@pytest.mark.parametrize(
    ("changes", "param", "code", "said"),
    [
        ({"modle": "x"}, "modle", "unknown_field", 'no field "modle" of this request. Did you mean "model"?'),
        ({"beta": 1}, "beta", "unknown_field", 'It belongs into "training": write {"training": {"beta": ...}}.'),
        ({"training": {"bta": 1}}, "training.bta", "unknown_field", 'in training. Did you mean "beta"?'),
        ({"training": {"lora": {"rnk": 8}}}, "training.lora.rnk", "unknown_field", 'Did you mean "rank"?'),
        ({"resources": {"gpu": 1}}, "resources.gpu", "unknown_field", 'in resources. Did you mean "gpus"?'),
        (
            {"method": dpo(betta=1)},
            "method.dpo.hyperparameters.betta",
            "unknown_field",
            'in method.dpo.hyperparameters. Did you mean "beta"?',
        ),
        ({"method": {"type": "dpo", "zzz": {}}}, "method.zzz", "unknown_field", "Known: type, dpo, supervised."),
        (
            {"integrations": [{"type": "wandb", "wandb": {"project": "x"}, "typ": 1}]},
            "integrations.0.typ",
            "unknown_field",
            'in integrations.0. Did you mean "type"?',
        ),
        (
            {"integrations": [{"type": "wandb", "wandb": {"project": "x", "nam": "y"}}]},
            "integrations.0.wandb.nam",
            "unknown_field",
            'Did you mean "name"?',
        ),
        ({"hyperparameters": {"beta": 1}}, "hyperparameters.beta", "unknown_field", "Known: n_epochs"),
        ({"training_file": None}, "training_file", "missing_field", '"training_file" is missing.'),
        (
            {"training": {"beta": -1}},
            "training.beta",
            "invalid_value",
            "\"training.beta\" must be greater than 0 or 'auto', not -1.",
        ),
        ({"training": {"beta": {"a": 1}}}, "training.beta", "invalid_value", '"training.beta" must be'),
        ({"training": {"beta": float("nan")}}, "training.beta", "invalid_value", "finite number"),
        ({"training": {"zero_stage": 4}}, "training.zero_stage", "invalid_value", "less than or equal to 3"),
        ({"training": {"lora": {"rank": 0}}}, "training.lora.rank", "invalid_value", "greater than or equal to 1"),
        ({"training": []}, "training", "invalid_value", '"training" must be'),
        ({"training": {"loss": "sigmod"}}, "training.loss", "invalid_value", "Did you mean `sigmoid`?"),
        ({"training": {"loss": {"ipo": -1}}}, "training.loss", "invalid_value", "a finite number above 0, not -1."),
        ({"training": {"label_smoothing": 0.5}}, "training.label_smoothing", "invalid_value", "less than 0.5, not 0.5"),
        ({"method": {"type": "reinforcement"}}, "method.type", "invalid_value", "'dpo' or 'supervised'"),
        ({"method": dpo(n_epochs=0)}, "method.dpo.hyperparameters.n_epochs", "invalid_value", "not 0"),
        ({"resources": {"gpus": 0}}, "resources.gpus", "invalid_value", "greater than or equal to 1, not 0"),
        ({"resources": {"gpus": 10**30}}, "resources.gpus", "invalid_value", "less than or equal to 65536"),
        ({"resources": {"nodes": 2}}, "resources.nodes", "invalid_value", "must be 1, not 2"),
        ({"priority": "urgent"}, "priority", "invalid_value", "'low', 'normal' or 'high'"),
        ({"suffix": "s" * 65}, "suffix", "invalid_value", "at most 64 characters"),
        ({"seed": -1}, "seed", "invalid_value", "not -1"),
        ({"metadata": {str(n): "" for n in range(17)}}, "metadata", "invalid_value", "must have at most 16 items."),
        ({"metadata": {"a": "b" * 513}}, "metadata.a", "invalid_value", "at most 512 characters"),
        ({"metadata": {"k" * 65: ""}}, f"metadata.{'k' * 65}", "invalid_value", "at most 64 characters"),
        ({"metadata": {"a": 1}}, "metadata.a", "invalid_value", "valid string, not 1"),
        ({"integrations": [{"type": "wandb"}]}, "integrations.0.wandb", "missing_field", "missing"),
        ({"integrations": [{"type": "mlflow"}]}, "integrations.0.type", "invalid_value", "be 'wandb'"),
    ],
)
def test_refused_as_read(changes: dict[str, Any], param: str, code: str, said: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        read_request(body(**changes))
    assert (refusal.value.param, refusal.value.code) == (param, code)
    assert said in refusal.value.message


@pytest.mark.parametrize(("name", "listed"), [("bta", False), ("zzz", True)])
def test_all_names_are_listed_where_none_is_like_the_one_given(name: str, listed: bool) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        read_request(body(training={name: 1}))
    assert ("Known: " in refusal.value.message) is listed


@pytest.mark.parametrize(
    ("changes", "param", "said"),
    [
        ({"method": dpo(beta=0.1), "training": {"beta": 0.2}}, "training.beta", '0.1 in "method.dpo.hyperparameters"'),
        ({"method": dpo(n_epochs=1), "training": {"epochs": 2}}, "training.epochs", "give it once"),
        ({"method": dpo(n_epochs=1), "hyperparameters": {"n_epochs": 2}}, "training.epochs", "give it once"),
        ({"method": {"type": "dpo"}, "training": {"method": "supervised"}}, "training.method", '"method.type"'),
        ({"seed": 1, "training": {"seed": 2}}, "training.seed", "give it once"),
        ({"method": {"type": "dpo", "supervised": {}}}, "method.supervised", "keep one of them"),
        (
            {"method": dpo(learning_rate_multiplier=2), "training": {"learning_rate": 0.1}},
            "training.learning_rate",
            "not both",
        ),
        ({"training": {"reference": "none"}}, "training.reference", "needs a reference"),
        ({"training": {"loss": "exo_pair"}}, "training.label_smoothing", "needs `label_smoothing` above 0"),
        ({"training": {"gamma_beta_ratio": 1}}, "training.gamma_beta_ratio", "does nothing for `sigmoid`"),
        ({"training": {"loss": {"ipo": 1, "sigmoid_norm": 1}}}, "training.beta", "Give `beta`."),
        ({"method": None, "training": {"loss": "ipo"}}, "training.loss", "belongs to method `dpo`"),
        (
            {"training": {"early_stopping": {"metric": "rewards/margin"}}},
            "training.early_stopping.metric",
            "Did you mean `rewards/margins`?",
        ),
        (
            {"method": {"type": "supervised"}, "training": {"early_stopping": {"metric": "rewards/margins"}}},
            "training.early_stopping.metric",
            "no validation metric of method `supervised`",
        ),
        (
            {"training": {"early_stopping": {}, "validation_fraction": 0}},
            "training.early_stopping",
            "Give a validation file",
        ),
    ],
)
def test_refused_as_contradictory(changes: dict[str, Any], param: str, said: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        training_spec(read_request(body(**changes)))
    assert refusal.value.param == param
    assert said in refusal.value.message


@pytest.mark.parametrize("not_an_object", [None, [], "x", 3])
def test_a_body_that_is_no_object(not_an_object: object) -> None:
    with pytest.raises(InvalidRequest, match="must be a JSON object"):
        read_request(not_an_object)


def test_openais_hyperparameters_mean_training_fields() -> None:
    method = dpo(beta=0.3, batch_size=4, n_epochs=2, learning_rate_multiplier=1.5)
    spec = training_spec(read_request(body(method=method, seed=7, training={"beta": 0.3, "max_length": 64})))
    assert (spec.method, spec.beta, spec.batch_size, spec.epochs, spec.seed) == ("dpo", 0.3, 4, 2, 7)
    assert (spec.learning_rate_multiplier, spec.max_length) == (1.5, 64)


def test_what_goes_together_is_judged_with_every_value_in_place() -> None:
    # Alone, `training` would be a dpo job whose loss needs a reference, or one without its β.
    supervised = {"method": {"type": "supervised"}, "training": {"reference": "none"}}
    assert training_spec(read_request(body(**supervised))).method == "supervised"
    summed = {"training": {"loss": {"sigmoid": 1, "sigmoid_norm": 1}}, "method": dpo(beta=0.3)}
    assert training_spec(read_request(body(**summed))).beta == 0.3


def test_auto_leaves_the_choice() -> None:
    autos = dict.fromkeys(("beta", "batch_size", "n_epochs", "learning_rate_multiplier"), "auto")
    spec = training_spec(read_request(body(method=dpo(**autos))))
    assert (spec.beta, spec.batch_size, spec.epochs, spec.learning_rate_multiplier) == ("auto", "auto", "auto", 1.0)


def test_without_a_method_a_job_is_supervised_as_openais() -> None:
    assert training_spec(read_request(body(method=None))).method == "supervised"
    older = {"method": None, "hyperparameters": {"n_epochs": 3}}
    assert training_spec(read_request(body(**older))).epochs == 3
    assert training_spec(read_request(body(method=None, training={"method": "dpo"}))).method == "dpo"


def test_null_means_not_given() -> None:
    names = ("training", "resources", "priority", "suffix", "seed", "metadata", "integrations", "validation_file")
    assert read_request(body(**dict.fromkeys(names))) == read_request(body())


@pytest.mark.parametrize(
    ("files", "param", "message"),
    [
        ({"file-2": 1}, "training_files", "not among training_files"),
        ({"file-1": 0}, "training_files.file-1", "greater than 0"),
        ({"file-1": 101}, "training_files.file-1", "less than or equal to 100"),
        ({}, "training_files", "at least 1"),
    ],
)
def test_weights_that_cannot_be_are_refused(files: dict[str, float], param: str, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as caught:
        read_request({"model": "base/tiny", "training_file": "file-1", "training_files": files})
    assert caught.value.param == param
