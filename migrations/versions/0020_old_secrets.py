"""An endpoint's old secrets: as many as were rotated within a day."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0020"
down_revision = "0019"


def upgrade() -> None:
    kept = sa.Column("old_secrets", postgresql.JSONB(), server_default="[]", nullable=False)
    op.add_column("webhook_endpoints", kept)
    op.execute(
        "UPDATE webhook_endpoints SET old_secrets = "
        "jsonb_build_array(jsonb_build_object('secret', old_secret, 'until', old_secret_until)) "
        "WHERE old_secret IS NOT NULL"
    )
    op.drop_column("webhook_endpoints", "old_secret_until")
    op.drop_column("webhook_endpoints", "old_secret")


def downgrade() -> None:
    op.add_column("webhook_endpoints", sa.Column("old_secret", sa.Text(), nullable=True))
    op.add_column("webhook_endpoints", sa.Column("old_secret_until", sa.DateTime(timezone=True), nullable=True))
    op.execute(
        "UPDATE webhook_endpoints SET old_secret = old_secrets->0->>'secret', "
        "old_secret_until = (old_secrets->0->>'until')::timestamptz"
    )
    op.drop_column("webhook_endpoints", "old_secrets")
