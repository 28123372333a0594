"""How much room a job waits for, and how far an attempt's events are stored."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("needs_bytes", sa.BigInteger()))
    op.add_column("attempts", sa.Column("events_relayed", sa.BigInteger(), server_default="0", nullable=False))


def downgrade() -> None:
    op.drop_column("attempts", "events_relayed")
    op.drop_column("jobs", "needs_bytes")
