"""Sweeps as their owners see them: create, read, cancel, and promote one of their jobs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from control_plane import audit, events, jobs, models, quotas
from control_plane.errors import Conflict, InvalidRequest, NotFound
from control_plane.ids import new_id
from control_plane.job_states import FINAL, State
from control_plane.jobs import SweepPlace
from control_plane.pages import Page, paginate
from control_plane.quotas import Limits
from control_plane.repetition import Repeatable, find_earlier, remember
from control_plane.result_names import result_name
from control_plane.sweep_requests import SweepRequest, naming
from control_plane.sweep_results import best_of, candidates, results
from control_plane.tables import Job, Model, Project, Sweep


def create(
    session: Session,
    project_id: str,
    request: SweepRequest,
    *,
    repeatable: Repeatable | None = None,
    limits: Limits = quotas.NONE,
) -> Sweep:
    """A new sweep with all of its jobs, or the one that this same request made before. Send a hint after the commit.

    InvalidRequest says what is wrong, in which field and for which combination; QuotaExceeded what the project has too
    many of. Nothing is made then.
    """
    repeatable = repeatable or Repeatable()
    earlier = find_earlier(session, project_id, request.body, repeatable)
    if earlier is not None:
        return session.get_one(Sweep, session.get_one(Job, earlier).sweep_id)
    first = request.combinations[0].request
    gpus = max(combination.request.resources.gpus for combination in request.combinations)
    quotas.require_places(session, project_id, len(request.combinations), gpus, limits)
    sweep_id = new_id("ftsweep")
    project = session.get_one(Project, project_id)
    name = result_name(project.name, first.model, first.suffix or "sweep", sweep_id)
    axes = [{"field": field, "values": values} for field, values in request.axes.items()]
    sweep = Sweep(id=sweep_id, project_id=project_id, axes=axes, result_name=name)
    session.add(sweep)
    session.flush()
    session.refresh(sweep)
    made = []
    for number, combination in enumerate(request.combinations):
        with naming(combination.values):
            made.append(jobs.add(session, project_id, combination.request, SweepPlace(sweep_id, number)))
    _tell_who_leads(session, sweep, made)
    audit.record(session, project_id, "sweep.created", sweep_id)
    remember(session, project_id, request.body, repeatable, made[0])
    return sweep


def get(session: Session, project_id: str, sweep_id: str) -> Sweep:
    """The project's sweep. NotFound."""
    mine = select(Sweep).where(Sweep.project_id == project_id, Sweep.id == sweep_id)
    sweep = session.scalars(mine).one_or_none()
    if sweep is None:
        raise NotFound(f"There is no sweep {sweep_id!r} in this project.", param="sweep_id")
    return sweep


def list_sweeps(session: Session, project_id: str, *, after: str | None = None, limit: int = 20) -> Page[Sweep]:
    """The project's sweeps, newest first."""
    mine = select(Sweep).where(Sweep.project_id == project_id)
    return paginate(session, mine, item_id=Sweep.id, order=(Sweep.id,), after=after, limit=limit)


def jobs_of(session: Session, sweep: Sweep) -> Sequence[Job]:
    """All of them, in the order of the grid."""
    return session.scalars(select(Job).where(Job.sweep_id == sweep.id).order_by(Job.sweep_place)).all()


def list_jobs(
    session: Session, project_id: str, sweep_id: str, *, after: str | None = None, limit: int = 20
) -> Page[Job]:
    """The sweep's jobs in the order of the grid."""
    sweep = get(session, project_id, sweep_id)
    query = select(Job).where(Job.sweep_id == sweep.id)
    order = (Job.sweep_place,)
    return paginate(session, query, item_id=Job.id, order=order, after=after, limit=limit, newest_first=False)


