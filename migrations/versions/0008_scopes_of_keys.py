"""What a key may do, until when, how often, and when it was used last. Older keys may do all that they could."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.add_column("api_keys", sa.Column("scopes", JSONB(), nullable=True))
    op.execute("""UPDATE api_keys SET scopes = '["files:write", "jobs:write", "models:read"]'""")
    op.alter_column("api_keys", "scopes", nullable=False)
    op.add_column("api_keys", sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("api_keys", sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("api_keys", sa.Column("requests_per_minute", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    for name in ("requests_per_minute", "last_used_at", "expires_at", "scopes"):
        op.drop_column("api_keys", name)
