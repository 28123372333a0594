from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from control_plane.settings import Settings
from tests.conftest import Servers
from tests.makers import make_tiny_model
from tests.service import Service, service


@pytest.fixture(scope="session")
def running(servers: Servers, migrated_template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service for the whole suite: starting a trainer is what costs, and every job starts one."""
    folder = tmp_path_factory.mktemp("service")
    (folder / "storage").mkdir()
    servers.execute(f"CREATE DATABASE e2e TEMPLATE {migrated_template}")
    settings = Settings(
        database_url=SecretStr(servers.url_of("e2e")),
        redis_url=SecretStr(servers.redis_url),
        storage_url=(folder / "storage").as_uri(),
        cpu_slots=2,
    )
    model = make_tiny_model(Path(folder / "tiny"))
    with service(settings, folder, {"tiny": model}) as running:
        yield running
