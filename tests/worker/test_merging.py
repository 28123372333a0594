"""Orders to merge, carried out by real workers with the real program."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from safetensors import safe_open

from control_plane import checks, merges, models
from control_plane.tables import Check, Model
from dpo_core.run_directory import CHECKSUMS, RunDirectory, sha256_of
from tests import published
from tests.makers import make_adapter, make_tiny_model
from tests.worker.stubs import World, eventually, stub_programs, supervisor

# peft asks transformers by a name that is going away.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


@pytest.fixture
def adapter(world: World, tmp_path: Path) -> Model:
    """What a job with LoRA published."""
    base = make_tiny_model(tmp_path / "tiny")
    job_id = world.job(training={"lora": {"rank": 2}})
    files = published.files_of(make_adapter(base, "base/tiny", tmp_path / "adapter"))
    held = published.claim(world.database)
    published.publish(world.database, world.settings, held, 4, files, kind="adapter", final=True)
    published.succeed(world.database, held)
    with world.database.transaction() as session:
        return models.get(session, world.project_id, world.row(job_id).result_name)


def order(world: World, adapter: Model) -> str:
    with world.database.transaction() as session:
        return merges.order(session, world.project_id, adapter.id).id


def row(world: World, check_id: str) -> Check | None:
    with world.database.transaction() as session:
        return checks.read(session, check_id)


def ended(world: World, check_id: str) -> Check:
    eventually(lambda: (it := row(world, check_id)) is None or it.state in checks.ANSWERED, f"{check_id} is over")
    check = row(world, check_id)
    assert check is not None
    return check


def test_a_merged_model_is_published_whole(world: World, adapter: Model) -> None:
    with supervisor(world.settings, stub_programs()):
        check = ended(world, order(world, adapter))
        world.nothing_left()
    assert (check.state, check.error) == ("done", None)
    with world.database.transaction() as session:
        merged = models.get(session, world.project_id, f"{adapter.id}-merged")
    folder = world.storage.folder / f"{merged.storage_prefix}/model"
    listed = {file["path"]: file["sha256"] for file in merged.files or ()}
    assert listed == {path.name: sha256_of(path) for path in folder.iterdir()}
    sums = dict(reversed(line.split("  ")) for line in (folder / CHECKSUMS).read_text().splitlines())
    assert sums == {name: digest for name, digest in listed.items() if name != CHECKSUMS}
    assert merged.bytes == sum((folder / name).stat().st_size for name in sums)
    with safe_open(folder / "model.safetensors", "numpy") as weights:
        assert not [name for name in weights.keys() if "lora" in name]  # noqa: SIM118 - it is no mapping
    card = (folder / "README.md").read_text()
    assert f"`{adapter.id}`, commit `{adapter.commit}`" in card and 'base_model: "base/tiny"' in card


def test_a_base_that_can_not_be_loaded_is_the_answer(world: World, adapter: Model) -> None:
    assert adapter.base_id == "base/tiny"
    (world.storage.folder.parent / "tiny" / "config.json").write_text('{"model_type": "none"}')
    with supervisor(world.settings, stub_programs()):
        check = ended(world, order(world, adapter))
        world.nothing_left()
    assert check.error is not None
    assert (check.error["kind"], check.error["code"]) == ("user", "model_unreadable")


def test_an_adapter_that_is_deleted_takes_the_order_along(world: World, adapter: Model) -> None:
    """While the program reads it: a pipe makes that last."""
    stored = world.storage.folder / f"{adapter.storage_prefix}/model/adapter_model.safetensors"
    stored.unlink()
    os.mkfifo(stored)

    def running() -> bool:
        statuses = [RunDirectory(path.parent).status() for path in world.runs.glob("check-*/*/status.json")]
        return any(status is not None and status.state == "running" for status in statuses)

    with supervisor(world.settings, stub_programs()):
        check_id = order(world, adapter)
        eventually(running, "the program reads the adapter")
        with world.database.transaction() as session:
            for name in (f"{adapter.id}-step-4", adapter.id):
                models.delete(session, world.project_id, name)
        world.nothing_left()
    assert row(world, check_id) is None
    assert not list(world.storage.folder.glob("checkpoints/*/merged/*"))
