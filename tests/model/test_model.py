"""The claim, lease, fence and state logic under a random state machine, against a real PostgreSQL."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from hypothesis import Phase
from hypothesis import settings as hypothesis_settings
from hypothesis.stateful import run_state_machine_as_test
from pydantic import SecretStr

from control_plane.settings import Settings
from tests.conftest import Servers
from tests.model.machine import JobsModel
from tests.model.planted import BUGS, Bug
from tests.model.processes import PROJECT_GPUS
from tests.model.promises import Broken
from tests.model.world import World

STEPS = 50
RUNS = int(os.environ.get("DPO_MODEL_RUNS", "100"))
"""`make faults` asks for 2,000."""


@pytest.fixture(scope="module")
def world(servers: Servers, migrated_template: str) -> Iterator[World]:
    servers.execute(f"CREATE DATABASE model TEMPLATE {migrated_template}")
    # Shorter than the scheduler's patience: in a deadlock it is always the line that closes the circle that falls.
    servers.execute("ALTER DATABASE model SET deadlock_timeout = '5ms'")
    url = servers.url_of("model")
    settings = Settings(
        database_url=SecretStr(url),
        redis_url=SecretStr(servers.redis_url),
        storage_url="file:///nowhere",
        project_gpus=PROJECT_GPUS,
    )
    world = World(url, settings)
    yield world
    world.close()
    servers.execute("DROP DATABASE model WITH (FORCE)")


@pytest.mark.timeout(600 + 10 * RUNS)
def test_promises_hold_in_every_order(world: World) -> None:
    """Prints the steps of what it finds, made as short as it can, and the line that repeats it."""
    runs = hypothesis_settings(max_examples=RUNS, stateful_step_count=STEPS, print_blob=True, database=None)
    run_state_machine_as_test(lambda: JobsModel(world), settings=runs)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_bug_planted_on_purpose_is_found(world: World, bug: Bug, monkeypatch: pytest.MonkeyPatch) -> None:
    bug.plant(monkeypatch)
    runs = hypothesis_settings(
        max_examples=1000, stateful_step_count=STEPS, database=None, derandomize=True, phases=[Phase.generate]
    )
    with pytest.raises(Broken, match=bug.symptom):
        run_state_machine_as_test(lambda: JobsModel(world), settings=runs)
