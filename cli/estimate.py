"""`dpo submit --dry-run`: what the job would be and take, in tables."""

from __future__ import annotations

from typing import Any

import typer

from cli.tables import show
from cli.words import duration
from dpo_core.footprint import amount
from dpo_core.prepare_report import Disk, MemoryReport, Value

Json = dict[str, Any]


def show_estimate(estimate: Json) -> None:
    """Prints an `Estimate` of the API."""
    values = {name: Value.model_validate(value) for name, value in estimate["values"].items()}
    chosen = [(name, str(it.value), it.reason) for name, it in values.items() if it.reason != "the default"]
    show(("field", "value", "why"), chosen)
    report = estimate["report"]
    typer.echo(
        f"\n{report['train_items']:,} rows to train on, {report['validation_items']:,} to validate with; "
        f"{estimate['total_steps']:,} steps, {estimate['trained_tokens']:,} tokens\n"
    )
    _show_memory(MemoryReport.model_validate(estimate["memory"]))
    disk, time = Disk.model_validate(estimate["disk"]), estimate["time"]
    typer.echo(
        f"\ndisk: {disk.checkpoints} checkpoints of {amount(disk.model)}, {amount(disk.kept)} in the end; "
        f"{amount(disk.peak)} with the states to resume from"
    )
    about = "" if time["seconds"] is None else f"about {duration(time['seconds'])}: "
    typer.echo(f"time: {about}{time['reason']}")
    for warning in estimate["warnings"]:
        typer.echo(f"warning: {warning}")


def _show_memory(memory: MemoryReport) -> None:
    room = "unknown" if memory.rank is None else amount(memory.rank)
    typer.echo(f"memory of a rank, of {memory.ranks} on {memory.device}; there is {room}")
    rows = [
        (
            f"{'* ' if it.chosen else '  '}{it.zero_stage}",
            it.offload,
            "yes" if it.activation_checkpointing else "no",
            f"{it.micro_batch_tokens:,}",
            amount(it.rank["peak"]),
            amount(it.host),
            {True: "yes", False: "no", None: "?"}[it.fits],
        )
        for it in memory.stages
    ]
    show(("  ZeRO", "offload", "recomputed", "tokens a pass", "peak", "host", "fits"), rows)
