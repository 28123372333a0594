"""A job's result file, and an index for the lists by metadata."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("result_file_id", sa.Text(), nullable=True))
    op.create_foreign_key("fk_jobs_result_file_id", "jobs", "files", ["result_file_id"], ["id"], ondelete="SET NULL")
    op.create_index(
        "ix_jobs_result_file_id", "jobs", ["result_file_id"], postgresql_where=sa.text("result_file_id IS NOT NULL")
    )
    op.create_index(
        "ix_jobs_user_metadata",
        "jobs",
        ["user_metadata"],
        postgresql_using="gin",
        postgresql_ops={"user_metadata": "jsonb_path_ops"},
    )


def downgrade() -> None:
    op.drop_index("ix_jobs_user_metadata", "jobs")
    op.drop_index("ix_jobs_result_file_id", "jobs")
    op.drop_column("jobs", "result_file_id")
