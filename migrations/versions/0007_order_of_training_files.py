"""A job's files as a list, because JSONB keeps no order of an object's keys."""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.execute(
        """
        UPDATE jobs SET training_files = (
            SELECT jsonb_agg(jsonb_build_object('id', key, 'weight', value)) FROM jsonb_each(training_files)
        ) WHERE jsonb_typeof(training_files) = 'object'
        """
    )
    # Answers that can be asked for again; whoever waits for one does.
    op.execute("DELETE FROM checks WHERE kind = 'estimate'")


def downgrade() -> None:
    op.execute(
        """
        UPDATE jobs SET training_files = (
            SELECT jsonb_object_agg(file ->> 'id', file -> 'weight') FROM jsonb_array_elements(training_files) AS file
        ) WHERE jsonb_typeof(training_files) = 'array'
        """
    )
    op.execute("DELETE FROM checks WHERE kind = 'estimate'")
