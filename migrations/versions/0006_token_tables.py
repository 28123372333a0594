"""Tokenized data that a project's jobs share, and jobs over several files."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.create_table(
        "token_tables",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("project_id", sa.Text(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=False),
        sa.Column("content", sa.Text(), nullable=False),
        sa.Column("file_ids", postgresql.JSONB(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=False),
        sa.Column("last_used_at", sa.DateTime(timezone=True), server_default=sa.text("dpo_now()"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("dpo_now()"), nullable=False),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name="fk_token_tables_project_id"),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name="fk_token_tables_job_id"),
        sa.PrimaryKeyConstraint("key", name="pk_token_tables"),
    )
    op.create_index("ix_token_tables_project_id_content", "token_tables", ["project_id", "content"])
    op.add_column("jobs", sa.Column("training_files", postgresql.JSONB(), nullable=True))


def downgrade() -> None:
    op.drop_column("jobs", "training_files")
    op.drop_table("token_tables")
