"""A request for a job as OpenAI's API has it, with our own fields beside; and the TrainingSpec it means."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from control_plane.errors import InvalidRequest
from control_plane.validation import json_object, validated
from dpo_core.judged_metrics import NEEDS_VALIDATION
from dpo_core.spec import Auto, PositiveInt, StrictModel, TrainingFields, TrainingSpec, Weight

PRIORITIES = {"low": -1, "normal": 0, "high": 1}

Priority = Literal["low", "normal", "high"]
MethodType = Literal["dpo", "supervised"]
Scalars = dict[str, Any]


class SupervisedHyperparameters(StrictModel):
    n_epochs: PositiveInt | Auto = "auto"
    batch_size: PositiveInt | Auto = "auto"
    learning_rate_multiplier: Annotated[float, Field(gt=0, le=1000)] | Auto = "auto"


class DpoHyperparameters(SupervisedHyperparameters):
    beta: Annotated[float, Field(gt=0, le=100)] | Auto = "auto"


class Supervised(StrictModel):
    hyperparameters: SupervisedHyperparameters | None = None


class Dpo(StrictModel):
    hyperparameters: DpoHyperparameters | None = None


class Method(StrictModel):
    """OpenAI's `method`: the settings stand in the object that has the type's name."""

    type: MethodType
    dpo: Dpo | None = None
    supervised: Supervised | None = None


class Resources(StrictModel):
    gpus: Annotated[int, Field(ge=1, le=65536)] = 1
    """Training processes; on a machine without GPUs one stands for a CPU slot."""

    nodes: Literal[1] = 1
    """Hosts; jobs larger than one are for later."""


class Wandb(StrictModel):
    project: str
    entity: str | None = None
    name: str | None = None
    tags: list[str] | None = None


class Integration(StrictModel):
    """OpenAI's; echoed, and an event says that nothing is sent anywhere."""

    type: Literal["wandb"]
    wandb: Wandb


class JobRequest(StrictModel):
    """The body of a create request. `training`, `resources` and `priority` are ours; the rest is OpenAI's."""

    model: Annotated[str, Field(min_length=1)]
    training_file: Annotated[str, Field(min_length=1)]
    training_files: Annotated[dict[str, Weight], Field(min_length=1)] | None = None
    """Ours: all files to train on, by id, and how often each pair of a file is seen in an epoch (1 once, 0.5 a seeded
    half of them, 2.5 twice and a seeded half). `training_file` is one of them."""
    validation_file: str | None = None
    method: Method | None = None
    hyperparameters: SupervisedHyperparameters | None = None
    """OpenAI's older place for a supervised job's settings."""
    training: TrainingFields = Field(default_factory=TrainingFields)
    resources: Resources = Field(default_factory=Resources)
    priority: Priority = "normal"
    preemptible: bool = False
    """Ours: a job of high priority that finds no room may have this one's: it makes a checkpoint, stops, and goes on
    from there later."""
    suffix: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    metadata: (
        Annotated[
            dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
        ]
        | None
    ) = None
    integrations: list[Integration] | None = None

    @property
    def weighed_files(self) -> list[dict[str, Any]] | None:
        """`training_files` as it is stored: in the order that they were named in."""
        if self.training_files is None:
            return None
        return [{"id": file_id, "weight": weight} for file_id, weight in self.training_files.items()]


def priority_name(priority: int) -> str:
    """The word for a job's priority."""
    return next(name for name, number in PRIORITIES.items() if number == priority)


def read_request(body: object) -> JobRequest:
    """The body of a create request, checked as far as one can without the database. InvalidRequest names the field."""
    given = {name: value for name, value in json_object(body).items() if value is not None}
    request = validated(JobRequest, given)
    if request.training_files is not None and request.training_file not in request.training_files:
        raise InvalidRequest(
            f"training_file {request.training_file!r} is not among training_files; name it there with its weight.",
            param="training_files",
            code="conflicting_values",
        )
    return request


def training_spec(request: JobRequest) -> TrainingSpec:
    """What the request means, wherever it says it. InvalidRequest when two places say different things."""
    given = request.training.model_dump(exclude_unset=True)
    method = _method_type(request)
    _merge(given, {"method": method}, "method.type")
    for where, hyperparameters in _hyperparameters(request, method):
        chosen = hyperparameters.model_dump(exclude_unset=True)
        if "n_epochs" in chosen:
            chosen["epochs"] = chosen.pop("n_epochs")
        if chosen.get("learning_rate_multiplier") == "auto":
            del chosen["learning_rate_multiplier"]
        _merge(given, chosen, where)
    if request.seed is not None:
        _merge(given, {"seed": request.seed}, "seed")
    spec = validated(TrainingSpec, given, where="training")
    _refuse_nonsense(request, spec)
    return spec


def _method_type(request: JobRequest) -> MethodType:
    """OpenAI's default is supervised; a job whose `training` names its method needs no `method`."""
    if request.method is not None:
        other = "supervised" if request.method.type == "dpo" else "dpo"
        if getattr(request.method, other) is not None:
            raise InvalidRequest(
                f'method.type is "{request.method.type}", but there are settings in method.{other}; keep one of them.',
                param=f"method.{other}",
                code="conflicting_values",
            )
        return request.method.type
    return request.training.method if "method" in request.training.model_fields_set else "supervised"


def _hyperparameters(request: JobRequest, method: MethodType) -> list[tuple[str, SupervisedHyperparameters]]:
    places: list[tuple[str, SupervisedHyperparameters | None]] = [("hyperparameters", request.hyperparameters)]
    settings = getattr(request.method, method) if request.method is not None else None
    if settings is not None:
        places.append((f"method.{method}.hyperparameters", settings.hyperparameters))
    return [(where, found) for where, found in places if found is not None]


def _merge(given: Scalars, more: Scalars, where: str) -> None:
    """Adds `more` to the training fields `given`; the same field with two values is refused."""
    for name, value in more.items():
        if name in given and given[name] != value:
            raise InvalidRequest(
                f'"{name}" is {given[name]!r} in one place and {value!r} in "{where}"; give it once.',
                param=f"training.{name}",
                code="conflicting_values",
            )
        given[name] = value


def _refuse_nonsense(request: JobRequest, spec: TrainingSpec) -> None:
    if spec.learning_rate != "auto" and spec.learning_rate_multiplier != 1.0:
        raise InvalidRequest(
            "learning_rate_multiplier multiplies the automatic rate; give it or training.learning_rate, not both.",
            param="training.learning_rate",
            code="conflicting_values",
        )
    unwatched = request.validation_file is None and spec.validation_fraction == 0
    if spec.early_stopping is not None and unwatched:
        raise InvalidRequest(NEEDS_VALIDATION, param="training.early_stopping", code="invalid_value")
