"""The first tables, and the clock that leases are compared with."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.execute("CREATE FUNCTION dpo_now() RETURNS timestamptz LANGUAGE sql VOLATILE AS 'SELECT clock_timestamp()'")
    _projects()
    _workers()
    _removals()
    _api_keys()
    _files()
    _models()
    _jobs()
    _attempts()
    _checkpoints()
    _events()
    _idempotency_keys()
    _metrics()


def downgrade() -> None:
    for table in (
        "metrics",
        "idempotency_keys",
        "events",
        "checkpoints",
        "attempts",
        "jobs",
        "models",
        "files",
        "api_keys",
        "removals",
        "workers",
        "projects",
    ):
        op.drop_table(table)
    op.execute("DROP FUNCTION dpo_now()")


def _created_at() -> sa.Column[datetime]:
    return sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("dpo_now()"), nullable=False)


def _project_id(table: str) -> sa.Column[str]:
    project = sa.ForeignKey("projects.id", name=f"fk_{table}_project_id")
    return sa.Column("project_id", sa.Text(), project, nullable=False)


def _projects() -> None:
    op.create_table(
        "projects",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        _created_at(),
        sa.PrimaryKeyConstraint("id", name="pk_projects"),
        sa.UniqueConstraint("name", name="uq_projects_name"),
    )


def _workers() -> None:
    op.create_table(
        "workers",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("hostname", sa.Text(), nullable=False),
        sa.Column("pid", sa.BigInteger(), nullable=False),
        sa.Column("device", sa.Text(), nullable=False),
        sa.Column("slots", sa.BigInteger(), nullable=False),
        sa.Column("last_seen", sa.DateTime(timezone=True), server_default=sa.text("dpo_now()"), nullable=False),
        sa.Column("left_at", sa.DateTime(timezone=True)),
        _created_at(),
        sa.PrimaryKeyConstraint("id", name="pk_workers"),
    )


def _removals() -> None:
    op.create_table(
        "removals",
        sa.Column("prefix", sa.Text(), nullable=False),
        _created_at(),
        sa.PrimaryKeyConstraint("prefix", name="pk_removals"),
    )


def _api_keys() -> None:
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Text(), nullable=False),
        _project_id("api_keys"),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("hint", sa.Text(), nullable=False),
        sa.Column("hash", sa.Text(), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True)),
        _created_at(),
        sa.PrimaryKeyConstraint("id", name="pk_api_keys"),
        sa.UniqueConstraint("hash", name="uq_api_keys_hash"),
    )


def _files() -> None:
    op.create_table(
        "files",
        sa.Column("id", sa.Text(), nullable=False),
        _project_id("files"),
        sa.Column("filename", sa.Text(), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("storage_key", sa.Text(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("status_details", sa.Text()),
        _created_at(),
        sa.PrimaryKeyConstraint("id", name="pk_files"),
    )
    op.create_index("ix_files_project_id_id", "files", ["project_id", "id"])


def _models() -> None:
    op.create_table(
        "models",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text()),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("form", sa.Text(), nullable=False),
        sa.Column("base_id", sa.Text()),
        sa.Column("path", sa.Text()),
        sa.Column("storage_prefix", sa.Text()),
        sa.Column("job_id", sa.Text()),
        sa.Column("step", sa.BigInteger()),
        sa.Column("deleted_at", sa.DateTime(timezone=True)),
        sa.Column("facts", postgresql.JSONB(), server_default="{}", nullable=False),
        _created_at(),
        sa.ForeignKeyConstraint(["base_id"], ["models.id"], name="fk_models_base_id"),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_models_project_id"),
        sa.PrimaryKeyConstraint("id", name="pk_models"),
    )
    op.create_index("ix_models_project_id_created_at", "models", ["project_id", "created_at"])


def _jobs() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.Text(), nullable=False),
        _project_id("jobs"),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("priority", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("method", sa.Text(), nullable=False),
        sa.Column("model_id", sa.Text(), nullable=False),
        sa.Column("training_file_id", sa.Text(), nullable=False),
        sa.Column("validation_file_id", sa.Text()),
        sa.Column("gpus", sa.BigInteger(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("suffix", sa.Text()),
        sa.Column("user_metadata", postgresql.JSONB()),
        sa.Column("request", postgresql.JSONB(), nullable=False),
        sa.Column("training", postgresql.JSONB(), nullable=False),
        sa.Column("resolved", postgresql.JSONB()),
        sa.Column("result_name", sa.Text(), nullable=False),
        sa.Column("progress", postgresql.JSONB(), server_default="{}", nullable=False),
        sa.Column("error", postgresql.JSONB()),
        sa.Column("fruitless_attempts", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("trained_tokens", sa.BigInteger()),
        sa.Column("started_at", sa.DateTime(timezone=True)),
        sa.Column("finished_at", sa.DateTime(timezone=True)),
        _created_at(),
        sa.Column("fence", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("lease_until", sa.DateTime(timezone=True)),
        sa.Column("worker_id", sa.Text()),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name="fk_jobs_model_id"),
        sa.PrimaryKeyConstraint("id", name="pk_jobs"),
        sa.UniqueConstraint("result_name", name="uq_jobs_result_name"),
    )
    op.create_index("ix_jobs_project_id_id", "jobs", ["project_id", "id"])
    op.create_index("ix_jobs_state_priority_created_at", "jobs", ["state", "priority", "created_at"])


def _attempts() -> None:
    op.create_table(
        "attempts",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        _project_id("attempts"),
        sa.Column("worker_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), server_default=sa.text("dpo_now()"), nullable=False),
        sa.Column("ended_at", sa.DateTime(timezone=True)),
        sa.Column("outcome", sa.Text()),
        sa.Column("made_progress", sa.Boolean(), server_default="false", nullable=False),
        sa.Column("error", postgresql.JSONB()),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_attempts_job_id"),
        sa.PrimaryKeyConstraint("job_id", "fence", name="pk_attempts"),
    )


def _checkpoints() -> None:
    op.create_table(
        "checkpoints",
        sa.Column("id", sa.Text(), nullable=False),
        _project_id("checkpoints"),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        sa.Column("model_id", sa.Text(), nullable=False),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("storage_prefix", sa.Text(), nullable=False),
        sa.Column("manifest", postgresql.JSONB(), nullable=False),
        sa.Column("state_kept", sa.Boolean(), server_default="true", nullable=False),
        _created_at(),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_checkpoints_job_id"),
        sa.ForeignKeyConstraint(["model_id"], ["models.id"], name="fk_checkpoints_model_id"),
        sa.PrimaryKeyConstraint("id", name="pk_checkpoints"),
        sa.UniqueConstraint("job_id", "step", name="uq_checkpoints_job_id_step"),
    )


def _events() -> None:
    op.create_table(
        "events",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("sequence", sa.BigInteger(), sa.Identity(always=True), nullable=False),
        _project_id("events"),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("level", sa.Text(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("code", sa.Text(), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("data", postgresql.JSONB(), server_default="{}", nullable=False),
        _created_at(),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_events_job_id"),
        sa.PrimaryKeyConstraint("id", name="pk_events"),
        sa.UniqueConstraint("sequence", name="uq_events_sequence"),
    )
    op.create_index("ix_events_job_id_sequence", "events", ["job_id", "sequence"])


def _idempotency_keys() -> None:
    op.create_table(
        "idempotency_keys",
        _project_id("idempotency_keys"),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("request_hash", sa.Text(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        _created_at(),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_idempotency_keys_job_id"),
        sa.PrimaryKeyConstraint("project_id", "key", name="pk_idempotency_keys"),
    )


def _metrics() -> None:
    op.create_table(
        "metrics",
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("split", sa.Text(), nullable=False),
        sa.Column("step", sa.BigInteger(), nullable=False),
        _project_id("metrics"),
        sa.Column("fence", sa.BigInteger(), nullable=False),
        sa.Column("values", postgresql.JSONB(), nullable=False),
        _created_at(),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_metrics_job_id"),
        sa.PrimaryKeyConstraint("job_id", "split", "step", name="pk_metrics"),
    )
