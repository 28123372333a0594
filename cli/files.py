"""`dpo files`: uploaded data, over HTTP alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.jobs import given
from cli.tables import show
from cli.words import command

app = typer.Typer(help="Uploaded files, before and beside jobs.", no_args_is_help=True)


@app.command()
def add(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="As for `dpo submit`.")],
) -> None:
    """Upload FILE without making a job; prints its id."""
    from rich.console import Console

    from cli.client import connected
    from cli.submit import require_file, upload

    require_file(file)
    with connected() as client:
        file_id = upload(client, file, Console(stderr=True))
    typer.echo(file_id)
    typer.echo(f"next: {command('report', file_id)}", err=True)


@app.command("list")
def list_(limit: Annotated[int, typer.Option(help="How many at most.", min=1, max=10_000)] = 20) -> None:
    """List the newest files first, those that `dpo submit` uploaded among them."""
    from rich.filesize import decimal

    from cli.client import connected

    with connected() as client:
        found = client.files.list(limit=limit).data
    show(
        ("file", "name", "size", "purpose", "status"),
        [(file.id, file.filename, decimal(file.bytes), file.purpose, file.status) for file in found],
    )


@app.command()
def get(
    file_id: Annotated[
        str, typer.Argument(metavar="FILE_ID", callback=given, help="As `files list` or a job's `result_files` has it.")
    ],
) -> None:
    """Print what a file holds: `dpo files get FILE_ID > step_metrics.csv`."""
    from cli.client import connected

    with connected() as client, client.files.with_streaming_response.content(file_id) as answer:
        for piece in answer.iter_bytes():
            typer.echo(piece, nl=False)


@app.command()
def remove(
    file_id: Annotated[str, typer.Argument(metavar="FILE_ID", callback=given, help="The id that `files list` shows.")],
) -> None:
    """Delete a file, unless an unfinished job uses it."""
    from cli.client import connected

    with connected() as client:
        client.files.delete(file_id)
    typer.echo(f"removed {file_id}")
