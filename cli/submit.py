"""`dpo submit` and `dpo sweep submit`: upload data and make a job, or a sweep."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from openai import APIError, APIStatusError, OpenAI
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from cli.answers import answer
from cli.client import connected
from cli.errors import CommandFailed
from cli.job_view import event_line
from control_plane.job_requests import read_request, training_spec
from control_plane.sweep_requests import read_sweep
from dpo_core.spec import Method

Json = dict[str, Any]
METHODS = get_args(Method)
FILE_FIELDS = ("training_file", "validation_file")

ELSEWHERE = {"epochs": "n_epochs", "learning_rate": "learning_rate_multiplier"}
"""What OpenAI's hyperparameters call a field of `training`, or what would contradict it."""


@dataclass(frozen=True)
class Flags:
    """What the command line says about the job; None leaves it to the spec file, or to the service.

    For a sweep, lists are values to try.
    """

    model: str
    method: Method | None = None
    suffix: str | None = None
    gpus: int | None = None
    loss: str | list[str] | None = None
    beta: float | list[float] | None = None
    epochs: int | list[int] | None = None
    learning_rate: float | list[float] | None = None
    batch_size: int | list[int] | None = None
    skip_bad_rows: float | None = None
    columns: dict[str, str] | None = None
    """The file's own name of a field."""

    lora: bool = False
    priority: str | None = None
    preemptible: bool = False

    def training(self) -> Json:
        given = {
            "loss": self.loss,
            "beta": self.beta,
            "epochs": self.epochs,
            "learning_rate": self.learning_rate,
            "batch_size": self.batch_size,
            "skip_bad_rows": self.skip_bad_rows,
            "columns": self.columns,
        }
        return {name: value for name, value in given.items() if value is not None}


def submit(file: Path, validation: Path | None, spec: Path | None, flags: Flags, console: Console) -> str:
    """Makes a job of the files, and returns its id. Raises CommandFailed; where the service refused, no file stays."""
    body = request_body(read_spec(spec) if spec else {}, flags)
    return _send(file, validation, body, _create, console)


def submit_sweep(file: Path, validation: Path | None, spec: Path | None, flags: Flags, console: Console) -> str:
    """As `submit`, for a sweep: lists of `training` are values to try."""
    body = request_body(read_spec(spec) if spec else {}, flags, check=read_sweep)
    return _send(file, validation, body, _create_sweep, console)


def dry_run(file: Path, validation: Path | None, spec: Path | None, flags: Flags, console: Console) -> Json:
    """What the service says the job would be and take. Raises CommandFailed; no file stays behind."""

    body = request_body(read_spec(spec) if spec else {}, flags)
    with _uploaded(file, validation, body, console) as (client, whole, _):
        estimate: Json = answer(client, "/fine_tuning/jobs", console, params={"dry_run": True}, body=whole)["estimate"]
        return estimate


def _send(
    file: Path, validation: Path | None, body: Json, create: Callable[[OpenAI, Json], str], console: Console
) -> str:
    with _uploaded(file, validation, body, console) as (client, whole, removals):
        kept = removals.pop_all()  # a job may be made of them even where its answer is lost on the way
        try:
            return create(client, whole)
        except APIStatusError as refused:
            if refused.status_code < 500:
                kept.close()
            raise


@contextmanager
def _uploaded(
    file: Path, validation: Path | None, body: Json, console: Console
) -> Iterator[tuple[OpenAI, Json, ExitStack]]:
    """A client, `body` with the ids of the files, which are uploaded, and the stack that removes them at the end."""
    paths = {field: path for field, path in zip(FILE_FIELDS, (file, validation), strict=True) if path}
    for path in paths.values():
        require_file(path)
    whole = dict(body)
    with connected() as client, ExitStack() as removals:
        client.models.retrieve(body["model"])
        for field, path in paths.items():
            whole[field] = upload(client, path, console)
            removals.callback(_remove, client, whole[field])
        yield client, whole, removals


def _remove(client: OpenAI, file_id: str) -> None:
    """As far as the service answers: what it said before is worth more than what it says to this."""
    with suppress(APIError):
        client.files.delete(file_id)


def show_warnings(job_id: str, console: Console) -> None:
    """What the service finds odd about a job before a worker has seen it, as more GPUs than there are."""
    with connected() as client:
        events = client.fine_tuning.jobs.list_events(job_id)
        for event in events.data:
            if event.level == "warn":
                console.print(event_line(event), highlight=False, soft_wrap=True)


