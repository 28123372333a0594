"""Every table. What belongs to somebody carries `project_id`; what is worked on carries a lease."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Computed,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    MetaData,
    Text,
    UniqueConstraint,
    func,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, column_property, mapped_column

from control_plane.database import dpo_now
from control_plane.sweep_order import waits_for

Json = dict[str, Any]


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy's own spelling
        str: Text,
        int: BigInteger,
        datetime: DateTime(timezone=True),
        Json: JSONB,
        list[str]: JSONB,
        list[int]: JSONB,
        list[Json]: JSONB,
    }


class Created:
    created_at: Mapped[datetime] = mapped_column(server_default=dpo_now())


class Leased:
    """A claim raises `fence` and sets `lease_until`; only PostgreSQL's clock writes and compares it."""

    id: Mapped[str] = mapped_column(primary_key=True)
    fence: Mapped[int] = mapped_column(server_default="0")
    lease_until: Mapped[datetime | None]
    worker_id: Mapped[str | None]


class Project(Created, Base):
    __tablename__ = "projects"

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    max_bytes: Mapped[int | None]
    """Its own limits; None: the settings' (control_plane/quotas.py)."""
    max_waiting_jobs: Mapped[int | None]
    max_gpus: Mapped[int | None]


class ApiKey(Created, Base):
    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str]
    hint: Mapped[str]
    """The first characters, to recognise a key by; the key itself is never stored."""
    hash: Mapped[str] = mapped_column(unique=True)
    scopes: Mapped[list[str]]
    """`control_plane.scopes.Scope`."""
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]
    """To the minute."""
    requests_per_minute: Mapped[int | None]
    """None: the setting's."""


