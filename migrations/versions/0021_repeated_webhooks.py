"""A repeated registration of a webhook endpoint is known by what it made before."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0021"
down_revision = "0020"

TABLE, COLUMN = "idempotency_keys", "webhook_endpoint_id"


def upgrade() -> None:
    op.add_column(TABLE, sa.Column(COLUMN, sa.Text(), nullable=True))
    key = f"fk_{TABLE}_{COLUMN}"
    op.create_foreign_key(key, TABLE, "webhook_endpoints", [COLUMN], ["id"], ondelete="CASCADE")
    # An endpoint that is deleted looks for its keys.
    op.create_index(f"ix_{TABLE}_{COLUMN}", TABLE, [COLUMN], postgresql_where=sa.text(f"{COLUMN} IS NOT NULL"))


def downgrade() -> None:
    op.execute(f"DELETE FROM {TABLE} WHERE {COLUMN} IS NOT NULL")  # noqa: S608 - the names above
    op.drop_index(f"ix_{TABLE}_{COLUMN}", TABLE)
    op.drop_column(TABLE, COLUMN)