def _create(client: OpenAI, body: Json) -> str:
    """OpenAI's required fields go in by name, all others as they are."""
    own = {name: value for name, value in body.items() if name not in ("model", "training_file")}
    job = client.fine_tuning.jobs.create(model=body["model"], training_file=body["training_file"], extra_body=own)
    return job.id


def _create_sweep(client: OpenAI, body: Json) -> str:
    made: Any = client.post("/fine_tuning/sweeps", cast_to=object, body=body)
    return str(made["id"])


def upload(client: OpenAI, path: Path, console: Console) -> str:
    """The id of the uploaded file. A bar shows how far it is."""
    columns = (TextColumn("{task.description}"), BarColumn(24), DownloadColumn())
    size = path.stat().st_size
    if not console.is_interactive:
        console.print(f"uploading {path.name} ({decimal(size)})", markup=False, highlight=False, soft_wrap=True)
    with (
        Progress(
            *columns, TransferSpeedColumn(), TimeRemainingColumn(), console=console, disable=not console.is_interactive
        ) as bar,
        open(path, "rb") as file,
    ):
        task = bar.add_task(f"uploading {path.name}", total=size)
        return client.files.create(file=(path.name, bar.wrap_file(file, task_id=task)), purpose="fine-tune").id


def read_spec(path: Path) -> Json:
    """The JSON object in `path`. Raises CommandFailed."""
    try:
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise CommandFailed(f"can't read --spec {path}: {error.strerror}") from None
    except ValueError as error:
        raise CommandFailed(f"--spec {path} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise CommandFailed(f"--spec {path} holds no JSON object; it takes the fields of a job, as `training`")
    return {name: value for name, value in found.items() if value is not None}


def check_job(body: Json) -> None:
    """Raises InvalidRequest."""
    training_spec(read_request(body))


def request_body(spec: Json, flags: Flags, check: Callable[[Json], object] = check_job) -> Json:
    """The request: `spec` where `flags` say nothing. Its method is dpo unless one of them says otherwise.

    Raises InvalidRequest for a field that does not exist, or a value that can't be; `check` does for the whole body.
    """
    placeholders = {"model": flags.model, "training_file": "-"}
    read_request({**_with_one_value(spec), **placeholders})  # the shapes are right from here on
    body = {**deepcopy(spec), "model": flags.model}
    training = body["training"] = body.get("training") or {}
    chosen = flags.training()
    for place in _places(body):
        for name in chosen:
            place.pop(ELSEWHERE.get(name, name), None)
            place.pop(name, None)
    training.update(chosen)
    if flags.lora:
        training["lora"] = training.get("lora") or {}
    if flags.suffix is not None:
        body["suffix"] = flags.suffix
    if flags.gpus is not None:
        body["resources"] = {**(body.get("resources") or {}), "gpus": flags.gpus}
    if flags.priority is not None:
        body["priority"] = flags.priority
    if flags.preemptible:
        body["preemptible"] = True
    _set_method(body, flags.method)
    check({**body, **placeholders})
    return body


def _with_one_value(spec: Json) -> Json:
    """`spec` with the first value of each list in `training`."""
    training = spec.get("training")
    if not isinstance(training, dict):
        return spec
    first = {name: value[0] if isinstance(value, list) and value else value for name, value in training.items()}
    return {**spec, "training": first}


def _places(body: Json) -> list[Json]:
    """Every object of the request in which a training value may stand."""
    method = body.get("method") or {}
    settings = [method.get(name) or {} for name in METHODS]
    found = [body.get("training"), body.get("hyperparameters"), *(it.get("hyperparameters") for it in settings)]
    return [place for place in found if place]


def _set_method(body: Json, flag: Method | None) -> None:
    if flag is not None:
        body["training"].pop("method", None)
        if body.get("method", {}).get("type") != flag:
            body["method"] = {"type": flag}
    elif "method" not in body and "method" not in body["training"]:
        body["method"] = {"type": "dpo"}


def require_file(path: Path) -> None:
    """Raises CommandFailed where there is nothing to upload."""
    if path.is_dir():
        raise CommandFailed(f"{path} is a folder; name one file")
    if not path.is_file():
        raise CommandFailed(f"there is no file {path}")
    if path.stat().st_size == 0:
        raise CommandFailed(f"the file {path} is empty; it takes one row a line")
