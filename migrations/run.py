"""Brings a database's schema up or down. Needs no alembic.ini, so an installed package can do it too."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection


def upgrade(url: str, revision: str = "head") -> None:
    """Migrates the database at `url` up to `revision`; does nothing where it is there already."""
    command.upgrade(_config(url), revision)


def downgrade(url: str, revision: str) -> None:
    """Migrates the database at `url` down to `revision`; "base" removes every table and its data."""
    command.downgrade(_config(url), revision)


def at_head(connection: Connection) -> bool:
    """Whether the database has exactly the schema that this code was written for."""
    head = ScriptDirectory.from_config(_config("")).get_current_head()
    return MigrationContext.configure(connection).get_current_revision() == head


def _config(url: str) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["url"] = url
    return config
