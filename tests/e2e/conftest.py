from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import Servers
from tests.service import Service, running_service


@pytest.fixture(scope="package")
def running(servers: Servers, migrated_template: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One service for the whole suite: starting a trainer is what costs, and every job starts one."""
    with running_service(servers, migrated_template, tmp_path_factory.mktemp("service"), "e2e") as running:
        yield running
