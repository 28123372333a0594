"""`dpo queue`: why jobs wait, and until when; and what the workers have free."""

from __future__ import annotations

import time
from typing import Annotated, Any, cast

import typer

from cli.tables import show
from cli.words import duration

Json = dict[str, Any]


def queue(
    limit: Annotated[int, typer.Option(help="How many jobs at most.", min=1, max=100)] = 20,
) -> None:
    """Why jobs wait, and until when, the next one first; then the workers, and why a GPU is not used."""
    from cli.client import connected

    with connected() as client:
        answer = client.get("/fine_tuning/queue", cast_to=object, options={"params": {"limit": limit}})
    found = cast("Json", answer)
    rows = [_row(job) for job in found["data"]]
    if rows:
        show(("job", "state", "priority", "gpus", "age", "until", "why"), rows)
    else:
        typer.echo("no job waits")
    if found["has_more"]:
        typer.echo(f"… and more: --limit {min(100, 2 * limit)} shows them" if limit < 100 else "… and more")
    typer.echo()
    if found["workers"]:
        show(("worker", "device", "slots", "usable", "free", ""), [_worker(worker) for worker in found["workers"]])
    else:
        typer.echo("there is no worker")
    for worker in found["workers"]:
        for out in worker["out"]:
            typer.echo(f"{worker['id']}: {out['gpu']} is not used: {out['reason']}")


def _row(job: Json) -> tuple[str, ...]:
    now = time.time()
    until = f"in {duration(job['until'] - now)}" if job["until"] is not None else "?"
    age = duration(now - job["created_at"])
    return (job["id"], job["state"], job["priority"], str(job["gpus"]), age, until, job["message"])


def _worker(worker: Json) -> tuple[str, ...]:
    numbers = (str(worker[name]) for name in ("slots", "usable", "free"))
    return (worker["id"], worker["device"], *numbers, _trouble(worker))


def _trouble(worker: Json) -> str:
    if worker["silent"]:
        return f"not heard of for {duration(time.time() - worker['last_seen'])}"
    return "takes no work" if worker["draining"] else ""
