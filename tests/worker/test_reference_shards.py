"""The reference's log-probabilities between jobs: kept as they are measured, found by the next job, never trusted."""

from __future__ import annotations

from sqlalchemy import select

from control_plane.tables import ReferenceShard
from tests.stub_trainer import REFERENCE_GROUP, REFERENCE_VALUES
from tests.worker.stubs import World, stub_programs, supervisor


def shards(world: World) -> list[str]:
    with world.database.transaction() as session:
        return list(session.scalars(select(ReferenceShard.key).order_by(ReferenceShard.key)))


def finish(world: World, *options: str) -> list[str]:
    """The event codes of a job that runs to its end."""
    with supervisor(world.settings, stub_programs(["--steps=2", *options])):
        job_id = world.job()
        world.reaches(job_id, "succeeded", "failed")
        world.nothing_left()
    return world.codes(job_id)


def test_the_second_job_finds_what_the_first_one_measured(world: World) -> None:
    assert "reference_computed" in finish(world)
    (key,) = shards(world)
    assert key.startswith(f"private/reference/{world.project_id}/{REFERENCE_GROUP}/")
    codes = finish(world)
    assert "reference_found" in codes
    assert "reference_computed" not in codes
    assert shards(world) == [key]


def test_what_was_measured_before_a_death_is_not_lost(world: World) -> None:
    settings = world.settings.model_copy(update={"max_attempts": 2})
    with supervisor(settings, stub_programs(["--fail-at=0", "--failure=infrastructure"])):
        job_id = world.job()
        world.reaches(job_id, "failed")
        world.nothing_left()
    codes = [code for code in world.codes(job_id) if code.startswith("reference_")]
    assert codes == ["reference_computed", "reference_found"]


def test_damaged_bytes_are_dropped_and_measured_again(world: World) -> None:
    finish(world)
    (key,) = shards(world)
    world.storage.delete(key)
    with world.storage.writer(key) as sink:
        sink.write(b"VALUES")
    codes = [code for code in finish(world) if code.startswith("reference_")]
    assert codes == ["reference_cache_damaged", "reference_computed"]
    (again,) = shards(world)
    assert again != key
    assert not world.storage.exists(key)
    with world.storage.open(again) as file:
        assert file.read().decode() == REFERENCE_VALUES


def test_bytes_that_are_gone_are_measured_again(world: World) -> None:
    finish(world)
    world.storage.delete(shards(world)[0])
    codes = [code for code in finish(world) if code.startswith("reference_")]
    assert codes == ["reference_cache_damaged", "reference_computed"]


def test_without_room_nothing_is_kept_and_the_job_succeeds(world: World) -> None:
    world.settings = world.settings.model_copy(update={"reference_cache_bytes": 0})
    assert finish(world)[-1] == "job_succeeded"
    assert shards(world) == []


def test_a_storage_that_refuses_a_shard_fails_no_job(world: World) -> None:
    blocked = world.storage.folder / "private" / "reference"
    blocked.parent.mkdir()
    blocked.write_text("no folder")
    assert finish(world)[-1] == "job_succeeded"
    assert shards(world) == []
