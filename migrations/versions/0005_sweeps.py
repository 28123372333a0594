"""Sweeps, and what their jobs wait for."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "sweeps",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("axes", postgresql.JSONB(), nullable=False),
        sa.Column("result_name", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("dpo_now()"), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_sweeps_project_id"),
        sa.PrimaryKeyConstraint("id", name="pk_sweeps"),
        sa.UniqueConstraint("result_name", name="uq_sweeps_result_name"),
    )
    op.create_index("ix_sweeps_project_id_id", "sweeps", ["project_id", "id"])
    op.add_column("jobs", sa.Column("sweep_id", sa.Text(), nullable=True))
    op.add_column("jobs", sa.Column("sweep_place", sa.BigInteger(), nullable=True))
    op.add_column("jobs", sa.Column("reference_group", sa.Text(), nullable=True))
    op.add_column(
        "jobs", sa.Column("reference_measured", sa.Boolean(), server_default=sa.text("false"), nullable=False)
    )
    op.create_foreign_key("fk_jobs_sweep_id", "jobs", "sweeps", ["sweep_id"], ["id"])
    op.create_index("ix_jobs_sweep_id_sweep_place", "jobs", ["sweep_id", "sweep_place"])
    op.execute("UPDATE jobs SET reference_group = resolved ->> 'reference_group'")


def downgrade() -> None:
    for name in ("sweep_id", "sweep_place", "reference_group", "reference_measured"):
        op.drop_column("jobs", name)
    op.drop_table("sweeps")
