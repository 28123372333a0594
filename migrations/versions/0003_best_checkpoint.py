"""A job's best checkpoint by validation."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("jobs", sa.Column("best", postgresql.JSONB(), nullable=True))


def downgrade() -> None:
    op.drop_column("jobs", "best")
