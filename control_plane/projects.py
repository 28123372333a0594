"""Projects: whom keys, files, models and jobs belong to. A project's name is the first half of its models' ids."""

from __future__ import annotations

import re
from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from control_plane import audit
from control_plane.errors import InvalidRequest, NotFound
from control_plane.ids import new_id
from control_plane.quotas import Limits
from control_plane.tables import Project
from control_plane.validation import nearest

BASE = "base"
"""The namespace of base models; no project may take it."""

LONGEST_NAME = 40
"""Leaves room in a model's id (96 characters for the Hub) for what tells one job's results from another's."""

# What the Hub's clients accept on either side of a model id's slash.
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?")


def ensure(session: Session, name: str) -> Project:
    """The project of that name, made if it isn't there. Raises InvalidRequest for a name that can't be one."""
    require_hub_name(name, "project name", "name")
    if name == BASE:
        raise InvalidRequest(f"{BASE!r} is the namespace of base models; choose another project name.", param="name")
    if len(name) > LONGEST_NAME:
        raise InvalidRequest(
            f"The project name {name!r} has {len(name)} characters; its models' ids have room for {LONGEST_NAME}.",
            param="name",
        )
    made = insert(Project).values(id=new_id("proj"), name=name).on_conflict_do_nothing(index_elements=["name"])
    project_id = session.scalar(made.returning(Project.id))
    if project_id is not None:
        audit.record(session, project_id, "project.created", project_id)
    return session.scalars(select(Project).where(Project.name == name)).one()


def named(session: Session, name: str) -> Project:
    """The project of that name. Raises NotFound, which names the one most like it."""
    project = session.scalars(select(Project).where(Project.name == name)).one_or_none()
    if project is None:
        like = nearest(name, session.scalars(select(Project.name)))
        raise NotFound(
            f"There is no project {name!r}.{like} `dpo projects list` shows them; "
            f"`dpo projects create {name}` makes it.",
            param="project",
        )
    return project


def list_projects(session: Session) -> Sequence[Project]:
    """All of them, by name."""
    return session.scalars(select(Project).order_by(Project.name)).all()


def set_limits(session: Session, project: Project, limits: Limits) -> None:
    """The project's own limits; None stands for the settings'."""
    project.max_bytes, project.max_waiting_jobs, project.max_gpus = limits.bytes, limits.waiting_jobs, limits.gpus
    audit.record(session, project.id, "project.limits_changed", project.id)


def require_hub_name(name: str, what: str, param: str) -> None:
    """Refuses names that the Hub's clients would: they are half of a model id."""
    if not _NAME.fullmatch(name) or "--" in name or ".." in name or name.endswith(".git"):
        raise InvalidRequest(
            f"{name!r} is no {what}: use 1 to 96 letters, digits, '.', '_' and '-', "
            "with a letter or digit first and last, no '--', no '..' and no '.git' at the end.",
            param=param,
        )
