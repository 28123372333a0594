"""`dpo projects`: make, list, limit and delete projects. `dpo audit`: who changed what."""

from __future__ import annotations

import re
from typing import Annotated

import typer

from cli.options import DataOption
from cli.tables import show
from cli.words import moment

app = typer.Typer(help="Projects: what belongs to one is not seen from another.", no_args_is_help=True)

_UNITS = {"": 1, "M": 1024**2, "G": 1024**3, "T": 1024**4}


def size(text: str) -> int:
    """Bytes, as `500M`, `200G` or `2T`. Raises BadParameter."""
    found = re.fullmatch(r"([0-9]{1,15})([MGT]?)", text)
    if found is None:
        raise typer.BadParameter(f"{text!r} is no size; give bytes, or 500M, 200G, 2T")
    return int(found[1]) * _UNITS[found[2]]


NameArgument = Annotated[str, typer.Argument(help="The first half of its models' ids.")]
MaxBytes = Annotated[
    int | None,
    typer.Option(parser=size, metavar="200G", help="Of files and weights.", show_default="DPO_PROJECT_BYTES"),
]
MaxWaiting = Annotated[
    int | None, typer.Option(min=0, help="Jobs that may wait.", show_default="DPO_PROJECT_WAITING_JOBS")
]
MaxGpus = Annotated[int | None, typer.Option(min=1, help="GPUs at once.", show_default="DPO_PROJECT_GPUS")]


@app.command()
def create(
    name: NameArgument,
    *,
    max_bytes: MaxBytes = None,
    max_waiting_jobs: MaxWaiting = None,
    max_gpus: MaxGpus = None,
    data: DataOption = None,
) -> None:
    """Make a project; of one that is there already, change the limits."""
    from cli.connection import transaction
    from control_plane import projects
    from control_plane.quotas import Limits

    with transaction(data) as session:
        project = projects.ensure(session, name)
        projects.set_limits(session, project, Limits(max_bytes, max_waiting_jobs, max_gpus))
    typer.echo(f"{project.name} ({project.id})")


@app.command("list")
def list_(data: DataOption = None) -> None:
    """List projects: what each has, and its own limits."""
    from cli.connection import transaction
    from control_plane import projects, quotas

    with transaction(data) as session:
        found = [(project, quotas.usage(session, project.id)) for project in projects.list_projects(session)]
    show(
        ("name", "id", "bytes", "of", "waiting jobs", "of", "GPUs", "of"),
        [
            (
                project.name,
                project.id,
                f"{usage.bytes:,}",
                _limit(project.max_bytes),
                str(usage.waiting_jobs),
                _limit(project.max_waiting_jobs),
                str(usage.gpus),
                _limit(project.max_gpus),
            )
            for project, usage in found
        ],
    )


@app.command()
def delete(
    name: NameArgument,
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
    data: DataOption = None,
) -> None:
    """Delete a project: its keys, files, jobs, models and all that was made of them. Nothing brings it back."""
    from cli.connection import transaction
    from control_plane.project_removal import delete_project

    if not yes:
        typer.confirm(f"Delete the project {name} with all of its files, jobs and models?", abort=True)
    with transaction(data) as session:
        project = delete_project(session, name)
    typer.echo(f"deleted {project.name} ({project.id}); a worker removes its bytes from storage within a minute")


def audit(
    project: Annotated[str | None, typer.Option(help="Only this one's.", show_default="all")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100, help="So many of the newest.")] = 20,
    after: Annotated[str | None, typer.Option(help="Those before the entry of this id.")] = None,
    data: DataOption = None,
) -> None:
    """Show who changed what, newest first. A project may be named by its id, which outlives it."""
    from cli.connection import transaction
    from control_plane import audit as audit_log
    from control_plane import projects

    with transaction(data) as session:
        project_id = project
        if project is not None and not project.startswith("proj-"):
            project_id = projects.named(session, project).id
        page = audit_log.entries(session, project_id, after=after, limit=limit)
    show(
        ("id", "when", "who", "what", "of what", "project", "request"),
        [
            (
                entry.id,
                moment(entry.created_at),
                entry.actor,
                entry.action,
                entry.target,
                entry.project_id or "-",
                entry.request_id or "-",
            )
            for entry in page.items
        ],
    )


def _limit(limit: int | None) -> str:
    return "-" if limit is None else f"{limit:,}"
