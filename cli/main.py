"""The `dpo` command. Its commands import what they run when they run it, so that `dpo --help` is quick."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from cli import files, jobs, keys, models, projects, sweeps, webhooks
from cli.data_folder import DataFolder, default_data
from cli.errors import CommandFailed
from cli.queue import queue
from cli.settings import clear_settings
from control_plane.errors import ServiceError
from control_plane.settings import DatabaseSettings, Settings
from dpo_core.spec import Method, ScoredAnswers

GRACEFUL_SECONDS = 10


app = typer.Typer(
    help="Align language models on preference data with Direct Preference Optimization, on your own machines.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(sweeps.app, name="sweep")
app.add_typer(models.app, name="models")
app.add_typer(files.app, name="files")
app.add_typer(keys.app, name="keys")
app.add_typer(projects.app, name="projects")
app.add_typer(webhooks.app, name="webhooks")


def show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(version("dpo-service"))
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Takes what may stand before a command."""


@app.command()
def up(
    data: Annotated[
        Path | None,
        typer.Option("--data", help="The folder of everything the service keeps.", show_default=str(default_data())),
    ] = None,
    port: Annotated[
        int, typer.Option(help="Port of the API on the loopback address; 0 takes a free one.", min=0, max=65535)
    ] = 8000,
    cpu_slots: Annotated[
        int | None,
        typer.Option(help="Training processes at once where there is no GPU; default: the CPU's cores.", min=0),
    ] = None,
) -> None:
    """Run the whole service on this machine: PostgreSQL, Redis, the API and a worker. Ctrl-C stops it."""
    from cli.up import up

    up(DataFolder(data or default_data()), port=port, cpu_slots=cpu_slots)


@app.command()
def validate(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A data file, in any form that a job takes.")],
    *,
    model: Annotated[Path, typer.Option(help="A model's folder: tokenizer and chat template are read, no weights.")],
    method: Annotated[Method, typer.Option(help="What the file is for.")] = "dpo",
    columns: Annotated[
        list[str] | None,
        typer.Option("--columns", metavar="FIELD=COLUMN", help="The file's own name of a field; as often as needed."),
    ] = None,
    scored_answers: Annotated[
        ScoredAnswers, typer.Option(help="Which pairs are made of N scored answers to one prompt.")
    ] = "best_worst",
    max_length: Annotated[int | None, typer.Option(help="Longest sequence in tokens.", min=1)] = None,
    chat_template: Annotated[
        Path | None, typer.Option(metavar="TEMPLATE", help="A file with a Jinja chat template instead of the model's.")
    ] = None,
    lines: Annotated[
        str | None, typer.Option(metavar="3,17", help="Rows to show, by line.", show_default="the first 3")
    ] = None,
) -> None:
    """Show what MODEL will see of FILE, and what is wrong with its rows; 1 is the exit code if any is bad."""
    from rich.console import Console

    from cli.columns import columns_of
    from cli.validate import lines_of, template_of, validate
    from dpo_core.data.options import ReadOptions

    good = validate(
        file,
        model,
        ReadOptions(method, columns_of(columns or []), scored_answers),
        chat_template=template_of(chat_template),
        max_length=max_length,
        lines=lines_of(lines),
        console=Console(soft_wrap=True, highlight=False),
    )
    if not good:
        raise typer.Exit(1)


app.command("submit")(jobs.submit)
app.command("report")(jobs.report)
app.command("watch")(jobs.watch_job)
app.command("jobs")(jobs.list_jobs)
app.command("logs")(jobs.logs)
app.command("queue")(queue)
app.command("cancel")(jobs.cancel)
app.command("pause")(jobs.pause)
app.command("resume")(jobs.resume)
app.command("download")(jobs.download)
app.command("reproduce")(jobs.reproduce)
app.command("audit")(projects.audit)


@app.command()
def api(
    fd: Annotated[int | None, typer.Option(hidden=True, help="A bound socket that this process inherited.")] = None,
) -> None:
    """Run the API alone, against DPO_DATABASE_URL, DPO_REDIS_URL and DPO_STORAGE_URL."""
    import gc
    import socket

    import uvicorn

    from api.main import create_app
    from api.server import Server
    from api.zero_copy import ZeroCopyProtocol

    with clear_settings():
        settings = Settings()
    application = create_app(settings)
    config = uvicorn.Config(
        application,
        host=settings.host,
        port=settings.port,
        access_log=False,
        http=ZeroCopyProtocol,
        loop="asyncio",  # the protocol's sendfile is asyncio's
        timeout_graceful_shutdown=GRACEFUL_SECONDS,
    )
    server = Server(config)
    application.state.services.feed.stopping = lambda: server.should_exit
    # What was imported stays for good. A full collection would look at all of it, and nobody is answered meanwhile.
    gc.collect()
    gc.freeze()
    server.run(sockets=None if fd is None else [socket.socket(fileno=fd)])


@app.command()
def worker() -> None:
    """Run a worker alone, against DPO_DATABASE_URL, DPO_REDIS_URL and DPO_STORAGE_URL."""
    from worker.main import run

    with clear_settings():
        settings = Settings()
    run(settings)


@app.command()
def migrate() -> None:
    """Bring the schema of DPO_DATABASE_URL up to date; harmless where it is."""
    from migrations.run import upgrade

    with clear_settings():
        settings = DatabaseSettings()
    upgrade(settings.database_url.get_secret_value())
    typer.echo("the schema is up to date")


def main() -> None:
    """Errors that this project foresees become one line and exit code 1; others keep their traceback."""
    try:
        app()
    except (CommandFailed, ServiceError) as error:
        typer.echo(f"dpo: {error}", err=True)
        sys.exit(1)
