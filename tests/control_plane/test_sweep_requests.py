from __future__ import annotations

from typing import Any, get_args, get_origin

import pytest

from control_plane.errors import InvalidRequest
from control_plane.job_requests import training_spec
from control_plane.sweep_requests import read_sweep
from dpo_core.spec import TrainingFields
from tests.control_plane.rows import body


def sweep(**training: Any) -> list[dict[str, Any]]:
    """The training of each combination, as asked for."""
    found = read_sweep(body(training=training)).combinations
    return [combination.request.training.model_dump(exclude_unset=True) for combination in found]


def refusal(**changes: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as refused:
        read_sweep(body(**changes))
    return refused.value


def test_the_grid_is_the_product_and_the_last_axis_varies_fastest() -> None:
    assert sweep(learning_rate=[1e-6, 3e-6], seed=7, beta=[0.1, "auto"]) == [
        {"learning_rate": 1e-6, "seed": 7, "beta": 0.1},
        {"learning_rate": 1e-6, "seed": 7, "beta": "auto"},
        {"learning_rate": 3e-6, "seed": 7, "beta": 0.1},
        {"learning_rate": 3e-6, "seed": 7, "beta": "auto"},
    ]


def test_an_object_is_one_value_of_an_axis() -> None:
    found = sweep(loss=["sigmoid", {"sigmoid": 1.0, "sft": 0.1}], lora=[None, {"rank": 4}], beta=0.1)
    assert [(one["loss"], one["lora"]) for one in found] == [
        ("sigmoid", None),
        ("sigmoid", {"rank": 4}),
        ({"sigmoid": 1.0, "sft": 0.1}, None),
        ({"sigmoid": 1.0, "sft": 0.1}, {"rank": 4}),
    ]


def test_no_training_field_is_a_list_by_itself() -> None:
    for name, field in TrainingFields.model_fields.items():
        kinds = [field.annotation, *get_args(field.annotation)]
        assert not any(get_origin(kind) is list or kind is list for kind in kinds), name


def test_every_combination_is_checked_and_the_bad_one_named() -> None:
    refused = refusal(training={"loss": ["sigmoid", "exo_pair"], "beta": [0.1, 0.2]})
    assert str(refused).startswith('With loss "exo_pair" and beta 0.1: `exo_pair` needs `label_smoothing` above 0')
    assert refused.param == "training.label_smoothing"
    assert refusal(training={"beta": [0.1, -1]}).param == "training.beta"


def test_a_value_elsewhere_must_agree_with_every_job() -> None:
    method = {"type": "dpo", "dpo": {"hyperparameters": {"beta": 0.1}}}
    refused = refusal(method=method, training={"beta": [0.1, 0.5]})
    assert (refused.code, refused.param) == ("conflicting_values", "training.beta")
    assert str(refused).startswith("With beta 0.5: ")


def test_what_is_no_sweep_is_refused() -> None:
    assert (refusal().code, refusal().param) == ("no_axis", "training")
    assert refusal(training={"beta": 0.1}).code == "no_axis"
    assert refusal(training={"beta": []}).param == "training.beta"
    assert str(refusal(training={"beta": [0.1, 0.5, 0.1]})) == '"beta" has 0.1 twice; give each value once.'
    assert refusal(training={"beta": [0.1], "loss": ["sigmoid", "sigmoid"]}).param == "training.loss"
    assert str(refusal(training={"beta": [1, 1.0]})) == '"beta" has 1.0 twice; give each value once.'
    assert refusal(training={"beta": [0.1] * 1_000_000}).code == "too_many_jobs"
    assert refusal(training={"method": ["dpo", "supervised"]}).param == "training.method"
    with pytest.raises(InvalidRequest, match="must be a JSON object"):
        read_sweep([])


def test_at_most_a_hundred_jobs() -> None:
    training = {"max_grad_norm": list(range(1, 11)), "beta": [0.1 * n for n in range(1, 11)]}
    assert len(read_sweep(body(training=training)).combinations) == 100
    refused = refusal(training={**training, "epochs": [1, 2]})
    assert refused.code == "too_many_jobs"
    assert "10 of max_grad_norm × 10 of beta × 2 of epochs are 200" in str(refused)


def test_each_combination_is_a_whole_job_request() -> None:
    found = read_sweep(body(suffix="tune", priority="high", training={"beta": [0.1, 0.5]})).combinations
    assert [training_spec(one.request).beta for one in found] == [0.1, 0.5]
    assert {(one.request.suffix, one.request.priority) for one in found} == {("tune", "high")}


@pytest.mark.parametrize(("field", "values"), [("seed", [1, 2]), ("validation_fraction", [0.1, 0.2])])
def test_jobs_are_measured_on_the_same_pairs(field: str, values: list[float]) -> None:
    refused = refusal(training={field: values})
    assert refused.param == f"training.{field}"
    assert "measured on other pairs; give a `validation_file`" in str(refused)
    assert len(read_sweep(body(validation_file="file-2", training={field: values})).combinations) == 2


@pytest.mark.parametrize(
    ("field", "values"),
    [("columns", [{"prompt": "q"}, {"prompt": "p"}]), ("scored_answers", ["best_worst", "all"])],
)
def test_jobs_that_read_their_files_differently_are_not_compared(field: str, values: list[object]) -> None:
    for given in ({}, {"validation_file": "file-2"}):
        refused = refusal(training={field: values}, **given)
        assert refused.param == f"training.{field}"
        assert "measured on other pairs; make a sweep for each value" in str(refused)
    assert len(read_sweep(body(training={field: values, "validation_fraction": 0})).combinations) == 2


def test_what_is_skipped_is_the_same_whatever_is_tolerated() -> None:
    refused = refusal(training={"skip_bad_rows": [0, 0.5]})
    assert refused.param == "training.skip_bad_rows"
    assert "are equal. Give one value." in str(refused)


def test_seeds_may_differ_where_nothing_is_measured() -> None:
    assert len(sweep(seed=[1, 2], validation_fraction=0)) == 2


def test_rewards_with_and_without_a_reference_are_not_compared() -> None:
    refused = refusal(training={"reference": ["start", "none"], "loss": "simpo"})
    assert refused.param == "training.reference" and "make a sweep of its own" in str(refused)
    assert len(sweep(reference=["start", "base/other"])) == 2
    assert len(sweep(reference="none", loss=["simpo", "cpo"])) == 2


def test_lists_among_hyperparameters_are_told_where_they_belong() -> None:
    method = {"type": "dpo", "dpo": {"hyperparameters": {"beta": [0.1, 0.5]}}}
    refused = refusal(method=method, training={"epochs": [1, 2]})
    assert refused.param == "method.dpo.hyperparameters.beta"
    assert "lists of values belong in `training`" in str(refused)
