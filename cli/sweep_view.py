"""A sweep on the terminal: a line for each job with its values and what it reached, and which is best."""

from __future__ import annotations

import json
import time
from contextlib import nullcontext
from typing import Any

from openai import OpenAI
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from cli.job_view import NAMES
from cli.tables import aligned
from cli.watch import patiently
from cli.words import command

Json = dict[str, Any]
POLL_SECONDS = 2.0
UNFINISHED = ("queued", "running")


def read(client: OpenAI, sweep_id: str) -> Json:
    found: Any = client.get(f"/fine_tuning/sweeps/{sweep_id}", cast_to=object)
    table: Json = found
    return table


def follow(client: OpenAI, sweep_id: str, console: Console) -> Json:
    """Shows the table until all jobs are over, redrawn where the output is a terminal. Returns it as it is then.

    A service that stops answering is waited for, as `dpo watch` does.
    """
    sweep = read(client, sweep_id)
    client = client.with_options(max_retries=0)
    go_on = command("sweep", "show", sweep_id, "--watch")
    redrawn = Live(drawn(sweep), console=console, transient=True) if console.is_interactive else nullcontext()
    with redrawn as live:
        while sweep["status"] in UNFINISHED:
            time.sleep(POLL_SECONDS)
            sweep = patiently(lambda: read(client, sweep_id), lambda line: _say(console, line), go_on)
            if live is not None:
                live.update(drawn(sweep))
    return sweep


def _say(console: Console, line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def drawn(sweep: Json) -> Group:
    return Group(*(Text(line, no_wrap=True) for line in lines(sweep)))


def lines(sweep: Json) -> list[str]:
    """The table, why jobs failed, and a sentence about it."""
    fields = [axis["field"] for axis in sweep["axes"]]
    metrics = [name for name in _shown(sweep) if any(name in row["metrics"] for row in sweep["results"])]
    columns = ["job", *fields, "state", "steps", *(f"{NAMES[name]} [95 %]" for name in metrics), ""]
    rows = [_row(row, fields, metrics) for row in sweep["results"]]
    return [*aligned(columns, rows), "", *_errors(sweep), *_verdict(sweep)]


def _errors(sweep: Json) -> list[str]:
    """Every reason once: many jobs fail through the same."""
    jobs: dict[str, list[str]] = {}
    for row in sweep["results"]:
        if row["error"] is not None:
            jobs.setdefault(row["error"], []).append(row["job"])
    return [f"{', '.join(failed)} failed: {error}" for error, failed in jobs.items()]


def _shown(sweep: Json) -> list[str]:
    """By what jobs are compared comes first."""
    return list(dict.fromkeys([sweep["compared_by"], "loss", "token_accuracy"]))


def _row(row: Json, fields: list[str], metrics: list[str]) -> list[str]:
    values = [row["values"][field] for field in fields]
    words = [value if isinstance(value, str) else json.dumps(value) for value in values]
    numbers = [_with_interval(row["metrics"], name) for name in metrics]
    mark = "best" if row["best"] else "within its interval" if row["within_best"] else ""
    if not row["comparable"]:
        mark = f"not compared: on {row['pairs']:,} held-out rows"
    return [row["job"], *words, row["state"], f"{row['step']}/{row['total_steps'] or '?'}", *numbers, mark]


def _with_interval(metrics: dict[str, float], name: str) -> str:
    if name not in metrics:
        return ""
    value = f"{metrics[name]:z.4f}"
    ends = [metrics.get(f"{name}/{end}") for end in ("low", "high")]
    return f"{value} [{', '.join(f'{end:z.4f}' for end in ends if end is not None)}]" if None not in ends else value


def _verdict(sweep: Json) -> list[str]:
    counts = ", ".join(f"{count} {state}" for state, count in sweep["jobs"].items())
    found = [f"{sweep['id']} is {sweep['status']}: {counts}"]
    if not all(row["comparable"] for row in sweep["results"]):
        found.append(
            "jobs were measured on different rows, of which a shorter max_length leaves some out; only the largest "
            "group is compared"
        )
    if sweep["best"] is None:
        if sweep["status"] == "succeeded":
            found.append(
                "nothing was held out, so the jobs can't be compared: give --validation, or a `validation_fraction`"
            )
        return found
    near = sum(row["within_best"] for row in sweep["results"]) - 1
    ahead = f"best by {NAMES[sweep['compared_by']]} on held-out data: {sweep['best']}"
    if near:
        ahead += f"; {near} more within its interval, which another draw of pairs may rank otherwise"
    found.append(ahead)
    if sweep["status"] not in UNFINISHED:
        found.append(f"next: {command('sweep', 'promote', sweep['id'])}")
    return found
