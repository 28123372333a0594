"""`dpo models`: the register of base models that jobs may start from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast
from urllib.parse import quote

import typer

from cli.errors import CommandFailed
from cli.options import PROJECT, DataOption
from cli.tables import show

if TYPE_CHECKING:
    from openai import OpenAI

    from control_plane.tables import Model

app = typer.Typer(help="Models that jobs may start from.", no_args_is_help=True)


@app.command()
def add(
    path: Annotated[Path, typer.Argument(help="A folder in Hugging Face form: config, tokenizer, safetensors.")],
    name: Annotated[
        str | None, typer.Option("--name", help="The model becomes base/NAME; default: the folder's.")
    ] = None,
    data: DataOption = None,
) -> None:
    """Register a local folder as a base model, without copying it."""
    from cli.connection import transaction
    from control_plane import models

    with transaction(data) as session:
        model = models.register_base(session, path, name)
    typer.echo(model.id)


@app.command("list")
def list_(
    project: Annotated[
        str, typer.Option("--project", help="Whose checkpoints to list beside the base models.")
    ] = PROJECT,
    every: Annotated[bool, typer.Option("--all", help="Also the checkpoints that a job made on its way.")] = False,
    data: DataOption = None,
) -> None:
    """List base models, then what the project's jobs made, newest first."""
    from cli.connection import transaction
    from control_plane import models, projects

    with transaction(data) as session:
        found = models.list_models(session, projects.ensure(session, project).id)
    shown = sorted(found if every else _ends(found), key=lambda model: model.kind != "base")
    show(
        ("model", "kind", "form", "from"),
        [(model.id, model.kind, model.form, model.path or model.job_id or "") for model in shown],
    )
    if len(shown) < len(found):
        typer.echo(f"… and, with --all, checkpoints on the way: {len(found) - len(shown)}", err=True)


def _ends(models: Sequence[Model]) -> list[Model]:
    """All but the checkpoints of a job on its way to its newest, and that only where it has no other name."""
    from control_plane.result_names import MERGED

    newest: dict[str | None, int] = {}
    for model in models:
        newest[model.job_id] = max(newest.get(model.job_id, 0), model.step or 0)
    named = {(model.job_id, model.step) for model in models if not _is_step(model) and MERGED not in model.facts}
    return [
        model
        for model in models
        if not _is_step(model) or ((model.job_id, model.step) not in named and model.step == newest[model.job_id])
    ]


def _is_step(model: Model) -> bool:
    return model.id.endswith(f"-step-{model.step}")


@app.command()
def merge(
    model_id: Annotated[
        str, typer.Argument(metavar="MODEL", help="What a job with LoRA made, as `dpo watch` shows it.")
    ],
) -> None:
    """Merge an adapter with its base, and print the id of the model with all weights. Over HTTP, as `dpo download`."""
    from cli.client import connected

    with connected() as client:
        while (found := _ordered(client, model_id))["state"] in ("waiting", "running"):
            typer.echo(f"{found['merged']} is {found['state']}; Ctrl-C leaves the order to the worker", err=True)
    if found["error"] is not None:
        raise CommandFailed(found["error"]["message"])
    typer.echo(found["merged"])


def _ordered(client: OpenAI, model_id: str) -> dict[str, Any]:
    """What the service says of the order; it answers after half a minute where the model is not made before."""
    return cast(dict[str, Any], client.post(f"/models/{quote(model_id, safe='/')}/merge", cast_to=object))


@app.command()
def remove(
    model_id: Annotated[str, typer.Argument(help="The id that `dpo models list` shows, as base/NAME.")],
    data: DataOption = None,
) -> None:
    """Take a base model out of the register; its folder stays as it is."""
    from cli.connection import transaction
    from control_plane import models

    with transaction(data) as session:
        model = models.unregister_base(session, model_id)
    typer.echo(f"removed {model.id}; {model.path} is untouched")
