"""`dpo files`: uploaded data and what jobs leave, over HTTP alone."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from cli.errors import CommandFailed
from cli.jobs import given
from cli.tables import show
from cli.words import command

app = typer.Typer(help="Uploaded files, before and beside jobs, and what jobs leave.", no_args_is_help=True)


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
    file_id: Annotated[str, typer.Argument(metavar="FILE_ID", callback=given, help="The id that `files list` shows.")],
) -> None:
    """Print what a file holds: `dpo files get FILE_ID > FILE`."""
    from cli.client import connected

    with connected() as client, client.files.with_streaming_response.content(file_id) as answer:
        for piece in answer.iter_bytes():
            if b"\0" in piece and sys.stdout.isatty():
                raise CommandFailed(f"it is no text; write it to a file: {command('files', 'get', file_id)} > FILE")
            _print(piece)


def _print(piece: bytes) -> None:
    try:
        typer.echo(piece, nl=False)
    except BrokenPipeError:  # who reads has had enough, which typer knows
        raise
    except OSError as error:
        raise CommandFailed(f"can't write what the file holds: {error.strerror}") from None


@app.command()
def remove(
    file_id: Annotated[str, typer.Argument(metavar="FILE_ID", callback=given, help="The id that `files list` shows.")],
) -> None:
    """Delete a file, unless an unfinished job uses it."""
    from cli.client import connected

    with connected() as client:
        client.files.delete(file_id)
    typer.echo(f"removed {file_id}")
