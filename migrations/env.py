"""Alembic's entry point; `migrations.run` starts it. One migration runs at a time."""

from __future__ import annotations

from alembic import context
from sqlalchemy import text
from sqlalchemy.pool import NullPool

from control_plane.database import make_engine
from control_plane.tables import Base

LOCK = 0x64706F01
"""Any number that nothing else in this database locks: two servers that start together migrate in turn."""


def migrate() -> None:
    engine = make_engine(context.config.attributes["url"], poolclass=NullPool)
    with engine.connect() as connection:
        context.configure(connection=connection, target_metadata=Base.metadata, transaction_per_migration=False)
        with context.begin_transaction():
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
            context.run_migrations()


migrate()
