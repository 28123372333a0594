"""A database with one project, its file and a base model."""

from __future__ import annotations

import pytest

from control_plane.database import Database
from tests.control_plane.rows import add_all


@pytest.fixture
def database_url(emptied_database_url: str) -> str:
    return emptied_database_url


@pytest.fixture
def stocked(database: Database) -> Database:
    with database.transaction() as session:
        add_all(session)
    return database
