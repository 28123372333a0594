"""`dpo submit`, `watch`, `jobs`, `logs`, `cancel`, `pause` … `download`: from a file to weights, over HTTP alone.

They talk to the service that OPENAI_BASE_URL and OPENAI_API_KEY name, or else to this user's `dpo up`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.tables import show
from cli.words import command, moment
from control_plane.job_requests import Priority
from dpo_core.spec import Method

INTERRUPTED = 130
"""The exit code of a program that Ctrl-C ended, by the shell's convention."""


def given(value: str) -> str:
    """An id that a shell variable should have held."""
    if not value.strip():
        raise typer.BadParameter("it is empty")
    return value


def submit(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Pairs in any usual form: JSONL, a JSON array, CSV or Parquet.")
    ],
    *,
    model: Annotated[str, typer.Option(callback=given, help="Where to start: an id that `dpo models list` shows.")],
    validation: Annotated[Path | None, typer.Option(help="Pairs to measure on; default: a part of FILE.")] = None,
    spec: Annotated[
        Path | None, typer.Option(help="A JSON file with fields of the request, as `training`; options win over it.")
    ] = None,
    loss: Annotated[
        str | None, typer.Option(metavar="NAME", help="sigmoid, ipo, simpo, …: docs/losses.md.", show_default="sigmoid")
    ] = None,
    beta: Annotated[float | None, typer.Option(help="How strongly the model is held to where it started.")] = None,
    method: Annotated[
        Method | None, typer.Option(help="supervised: learn to give the answers of FILE.", show_default="dpo")
    ] = None,
    suffix: Annotated[str | None, typer.Option(help="A word in the new model's name.")] = None,
    gpus: Annotated[int | None, typer.Option(help="GPUs, or CPU slots where there is none.", show_default="1")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over FILE.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="The highest rate of the schedule.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Pairs per step.")] = None,
    skip_bad_rows: Annotated[
        float | None,
        typer.Option(metavar="SHARE", help="The share of FILE's rows that may be left out as bad.", show_default="0"),
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option("--columns", metavar="FIELD=COLUMN", help="FILE's own name of a field; as often as needed."),
    ] = None,
    lora: Annotated[bool, typer.Option("--lora", help="Train an adapter instead of all weights.")] = False,
    priority: Annotated[
        Priority | None, typer.Option(help="Goes before jobs of a lower one.", show_default="normal")
    ] = None,
    preemptible: Annotated[
        bool, typer.Option("--preemptible", help="Let it make room for a job of high priority, and go on later.")
    ] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Go on with `dpo watch`.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Make no job: print what it would be and take, with reasons.")
    ] = False,
) -> None:
    """Upload FILE and train on it; prints the job's id. What is not given is chosen by the service, with reasons."""
    from rich.console import Console

    from cli.columns import columns_of
    from cli.estimate import show_estimate
    from cli.submit import Flags, show_warnings
    from cli.submit import dry_run as try_files
    from cli.submit import submit as submit_files

    flags = Flags(
        model=model,
        method=method,
        suffix=suffix,
        gpus=gpus,
        loss=loss,
        beta=beta,
        epochs=epochs,
        learning_rate=learning_rate,
        batch_size=batch_size,
        skip_bad_rows=skip_bad_rows,
        columns=columns_of(columns) if columns else None,
        lora=lora,
        priority=priority,
        preemptible=preemptible,
    )
    console = Console(stderr=True)
    if dry_run:
        show_estimate(try_files(file, validation, spec, flags, console))
        return
    job_id = submit_files(file, validation, spec, flags, console)
    typer.echo(job_id)
    if watch:
        watch_job(job_id)  # it shows the warnings too
    else:
        show_warnings(job_id, console)
        typer.echo(f"next: {command('watch', job_id)}\nor stop it: {command('cancel', job_id)}", err=True)


def report(
    file: Annotated[str, typer.Argument(metavar="FILE_ID", callback=given, help="The id of an uploaded file.")],
    *,
    model: Annotated[
        str | None, typer.Option(help="Also what this model's tokenizer and chat template make of it.")
    ] = None,
    columns: Annotated[
        list[str] | None, typer.Option("--columns", metavar="FIELD=COLUMN", help="As for `dpo submit`.")
    ] = None,
) -> None:
    """What an uploaded file holds: problems by line with the way out, and statistics."""
    from rich.console import Console

    from cli.report import report as show_report

    show_report(file, model, columns or [], Console(stderr=True))


