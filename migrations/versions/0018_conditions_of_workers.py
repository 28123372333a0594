"""What workers say of themselves again and again: slots that may be used, GPUs that may not and why, and their end."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0018"
down_revision = "0017"


def upgrade() -> None:
    op.add_column("workers", sa.Column("usable", sa.BigInteger()))
    op.add_column("workers", sa.Column("gpus", JSONB(), server_default="[]", nullable=False))
    op.add_column("workers", sa.Column("out", JSONB(), server_default="{}", nullable=False))
    op.add_column("workers", sa.Column("draining", sa.Boolean(), server_default="false", nullable=False))


def downgrade() -> None:
    for name in ("draining", "out", "gpus", "usable"):
        op.drop_column("workers", name)
