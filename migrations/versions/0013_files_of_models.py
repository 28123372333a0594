"""A model's files with their hashes, and the commit that stands for them: what the Hub's clients ask for.

Checkpoints that are there keep neither: their names in storage are known, but not the hash of all of them together.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    op.add_column("models", sa.Column("files", JSONB))
    op.add_column("models", sa.Column("commit", sa.Text))
    op.create_index("ix_models_job_id", "models", ["job_id"])


def downgrade() -> None:
    op.drop_index("ix_models_job_id", "models")
    op.drop_column("models", "commit")
    op.drop_column("models", "files")
