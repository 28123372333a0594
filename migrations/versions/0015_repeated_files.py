"""A repeated upload is known by what it made before, as a repeated job is; removals of what is only expected wait."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    for name, table, on_delete in (("file_id", "files", "CASCADE"), ("upload_id", "uploads", None)):
        op.add_column("idempotency_keys", sa.Column(name, sa.Text(), nullable=True))
        key = f"fk_idempotency_keys_{name}"
        op.create_foreign_key(key, "idempotency_keys", table, [name], ["id"], ondelete=on_delete)
    op.alter_column("idempotency_keys", "job_id", nullable=True)
    moment = sa.DateTime(timezone=True)
    op.add_column("removals", sa.Column("not_before", moment, server_default=sa.text("dpo_now()"), nullable=False))
    op.add_column("removals", sa.Column("expected", sa.Boolean(), server_default="false", nullable=False))
    # A file that is deleted looks for its keys.
    where = sa.text("file_id IS NOT NULL")
    op.create_index("ix_idempotency_keys_file_id", "idempotency_keys", ["file_id"], postgresql_where=where)


def downgrade() -> None:
    op.execute("DELETE FROM removals WHERE expected")
    op.drop_column("removals", "expected")
    op.drop_column("removals", "not_before")
    op.execute("DELETE FROM idempotency_keys WHERE job_id IS NULL")
    op.alter_column("idempotency_keys", "job_id", nullable=False)
    op.drop_index("ix_idempotency_keys_file_id", "idempotency_keys")
    op.drop_column("idempotency_keys", "upload_id")
    op.drop_column("idempotency_keys", "file_id")
