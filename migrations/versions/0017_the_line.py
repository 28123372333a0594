"""The line in which jobs wait, as an index; and preemption."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"

NEEDS = (
    "CASE WHEN lease_until IS NULL THEN CASE state WHEN 'validating'::text THEN 0::bigint "
    "WHEN 'queued'::text THEN gpus ELSE NULL::bigint END ELSE NULL::bigint END"
)


def upgrade() -> None:
    op.add_column("jobs", sa.Column("preemptible", sa.Boolean(), server_default="false", nullable=False))
    op.add_column("jobs", sa.Column("yields_to", sa.Text()))
    op.add_column("jobs", sa.Column("needs", sa.BigInteger(), sa.Computed(NEEDS, persisted=True)))
    op.create_index(
        "ix_jobs_line",
        "jobs",
        ["priority", "project_id", "needs", "created_at", "id"],
        postgresql_where=sa.text("needs IS NOT NULL"),
    )
    op.create_index("ix_jobs_lease_until", "jobs", ["lease_until"], postgresql_where=sa.text("lease_until IS NOT NULL"))
    op.create_index("ix_attempts_project_id_kind_started_at", "attempts", ["project_id", "kind", "started_at"])


def downgrade() -> None:
    op.drop_index("ix_attempts_project_id_kind_started_at", "attempts")
    op.drop_index("ix_jobs_lease_until", "jobs")
    op.drop_index("ix_jobs_line", "jobs")
    for name in ("needs", "yields_to", "preemptible"):
        op.drop_column("jobs", name)
