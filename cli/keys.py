"""`dpo keys`: make, list and revoke API keys."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from cli.options import PROJECT, DataOption
from cli.tables import show
from cli.words import moment
from control_plane.scopes import USUAL, Scope

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from control_plane.tables import ApiKey

ProjectOption = Annotated[str, typer.Option("--project", help="Whose key it is.")]
app = typer.Typer(help="API keys: made here, shown once, stored hashed.", no_args_is_help=True)

_UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}


def duration(text: str) -> timedelta:
    """`12h`, `90d` or `4w`. Raises BadParameter."""
    found = re.fullmatch(r"([1-9][0-9]{0,4})([hdw])", text)
    if found is None:
        raise typer.BadParameter(f"{text!r} is no time; give hours, days or weeks, as 12h, 90d or 4w")
    return int(found[1]) * _UNITS[found[2]]


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="What to recognise the key by.")],
    *,
    project: ProjectOption = PROJECT,
    scope: Annotated[
        list[Scope] | None,
        typer.Option(help="What it may do; as often as needed.", show_default="all but admin"),
    ] = None,
    expires: Annotated[
        timedelta | None,
        typer.Option(parser=duration, metavar="90d", help="Refuse it after so long.", show_default="never"),
    ] = None,
    requests_per_minute: Annotated[
        int | None, typer.Option(min=1, help="Its own limit.", show_default="DPO_REQUESTS_PER_MINUTE")
    ] = None,
    data: DataOption = None,
) -> None:
    """Make a key and print it: the only time it can be read."""
    from cli.connection import transaction
    from control_plane import keys

    with transaction(data) as session:
        _, secret = keys.create(
            session,
            _project_id(session, project),
            name,
            scopes=scope or USUAL,
            expires_in=expires,
            requests_per_minute=requests_per_minute,
        )
    typer.echo(secret)


@app.command("list")
def list_(project: ProjectOption = PROJECT, data: DataOption = None) -> None:
    """List the project's keys, revoked and expired ones too."""
    from cli.connection import transaction
    from control_plane import keys

    with transaction(data) as session:
        found = keys.list_keys(session, _project_id(session, project))
    show(
        ("id", "name", "begins with", "scopes", "made", "used", "expires", "state"),
        [
            (
                key.id,
                key.name,
                key.hint,
                ",".join(key.scopes),
                moment(key.created_at),
                moment(key.last_used_at),
                moment(key.expires_at),
                _state(key, valid),
            )
            for key, valid in found
        ],
    )


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="The id that `dpo keys list` shows.")],
    project: ProjectOption = PROJECT,
    data: DataOption = None,
) -> None:
    """Refuse a key from the next request on."""
    from cli.connection import transaction
    from control_plane import keys

    with transaction(data) as session:
        key = keys.revoke(session, _project_id(session, project), key_id)
    typer.echo(f"revoked {key.id} ({key.name})")


def _project_id(session: Session, name: str) -> str:
    """Raises NotFound; the project of a new installation's first key is made."""
    from control_plane import projects

    return (projects.ensure if name == PROJECT else projects.named)(session, name).id


def _state(key: ApiKey, valid: bool) -> str:
    if key.revoked_at is not None:
        return "revoked"
    return "valid" if valid else "expired"
