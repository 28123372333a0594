"""`dpo sweep`: many jobs from one file, which differ in the training fields that have several values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from cli.jobs import INTERRUPTED, given
from cli.tables import show
from cli.words import command
from dpo_core.spec import Method

app = typer.Typer(help="Try several values at once, and compare what comes out.", no_args_is_help=True)

T = TypeVar("T")
SweepId = Annotated[str, typer.Argument(metavar="SWEEP", callback=given, help="The id that `dpo sweep list` shows.")]


@app.command()
def submit(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="As for `dpo submit`.")],
    *,
    model: Annotated[str, typer.Option(callback=given, help="Where to start: an id that `dpo models list` shows.")],
    validation: Annotated[Path | None, typer.Option(help="Pairs to compare on; default: a part of FILE.")] = None,
    spec: Annotated[
        Path | None, typer.Option(help="A JSON file as for `dpo submit`, with lists of values in `training`.")
    ] = None,
    loss: Annotated[str | None, typer.Option(metavar="NAME,…", help="docs/losses.md.")] = None,
    beta: Annotated[str | None, typer.Option(metavar="NUMBER,…", help="As `0.05,0.1,0.5`.")] = None,
    learning_rate: Annotated[str | None, typer.Option(metavar="NUMBER,…", help="As `5e-7,1e-6,auto`.")] = None,
    epochs: Annotated[str | None, typer.Option(metavar="NUMBER,…", help="Passes over FILE.")] = None,
    batch_size: Annotated[str | None, typer.Option(metavar="NUMBER,…", help="Pairs per step.")] = None,
    method: Annotated[Method | None, typer.Option(help="As for `dpo submit`.", show_default="dpo")] = None,
    suffix: Annotated[str | None, typer.Option(help="A word in the new models' names.")] = None,
    gpus: Annotated[int | None, typer.Option(help="GPUs of each job.", show_default="1")] = None,
    columns: Annotated[
        list[str] | None, typer.Option("--columns", metavar="FIELD=COLUMN", help="As for `dpo submit`.")
    ] = None,
    lora: Annotated[bool, typer.Option("--lora", help="Train adapters instead of all weights.")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Go on with `dpo sweep show --watch`.")] = False,
) -> None:
    """Upload FILE and train on it once for every combination of the values; prints the sweep's id."""
    from rich.console import Console

    from cli.columns import columns_of
    from cli.submit import Flags, submit_sweep

    flags = Flags(
        model=model,
        method=method,
        suffix=suffix,
        gpus=gpus,
        loss=_values(loss, str, "--loss"),
        beta=_values(beta, float, "--beta"),
        epochs=_values(epochs, int, "--epochs"),
        learning_rate=_values(learning_rate, float, "--learning-rate"),
        batch_size=_values(batch_size, int, "--batch-size"),
        columns=columns_of(columns) if columns else None,
        lora=lora,
    )
    sweep_id = submit_sweep(file, validation, spec, flags, Console(stderr=True))
    typer.echo(sweep_id)
    if watch:
        show_sweep(sweep_id, watch=True)
    else:
        typer.echo(f"next: {command('sweep', 'show', sweep_id, '--watch')}", err=True)


@app.command("list")
def list_(limit: Annotated[int, typer.Option(help="How many at most.", min=1, max=100)] = 20) -> None:
    """List the newest sweeps first."""
    from cli.client import connected

    with connected() as client:
        found = client.get("/fine_tuning/sweeps", cast_to=object, options={"params": {"limit": limit}})
    sweeps = found["data"]  # type: ignore[index]
    show(
        ("sweep", "status", "jobs", "over"),
        [
            (sweep["id"], sweep["status"], str(sum(sweep["jobs"].values())), ", ".join(_over(sweep["axes"])))
            for sweep in sweeps
        ],
    )


@app.command("show")
def show_sweep(
    sweep: SweepId,
    *,
    watch: Annotated[bool, typer.Option("--watch", help="Until all jobs are over; Ctrl-C ends only that.")] = False,
) -> None:
    """Show each job's values, state and held-out metrics with 95 % intervals, and which job is best.

    With --watch the exit code is 1 where no job succeeded.
    """
    from rich.console import Console

    from cli.client import connected
    from cli.sweep_view import follow, lines, read

    try:
        with connected() as client:
            found = follow(client, sweep, Console()) if watch else read(client, sweep)
    except KeyboardInterrupt:
        typer.echo(f"\n{sweep} goes on without being watched; stop it with `{command('sweep', 'cancel', sweep)}`")
        raise typer.Exit(INTERRUPTED) from None
    for line in lines(found):
        typer.echo(line)
    if watch and found["status"] != "succeeded":
        raise typer.Exit(1)


@app.command()
def cancel(sweep: SweepId) -> None:
    """Stop all of a sweep's jobs that are not over, for good; checkpoints stay."""
    from cli.client import connected

    with connected() as client:
        client.post(f"/fine_tuning/sweeps/{sweep}/cancel", cast_to=object)
    typer.echo(f"cancelled {sweep}")


@app.command()
def promote(
    sweep: SweepId, job: Annotated[str | None, typer.Option(help="Which of its jobs; default: the best.")] = None
) -> None:
    """Give a job's best checkpoint the sweep's name; prints the model's id."""
    from cli.client import connected

    with connected() as client:
        body = {} if job is None else {"job": job}
        model = client.post(f"/fine_tuning/sweeps/{sweep}/promote", cast_to=object, body=body)
    name = model["id"]  # type: ignore[index]
    typer.echo(name)
    typer.echo(f"next: {command('download', name, name.partition('/')[2])}", err=True)


def _values(text: str | None, kind: Callable[[str], T], option: str) -> T | list[T] | None:
    """One value, or several between commas; `auto` is left to the service."""
    if text is None:
        return None
    try:
        values = [part if part == "auto" else kind(part) for part in (part.strip() for part in text.split(","))]
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no list of values between commas", param_hint=option) from None
    return values if len(values) > 1 else values[0]  # type: ignore[return-value]


def _over(axes: list[dict[str, object]]) -> list[str]:
    return [str(axis["field"]) for axis in axes]