class File(Created, Base):
    __tablename__ = "files"
    __table_args__ = (
        Index(None, "project_id", "id"),
        Index(None, "expires_at", postgresql_where=text("expires_at IS NOT NULL")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    filename: Mapped[str]
    purpose: Mapped[str]
    bytes: Mapped[int]
    sha256: Mapped[str]
    storage_key: Mapped[str]
    status: Mapped[str]
    status_details: Mapped[str | None]
    expires_at: Mapped[datetime | None] = mapped_column()
    """From then on it is not there any more; None for one that stays."""


class Upload(Created, Base):
    """A file that is being sent in parts: see control_plane/uploads.py."""

    __tablename__ = "uploads"
    __table_args__ = (Index(None, "expires_at", postgresql_where=text("status = 'pending'")),)

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    filename: Mapped[str]
    purpose: Mapped[str]
    bytes: Mapped[int]
    """Of the whole file, as was said at the beginning."""
    file_expires_after: Mapped[Json | None]
    status: Mapped[str]
    """pending, completed, cancelled or expired."""
    expires_at: Mapped[datetime] = mapped_column()
    part_ids: Mapped[list[str] | None]
    """Which parts it was completed with, in their order; a repetition of that is known by them."""
    file_id: Mapped[str | None]
    """What it became; the file may be deleted since."""


class UploadPart(Created, Base):
    """Bytes of an upload that isn't over."""

    __tablename__ = "upload_parts"
    __table_args__ = (Index(None, "upload_id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    upload_id: Mapped[str] = mapped_column(ForeignKey("uploads.id"))
    bytes: Mapped[int]


class Model(Created, Base):
    """A base model that the operator registered, or a job's checkpoint. `id` is `{project}/{name}`."""

    __tablename__ = "models"
    __table_args__ = (Index(None, "project_id", "created_at"), Index(None, "job_id"))

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str | None] = mapped_column(ForeignKey("projects.id"))
    """None for a base model: every project may start from it."""
    kind: Mapped[str]
    """base, or checkpoint (of a job)."""
    form: Mapped[str]
    """full, or adapter."""
    base_id: Mapped[str | None] = mapped_column(ForeignKey("models.id"))
    """An adapter's full model."""
    path: Mapped[str | None]
    """A base model's folder, used in place."""
    storage_prefix: Mapped[str | None]
    """A checkpoint's files in storage."""
    bytes: Mapped[int | None]
    """Of those files."""
    job_id: Mapped[str | None]
    step: Mapped[int | None]
    facts: Mapped[Json] = mapped_column(server_default="{}")
    """What was read off the folder: architecture, parameters, context length, chat template."""
    files: Mapped[list[Json] | None]
    """path, size and sha256 of each file that is served: see model_files.py."""
    commit: Mapped[str | None]
    """40 hexadecimal digits that stand for the content of all of them."""
    deleted_at: Mapped[datetime | None]
    """The row stays, because finished jobs name it; nothing shows it any more."""


class Attempt(Base):
    """One claim of a job: who worked on it under which fence, and how that ended."""

    __tablename__ = "attempts"
    __table_args__ = (Index(None, "project_id", "kind", "started_at"),)

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    fence: Mapped[int] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    worker_id: Mapped[str]
    kind: Mapped[str]
    """validate or train."""
    started_at: Mapped[datetime] = mapped_column(server_default=dpo_now())
    ended_at: Mapped[datetime | None]
    outcome: Mapped[str | None]
    """succeeded, stopped, failed, cancelled, or lost (its lease ran out)."""
    made_progress: Mapped[bool] = mapped_column(server_default="false")
    """Whether it published a checkpoint at a step that no attempt before it had published."""
    error: Mapped[Json | None]
    events_relayed: Mapped[int] = mapped_column(BigInteger, server_default="0")
    """Bytes of its events.jsonl whose events are stored, so that none is stored twice."""


class Sweep(Created, Base):
    """One request for many jobs, which differ in the training fields that were given as lists."""

    __tablename__ = "sweeps"
    __table_args__ = (Index(None, "project_id", "id"), UniqueConstraint("result_name"))

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    axes: Mapped[list[Json]]
    """`field` and `values` of each; the last one varies fastest from job to job."""
    result_name: Mapped[str]
    """The model id of the job that is promoted."""


class Job(Created, Leased, Base):
    __tablename__ = "jobs"
    __table_args__ = (
        Index(None, "project_id", "id"),
        Index(None, "state", "priority", "created_at"),
        Index(
            "ix_jobs_line",
            "priority",
            "project_id",
            "needs",
            "created_at",
            "id",
            postgresql_where=text("needs IS NOT NULL"),
        ),
        Index(None, "lease_until", postgresql_where=text("lease_until IS NOT NULL")),
        Index(None, "sweep_id", "sweep_place"),
        Index(None, "result_file_id", postgresql_where=text("result_file_id IS NOT NULL")),
        Index(None, "user_metadata", postgresql_using="gin", postgresql_ops={"user_metadata": "jsonb_path_ops"}),
        UniqueConstraint("result_name"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    state: Mapped[str] = mapped_column()
    priority: Mapped[int] = mapped_column(server_default="0")
    """-1 low, 0 normal, 1 high."""
    preemptible: Mapped[bool] = mapped_column(server_default="false")
    """Whether it may be told to make room for a job of high priority."""
    method: Mapped[str]
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"))
    training_file_id: Mapped[str]
    training_files: Mapped[list[Json] | None]
    """All training files as `id` and `weight`, in the user's order, where there are several; `training_file_id` is
    one of them. A list, because JSONB keeps no order of an object's keys, and rows are trained on in that of the files.
    """
    validation_file_id: Mapped[str | None]
    gpus: Mapped[int]
    needs: Mapped[int | None] = mapped_column(
        Computed(
            # In PostgreSQL's own words for it, so that a test can compare the two.
            "CASE WHEN lease_until IS NULL THEN CASE state WHEN 'validating'::text THEN 0::bigint "
            "WHEN 'queued'::text THEN gpus ELSE NULL::bigint END ELSE NULL::bigint END",
            persisted=True,
        )
    )
    """Slots that a worker must have free to take it now; None while it is not for any worker to take."""
    seed: Mapped[int]
    suffix: Mapped[str | None]
    user_metadata: Mapped[Json | None]
    request: Mapped[Json]
    """The request's own `method`, `training` and `resources` objects, to show them back."""
    training: Mapped[Json]
    """dpo_core's TrainingSpec as asked for, with "auto" where the user left the choice."""
    resolved: Mapped[Json | None]
    """What validation chose: dpo_core.prepare's `prepared.json`."""
    reference_group: Mapped[str | None] = mapped_column()
    """Which cached log-probabilities are of its reference, out of `resolved`."""
    reference_measured: Mapped[bool] = mapped_column(server_default="false")
    """Whether all that it needs of them were brought into storage."""
    result_name: Mapped[str]
    """The model id the job will publish; `-step-N` is added for a checkpoint."""
    progress: Mapped[Json] = mapped_column(server_default="{}")
    """step, total_steps, and when they were reported."""
    error: Mapped[Json | None]
    """code, message, param, line, kind."""
    fruitless_attempts: Mapped[int] = mapped_column(server_default="0")
    """Attempts in a row that ended without a new checkpoint; bounded by the setting max_attempts."""
    not_before: Mapped[datetime | None]
    """While it waits after such an attempt: no worker takes it earlier, by PostgreSQL's clock."""
    yields_to: Mapped[str | None]
    """The job that its attempt makes room for; its worker hears of it with its next heartbeat."""
    needs_bytes: Mapped[int | None] = mapped_column(BigInteger)
    """Room on a worker's disk that it waits for, untaken until one has it: see control_plane/room.py."""
    best: Mapped[Json | None]
    """step, metric and value of the best evaluation among its checkpoints (`dpo_core.best.Best`)."""
    trained_tokens: Mapped[int | None]
    result_file_id: Mapped[str | None] = mapped_column(ForeignKey("files.id", ondelete="SET NULL"))
    """The file of its measurements, until somebody deletes it: see control_plane/result_files.py."""
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    sweep_id: Mapped[str | None] = mapped_column(ForeignKey("sweeps.id"))
    sweep_place: Mapped[int | None] = mapped_column()
    """0 for the sweep's first job."""
    training_attempts: Mapped[int] = column_property(
        select(func.count())
        .where(Attempt.job_id == id, Attempt.kind == "train")
        .correlate_except(Attempt)
        .scalar_subquery()
    )
    """How often it was claimed to be trained, as PostgreSQL counts them; the fence counts every claim and cancel."""
    waits_for: Mapped[str | None] = column_property(
        waits_for(sweep_id=sweep_id, sweep_place=sweep_place, state=state, reference_group=reference_group)
    )
    """The job of its sweep that it can't be claimed before, as PostgreSQL sees it: see sweep_order.py."""


class Check(Created, Leased, Base):
    """A question about data that a worker answers without a GPU, asked once: see control_plane/checks.py."""

    __tablename__ = "checks"
    __table_args__ = (
        UniqueConstraint("project_id", "digest"),
        Index(None, "state", "created_at"),
        Index(None, "about", postgresql_using="gin"),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    kind: Mapped[str]
    """file, model_file, preview, estimate; or merge, which is an order (merges.py)."""
    digest: Mapped[str]
    """Of everything that the answer depends on."""
    about: Mapped[list[str]]
    """The files and models that the question names; with any of them the check goes."""
    question: Mapped[Json]
    state: Mapped[str]
    """waiting, running, done or failed."""
    result: Mapped[Json | None]
    """The answer, as `dpo_core.check` wrote it."""
    error: Mapped[Json | None]
    """code, message, param, line, kind."""
    fruitless_attempts: Mapped[int] = mapped_column(server_default="0")
    finished_at: Mapped[datetime | None]


class Event(Created, Base):
    __tablename__ = "events"
    __table_args__ = (Index(None, "job_id", "sequence"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    sequence: Mapped[int] = mapped_column(Identity(always=True), unique=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    level: Mapped[str]
    type: Mapped[str]
    """message or metrics, as OpenAI has it."""
    code: Mapped[str]
    message: Mapped[str]
    data: Mapped[Json] = mapped_column(server_default="{}")


class Metric(Created, Base):
    """One measurement. `step` counts the optimizer updates behind the weights that were measured."""

    __tablename__ = "metrics"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    split: Mapped[str] = mapped_column(primary_key=True)
    step: Mapped[int] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    fence: Mapped[int]
    values: Mapped[Json]


class Checkpoint(Created, Base):
    """A published checkpoint: its model, and the private state from which a next attempt goes on."""

    __tablename__ = "checkpoints"
    __table_args__ = (UniqueConstraint("job_id", "step"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    step: Mapped[int]
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"))
    fence: Mapped[int]
    storage_prefix: Mapped[str]
    manifest: Mapped[Json]
    state_kept: Mapped[bool] = mapped_column(server_default="true")
    """Whether the resume state is still in storage; the model always is."""


class ReferenceShard(Created, Base):
    """Measured reference log-probabilities in storage, for the project's later jobs: see reference_cache.py."""

    __tablename__ = "reference_shards"
    __table_args__ = (Index(None, "project_id", "reference_group"),)

    key: Mapped[str] = mapped_column(primary_key=True)
    """Of the object in storage."""
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    """The job that measured them: by it, what was measured of a file or under a model can be found."""
    group: Mapped[str] = mapped_column("reference_group")
    """The model, arithmetic and software that they were measured with, as one digest."""
    bytes: Mapped[int]
    sha256: Mapped[str]
    last_used_at: Mapped[datetime] = mapped_column(server_default=dpo_now())


class TokenTable(Created, Base):
    """Rendered and tokenized data in storage, for the project's later jobs: see token_cache.py."""

    __tablename__ = "token_tables"
    __table_args__ = (Index(None, "project_id", "content"),)

    key: Mapped[str] = mapped_column(primary_key=True)
    """Of the object in storage."""
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    """The job that made it."""
    content: Mapped[str]
    """A digest of the files, the tokenizer, the template and the rest that it depends on."""
    file_ids: Mapped[list[str]]
    """It goes when one of them does."""
    bytes: Mapped[int]
    sha256: Mapped[str]
    last_used_at: Mapped[datetime] = mapped_column(server_default=dpo_now())


class WebhookEndpoint(Created, Base):
    """Where a project wants to be told how its jobs end."""

    __tablename__ = "webhook_endpoints"
    __table_args__ = (Index(None, "project_id", "id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str]
    url: Mapped[str]
    event_types: Mapped[list[str]]
    secret: Mapped[str]
    """As it is, not hashed: deliveries are signed with it."""
    old_secrets: Mapped[list[Json]] = mapped_column(server_default="[]")
    """`secret` and `until`, the newest first: each signs beside the newest until then."""
    updated_at: Mapped[datetime]
    failing_since: Mapped[datetime | None]
    """The first failed try since the last delivery that arrived."""
    disabled_at: Mapped[datetime | None]
    disabled_reason: Mapped[str | None]


class WebhookDelivery(Created, Leased, Base):
    """One event on its way to one endpoint: see control_plane/deliveries.py."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        Index(None, "endpoint_id", "id"),
        Index(None, "next_try_at", postgresql_where=text("state = 'waiting'")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    endpoint_id: Mapped[str] = mapped_column(ForeignKey("webhook_endpoints.id"))
    job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"))
    """None for a test."""
    event_id: Mapped[str]
    """The same for all endpoints that get the event; the header webhook-id."""
    event_type: Mapped[str]
    payload: Mapped[str]
    """The body, byte for byte."""
    state: Mapped[str]
    """waiting, delivered or failed."""
    attempts: Mapped[int] = mapped_column(server_default="0")
    tries_now: Mapped[int] = mapped_column(server_default="0")
    """Attempts since the event, or since the last order to send it again: how long the next wait is."""
    next_try_at: Mapped[datetime | None] = mapped_column()
    retry_until: Mapped[datetime]
    tried_at: Mapped[datetime | None]
    status_code: Mapped[int | None]
    """Of the last answer; None where nothing answered."""
    error: Mapped[str | None]
    """Why the last try failed."""
    ended_at: Mapped[datetime | None]


class Removal(Created, Base):
    """Bytes in storage that no row needs, until they are gone or one does: see control_plane/removals.py."""

    __tablename__ = "removals"

    prefix: Mapped[str] = mapped_column(primary_key=True)
    not_before: Mapped[datetime] = mapped_column(server_default=dpo_now())
    expected: Mapped[bool] = mapped_column(server_default="false")
    """Noted before the bytes were stored: they go only if nothing stands for them by then."""


class AuditEntry(Created, Base):
    """A change that somebody made: see control_plane/audit.py. No foreign keys: it outlives what it tells of."""

    __tablename__ = "audit"
    __table_args__ = (Index(None, "project_id", "id"),)

    id: Mapped[str] = mapped_column(primary_key=True)
    project_id: Mapped[str | None]
    """None for what belongs to no project: base models."""
    actor: Mapped[str]
    """A key's id, or operator."""
    request_id: Mapped[str | None]
    action: Mapped[str]
    target: Mapped[str]


class Worker(Created, Base):
    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(primary_key=True)
    hostname: Mapped[str]
    pid: Mapped[int]
    device: Mapped[str]
    """cpu or cuda."""
    slots: Mapped[int]
    """GPUs, or CPU processes that stand for them."""
    usable: Mapped[int | None]
    """How many of them may be used now; None: all."""
    gpus: Mapped[list[str]] = mapped_column(server_default="[]")
    """Ids of its GPUs; none on a CPU."""
    out: Mapped[Json] = mapped_column(server_default="{}")
    """Ids of GPUs that must not be used, and why."""
    draining: Mapped[bool] = mapped_column(server_default="false")
    """Whether it takes no more work."""
    last_seen: Mapped[datetime] = mapped_column(server_default=dpo_now())
    left_at: Mapped[datetime | None]
    """When it said goodbye. The row stays: it tells which sizes of job this installation has had room for."""


class IdempotencyKey(Created, Base):
    """A create request that was answered: a repetition gets the same thing instead of a second one."""

    __tablename__ = "idempotency_keys"
    __table_args__ = (
        Index(None, "file_id", postgresql_where=text("file_id IS NOT NULL")),
        Index(None, "webhook_endpoint_id", postgresql_where=text("webhook_endpoint_id IS NOT NULL")),
    )

    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    """`key:` and the hash of the client's Idempotency-Key, or `retry:` and the hash of API key and body."""
    request_hash: Mapped[str]
    job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"))
    """One of these four is what it made."""
    file_id: Mapped[str | None] = mapped_column(ForeignKey("files.id", ondelete="CASCADE"))
    upload_id: Mapped[str | None] = mapped_column(ForeignKey("uploads.id"))
    webhook_endpoint_id: Mapped[str | None] = mapped_column(ForeignKey("webhook_endpoints.id", ondelete="CASCADE"))
