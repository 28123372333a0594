"""A request for a sweep: a job's request in which fields of `training` may be lists, and the jobs that it means."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

from control_plane.errors import InvalidRequest, ServiceError
from control_plane.job_requests import JobRequest, read_request, training_spec
from control_plane.tables import Json

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
    if not isinstance(body, dict):
        raise InvalidRequest("The body must be a JSON object.", code="invalid_value")
    training = body.get("training")
    training = training if isinstance(training, dict) else {}
    axes = _axes(training)
    combinations = []
    for values in product(*axes.values()):
        chosen = dict(zip(axes, values, strict=True))
        with naming(chosen):
            request = read_request({**body, "training": {**training, **chosen}})
            training_spec(request)
        combinations.append(Combination(chosen, request))
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
        _refuse_repeated(field, values)
    count = prod(map(len, axes.values()))
    if count > MAX_JOBS:
        lengths = " × ".join(f"{len(values)} of {field}" for field, values in axes.items())
        raise InvalidRequest(
            f"A sweep has at most {MAX_JOBS} jobs, and {lengths} are {count}; leave values out.",
            param="training",
            code="too_many_jobs",
        )
    return axes


def _refuse_repeated(field: str, values: list[Any]) -> None:
    seen = [json.dumps(value, sort_keys=True) for value in values]
    twice = next((value for place, value in enumerate(seen) if value in seen[:place]), None)
    if values and twice is None:
        return
    wrong = "is an empty list; give it values" if not values else f"has {twice} twice; give each value once"
    raise InvalidRequest(f'"{field}" {wrong}.', param=f"training.{field}", code="invalid_value")