def list_jobs(
    limit: Annotated[int, typer.Option(help="How many at most.", min=1, max=100)] = 20,
) -> None:
    """List the newest jobs first: where each is or why it failed, what it starts from, and the model it made."""
    from cli.client import connected
    from cli.job_view import progress

    with connected() as client:
        found = client.fine_tuning.jobs.list(limit=limit).data
    rows = []
    for job in found:
        step, total = progress(job)
        run = (job.model_extra or {})["run"]
        state = f"{run['state']} after {run['waits_for']}" if run["waits_for"] else run["state"]
        if run.get("lease_left") == 0:
            state += " (not heard of)"
        if job.status == "failed" and job.error is not None:
            state += f" ({job.error.code})"
        steps, made = f"{step}/{total or '?'}", moment(job.created_at)
        rows.append((job.id, job.status, state, steps, made, job.model, job.fine_tuned_model or ""))
    show(("job", "status", "state", "steps", "created", "from", "model"), rows)


def reproduce(
    job_id: Annotated[str, typer.Argument(metavar="JOB", callback=given, help="A job that succeeded.")],
) -> None:
    """Run a job again with the same files and choices; prints `identical`, or the first step that differs (exit code
    1)."""
    from cli.reproduce import reproduce

    again, found = reproduce(job_id)
    typer.echo(f"{again}: {found}")
    if found != "identical":
        raise typer.Exit(1)


def logs(
    job: Annotated[str, typer.Argument(metavar="JOB", callback=given, help="The id that `dpo jobs` shows.")],
    attempt: Annotated[int | None, typer.Option(help="Only this attempt, by the number in its heading.", min=1)] = None,
) -> None:
    """Show what a job's processes printed, attempt by attempt; of one that runs up to half a minute ago."""
    from cli.logs import logs

    for piece in logs(job, attempt):
        typer.echo(piece, nl=False)


def cancel(
    job: Annotated[str, typer.Argument(metavar="JOB", callback=given, help="The id that `dpo jobs` shows.")],
) -> None:
    """Stop a job for good; the checkpoints that it has made stay."""
    from cli.client import connected

    with connected() as client:
        client.fine_tuning.jobs.cancel(job)
    typer.echo(f"cancelled {job}")


def pause(
    job: Annotated[str, typer.Argument(metavar="JOB", callback=given, help="The id that `dpo jobs` shows.")],
) -> None:
    """Let a job make a checkpoint, stop it and free its GPUs; `dpo resume` goes on from there."""
    from cli.client import connected

    with connected() as client:
        run = (client.fine_tuning.jobs.pause(job).model_extra or {})["run"]
    done = "paused" if run["state"] == "paused" else "a checkpoint is made, then it is paused:"
    typer.echo(f"{done} {job}; to go on: {command('resume', job)}")


def resume(
    job: Annotated[str, typer.Argument(metavar="JOB", callback=given, help="The id that `dpo jobs` shows.")],
) -> None:
    """Let a paused job go on from its last checkpoint."""
    from cli.client import connected

    with connected() as client:
        client.fine_tuning.jobs.resume(job)
    typer.echo(f"resumed {job}")


def watch_job(
    job: Annotated[str, typer.Argument(metavar="JOB", callback=given, help="The id that `dpo submit` printed.")],
) -> None:
    """Show a job's progress and events until it ends. Exit code 1 unless it succeeded; Ctrl-C leaves it running."""
    from rich.console import Console

    from cli.watch import watch

    try:
        watch(job, Console())
    except KeyboardInterrupt:
        typer.echo(
            f"\n{job} goes on without being watched; look again with `{command('watch', job)}`, "
            f"or stop it with `{command('cancel', job)}`"
        )
        raise typer.Exit(INTERRUPTED) from None


def download(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", callback=given, help="The id that `dpo watch` or `dpo models list` shows.")
    ],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to put its files; a new or empty folder.")],
) -> None:
    """Fetch a trained model's files, and check that every byte is what was trained."""
    from rich.console import Console

    from cli.download import download as download_model

    for line in download_model(model, folder, Console(stderr=True)):
        typer.echo(line)
