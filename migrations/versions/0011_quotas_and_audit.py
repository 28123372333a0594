"""A project's own limits, the bytes of a checkpoint's weights, and the audit log."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"

LIMITS = ("max_bytes", "max_waiting_jobs", "max_gpus")


def upgrade() -> None:
    for name in LIMITS:
        op.add_column("projects", sa.Column(name, sa.BigInteger(), nullable=True))
    op.add_column("models", sa.Column("bytes", sa.BigInteger(), nullable=True))
    op.execute(
        """
        UPDATE models SET bytes = (
            SELECT sum((file ->> 'bytes')::bigint)
            FROM checkpoints, jsonb_array_elements(checkpoints.manifest -> 'files') AS file
            WHERE checkpoints.storage_prefix = models.storage_prefix AND file ->> 'path' LIKE 'model/%'
        ) WHERE storage_prefix IS NOT NULL
        """
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("dpo_now()"), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=True),
        sa.Column("actor", sa.Text(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=True),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("target", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit")),
    )
    op.create_index(op.f("ix_audit_project_id_id"), "audit", ["project_id", "id"])


def downgrade() -> None:
    op.drop_table("audit")
    op.drop_column("models", "bytes")
    for name in LIMITS:
        op.drop_column("projects", name)
