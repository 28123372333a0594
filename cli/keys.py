"""`dpo keys`: make, list and revoke API keys."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.connection import PROJECT, DataOption, transaction
from cli.tables import show
from control_plane import keys, projects

ProjectOption = Annotated[str, typer.Option("--project", help="Whose key it is.")]
app = typer.Typer(help="API keys: made here, shown once, stored hashed.", no_args_is_help=True)


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="What to recognise the key by.")],
    project: ProjectOption = PROJECT,
    data: DataOption = None,
) -> None:
    """Make a key and print it: the only time it can be read."""
    with transaction(data) as session:
        _, secret = keys.create(session, projects.ensure(session, project).id, name)
    typer.echo(secret)


@app.command("list")
def list_(project: ProjectOption = PROJECT, data: DataOption = None) -> None:
    """List the project's keys, revoked ones too."""
    with transaction(data) as session:
        found = keys.list_keys(session, projects.ensure(session, project).id)
    show(
        ("id", "name", "begins with", "made", "state"),
        [
            (key.id, key.name, key.hint, f"{key.created_at:%Y-%m-%d %H:%M}", "revoked" if key.revoked_at else "valid")
            for key in found
        ],
    )


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="The id that `dpo keys list` shows.")],
    project: ProjectOption = PROJECT,
    data: DataOption = None,
) -> None:
    """Refuse a key from the next request on."""
    with transaction(data) as session:
        key = keys.revoke(session, projects.ensure(session, project).id, key_id)
    typer.echo(f"revoked {key.id} ({key.name})")
