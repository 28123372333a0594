"""`dpo models`: the register of base models that jobs may start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.connection import PROJECT, DataOption, transaction
from cli.tables import show
from control_plane import models, projects

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
    with transaction(data) as session:
        model = models.register_base(session, path, name)
    typer.echo(model.id)


@app.command("list")
def list_(
    project: Annotated[
        str, typer.Option("--project", help="Whose checkpoints to list beside the base models.")
    ] = PROJECT,
    data: DataOption = None,
) -> None:
    """List base models and the project's own checkpoints, newest first."""
    with transaction(data) as session:
        found = models.list_models(session, projects.ensure(session, project).id)
    show(
        ("model", "kind", "form", "from"),
        [(model.id, model.kind, model.form, model.path or model.job_id or "") for model in found],
    )


@app.command()
def remove(
    model_id: Annotated[str, typer.Argument(help="The id that `dpo models list` shows, as base/NAME.")],
    data: DataOption = None,
) -> None:
    """Take a base model out of the register; its folder stays as it is."""
    with transaction(data) as session:
        model = models.unregister_base(session, model_id)
    typer.echo(f"removed {model.id}; {model.path} is untouched")
