from __future__ import annotations

from pathlib import Path

import pytest

from control_plane.database import Database
from control_plane.settings import Settings
from tests.worker.stubs import World, make_world


@pytest.fixture
def world(settings: Settings, database: Database, tmp_path: Path) -> World:
    """Heartbeats and leases short enough for a test, long enough for a busy machine."""
    quick = settings.model_copy(
        update={"heartbeat_seconds": 0.2, "poll_seconds": 0.2, "lease_seconds": 20.0, "stop_seconds": 60.0}
    )
    return make_world(quick, database, tmp_path)
