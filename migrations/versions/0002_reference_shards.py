"""Reference log-probabilities that a project's jobs share."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "reference_shards",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("reference_group", sa.Text(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("last_used_at", sa.DateTime(timezone=True), server_default=sa.text("dpo_now()"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("dpo_now()"), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_reference_shards_project_id"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_reference_shards_job_id"),
        sa.PrimaryKeyConstraint("key", name="pk_reference_shards"),
    )
    op.create_index(
        "ix_reference_shards_project_id_reference_group", "reference_shards", ["project_id", "reference_group"]
    )


def downgrade() -> None:
    op.drop_table("reference_shards")