def states(session: Session, sweeps: Iterable[Sweep]) -> dict[str, Counter[State]]:
    """How many jobs of each sweep are in which state, by the sweep's id."""
    counts: dict[str, Counter[State]] = {sweep.id: Counter() for sweep in sweeps}
    query = select(Job.sweep_id, Job.state, func.count()).where(Job.sweep_id.in_(counts))
    for sweep_id, state, count in session.execute(query.group_by(Job.sweep_id, Job.state)):
        counts[str(sweep_id)][State(state)] = count
    return counts


def cancel(session: Session, project_id: str, sweep_id: str, *, repeated: bool = False) -> Sweep:
    """Cancels every job that is not over yet. Conflict when all are, unless one is cancelled and the order may be
    `repeated`."""
    sweep = get(session, project_id, sweep_id)
    # All rows are locked at once and in the order in which `models.give_name` does: nobody waits for each other.
    rows = select(Job).where(Job.sweep_id == sweep.id).order_by(Job.id).with_for_update()
    found = session.scalars(rows).all()
    unfinished = [job for job in found if State(job.state) not in FINAL]
    if not unfinished and repeated and any(job.state == State.cancelled for job in found):
        return sweep
    if not unfinished:
        raise Conflict(f"All jobs of {sweep_id} are over already; there is nothing to cancel.", code="illegal_move")
    audit.record(session, project_id, "sweep.cancelled", sweep_id)
    for job in unfinished:
        jobs.cancel(session, project_id, job.id)
    return sweep


def promote(session: Session, project_id: str, sweep_id: str, job_id: str | None = None) -> Model:
    """Makes the model `sweep.result_name` of a job that succeeded; by default the best, once all jobs are over.

    It is the job's best checkpoint by validation where it has one, else its last. Promoted again, the name stands for
    the other job's; the same promotion again changes nothing. NotFound, Conflict, and InvalidRequest for a job that is
    not one of the sweep's.
    """
    sweep = get(session, project_id, sweep_id)
    job = _best_job(session, sweep) if job_id is None else _job_of(session, sweep, job_id)
    if job.state != State.succeeded:
        raise Conflict(f"Job {job.id} is {job.state}; only a job that succeeded can be promoted.", code="not_succeeded")
    model, changed = models.give_name(session, sweep.result_name, job, candidates(job))
    if changed:
        audit.record(session, project_id, "sweep.promoted", sweep_id)
        message = f"Promoted in its sweep: {model.id} is this job's checkpoint at step {model.step}."
        events.add(session, job, code="promoted", message=message, data={"model": model.id, "step": model.step})
    return model


def _best_job(session: Session, sweep: Sweep) -> Job:
    found = jobs_of(session, sweep)
    unfinished = [job.id for job in found if State(job.state) not in FINAL]
    if unfinished:
        raise Conflict(
            f"{len(unfinished)} jobs of {sweep.id} are not over yet, so which is best can't be said; "
            "name the `job` to promote, or wait.",
            param="job",
            code="sweep_not_finished",
        )
    best = best_of(results(session, sweep, found))
    if best is None:
        raise Conflict(
            f"No job of {sweep.id} succeeded with a measurement on validation data, so none is best; "
            "name the `job` to promote.",
            param="job",
            code="no_best_job",
        )
    return next(job for job in found if job.id == best.job_id)


def _job_of(session: Session, sweep: Sweep, job_id: str) -> Job:
    job = session.scalars(select(Job).where(Job.sweep_id == sweep.id, Job.id == job_id)).one_or_none()
    if job is None:
        raise InvalidRequest(f"{job_id!r} is no job of the sweep {sweep.id}.", param="job", code="job_not_found")
    return job


def _tell_who_leads(session: Session, sweep: Sweep, made: Sequence[Job]) -> None:
    first = made[0]
    shared = "its files are read and its reference is measured before theirs, which then have less to do."
    for number, job in enumerate(made, start=1):
        message = f"Job {number} of {len(made)} of the sweep {sweep.id}"
        if job is first:
            message += f"; it leads: {shared}" if len(made) > 1 else "."
        else:
            message += f"; {first.id} leads: {shared}"
        events.add(session, job, code="sweep_job", message=message, data={"sweep": sweep.id, "leader": first.id})
