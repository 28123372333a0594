"""A request for a sweep: a job's request in which fields of `training` may be lists, and the jobs that it means."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any, NoReturn

from control_plane.errors import InvalidRequest, ServiceError
from control_plane.job_requests import JobRequest, read_request, training_spec
from control_plane.tables import Json
from control_plane.validation import json_object
from dpo_core.spec import TrainingSpec

MAX_JOBS = 100


@dataclass(frozen=True)
class Combination:
    """One job of a sweep."""

    values: Json
    """By training field."""
    request: JobRequest


@dataclass(frozen=True)
class SweepRequest:
    """One job for every combination of the axes' values, the last axis varying fastest."""

    body: Json
    """As it was sent."""
    axes: dict[str, list[Any]]
    """By training field."""
    combinations: list[Combination]


def read_sweep(body: object) -> SweepRequest:
    """The body of a create request, every combination checked as far as one can without the database.

    InvalidRequest names the field, and the combination where only some are wrong.
    """
    body = json_object(body)
    _refuse_lists_elsewhere(body)
    training = body.get("training")
    training = training if isinstance(training, dict) else {}
    axes = _axes(training)
    combinations = []
    specs: dict[str, TrainingSpec] = {}
    first: dict[str, Json] = {}  # by the spec that they mean, as JSON
    for values in product(*axes.values()):
        chosen = dict(zip(axes, values, strict=True))
        with naming(chosen):
            request = read_request({**body, "training": {**training, **chosen}})
            spec = training_spec(request)
        meant = spec.model_dump_json()
        if meant in specs:
            _refuse_repeated(axes, first[meant], chosen)
        specs[meant], first[meant] = spec, chosen
        combinations.append(Combination(chosen, request))
    _refuse_what_cannot_be_compared(axes, list(specs.values()), held_out=body.get("validation_file") is not None)
    return SweepRequest(body, axes, combinations)


@contextmanager
def naming(chosen: Json) -> Iterator[None]:
    """An error in the block says that it is about the job with these values."""
    try:
        yield
    except ServiceError as error:
        error.message = f"With {described(chosen)}: {error.message}"
        error.args = (error.message,)
        raise


def described(chosen: Json) -> str:
    """Values in words, such as `beta 0.1 and loss "ipo"`."""
    return " and ".join(f"{field} {json.dumps(value)}" for field, value in chosen.items())


def _axes(training: Json) -> dict[str, list[Any]]:
    """No training field is a list by itself, so every list is one of values."""
    axes = {field: values for field, values in training.items() if isinstance(values, list)}
    if not axes:
        raise InvalidRequest(
            "A sweep compares values: give at least one field of `training` as a list, such as "
            '{"learning_rate": [1e-6, 3e-6]}; for one job, use /v1/fine_tuning/jobs.',
            param="training",
            code="no_axis",
        )
    if "method" in axes:
        raise InvalidRequest(
            "Jobs of different methods have no metric in common; make a sweep for each `method`.",
            param="training.method",
            code="invalid_value",
        )
    for field, values in axes.items():
        if not values:
            raise InvalidRequest(
                f'"{field}" is an empty list; give it values.', param=f"training.{field}", code="invalid_value"
            )
    count = prod(map(len, axes.values()))
    if count > MAX_JOBS:
        lengths = " × ".join(f"{len(values)} of {field}" for field, values in axes.items())
        raise InvalidRequest(
            f"A sweep has at most {MAX_JOBS} jobs, and {lengths} are {count}; leave values out.",
            param="training",
            code="too_many_jobs",
        )
    return axes


def _refuse_lists_elsewhere(body: Json) -> None:
    """Where OpenAI's API has hyperparameters, a value is one value."""
    method = body.get("method")
    settings = method.items() if isinstance(method, dict) else ()
    places = [("hyperparameters", body), *((f"method.{name}.hyperparameters", it) for name, it in settings)]
    for where, place in places:
        given = place.get("hyperparameters") if isinstance(place, dict) else None
        for name, value in given.items() if isinstance(given, dict) else ():
            if isinstance(value, list):
                raise InvalidRequest(
                    f'"{where}.{name}" is a list; lists of values belong in `training`.',
                    param=f"{where}.{name}",
                    code="invalid_value",
                )


def _refuse_repeated(axes: dict[str, list[Any]], earlier: Json, chosen: Json) -> NoReturn:
    """Two combinations mean the same job: two values of one field are one, such as 1 and 1.0."""
    field = next(name for name in axes if chosen[name] != earlier[name] or axes[name].count(chosen[name]) > 1)
    raise InvalidRequest(
        f'"{field}" has {json.dumps(chosen[field])} twice; give each value once.',
        param=f"training.{field}",
        code="invalid_value",
    )


def _refuse_what_cannot_be_compared(
    axes: dict[str, list[Any]], specs: Sequence[TrainingSpec], *, held_out: bool
) -> None:
    """Jobs whose metrics would be of other pairs, or of another kind. `held_out`: by a file of their own."""
    if "skip_bad_rows" in axes:
        raise InvalidRequest(
            "`skip_bad_rows` only says whether a job may run: those that may leave out the same rows, and are equal. "
            "Give one value.",
            param="training.skip_bad_rows",
            code="invalid_value",
        )
    measured = held_out or any(spec.validation_fraction != 0 for spec in specs)
    readings = [field for field in ("columns", "scored_answers") if field in axes]
    if readings and measured:
        raise InvalidRequest(
            f"`{readings[0]}` says which pairs are made of the files, held-out ones too, so each job would be measured "
            "on other pairs; make a sweep for each value.",
            param=f"training.{readings[0]}",
            code="invalid_value",
        )
    splits = [field for field in ("seed", "validation_fraction") if field in axes]
    if splits and not held_out and any(spec.validation_fraction != 0 for spec in specs):
        raise InvalidRequest(
            f"`{splits[0]}` says which pairs are held out, so each job would be measured on other pairs; "
            "give a `validation_file`.",
            param=f"training.{splits[0]}",
            code="invalid_value",
        )
    if specs[0].method == "dpo" and len({spec.reference == "none" for spec in specs}) > 1:
        raise InvalidRequest(
            "Rewards without a reference can't be compared with rewards that have one; make a sweep of its own with "
            '`reference` "none".',
            param="training.reference",
            code="invalid_value",
        )
