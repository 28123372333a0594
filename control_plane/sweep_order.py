"""Whom a job of a sweep waits for, so that what its jobs share is made once: the data's tokens, the reference's values.

The first job of a sweep leads: the others are validated once any of them was, and train once one of them has brought
all reference log-probabilities of their group into storage. A leader that ends or is paused leads no more; the next one
does. The earliest job that still goes on never waits, so that some job always can.

This is SQL for `Job.waits_for` (tables.py), which the claims read (leases.py). It imports no table of ours.
"""

from __future__ import annotations

from sqlalchemy import Boolean, ColumnElement, ScalarSelect, Text, and_, column, or_, select, table
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped

from control_plane.database import ONE

JOBS = table(
    "jobs",
    column("id", Text),
    column("state", Text),
    column("resolved", JSONB),
    column("sweep_id", Text),
    column("sweep_place"),
    column("reference_group", Text),
    column("reference_measured", Boolean),
)


def waits_for(
    *,
    sweep_id: Mapped[str | None],
    sweep_place: Mapped[int | None],
    state: Mapped[str],
    reference_group: Mapped[str | None],
) -> ScalarSelect[str]:
    """The id of the earliest job of its sweep that the job with these columns waits for, or NULL."""
    earlier, other = JOBS.alias("earlier"), JOBS.alias("other")

    def some_job(fact: ColumnElement[bool]) -> ColumnElement[bool]:
        return select(1).where(other.c.sweep_id == sweep_id, fact).correlate_except(other).exists()

    to_be_read = and_(
        state == "validating",
        earlier.c.state == "validating",
        ~some_job(other.c.resolved.is_not(None)),
    )
    # Which reference an earlier one has is not known before it is validated.
    may_measure_the_same = or_(
        earlier.c.state == "validating",
        and_(earlier.c.state.in_(("queued", "running")), earlier.c.reference_group == reference_group),
    )
    to_be_measured = and_(
        state == "queued",
        reference_group.is_not(None),
        may_measure_the_same,
        ~some_job(and_(other.c.reference_group == reference_group, other.c.reference_measured)),
    )
    query = select(earlier.c.id).where(
        earlier.c.sweep_id == sweep_id, earlier.c.sweep_place < sweep_place, or_(to_be_read, to_be_measured)
    )
    return query.order_by(earlier.c.sweep_place).limit(ONE).correlate_except(earlier, other).scalar_subquery()
