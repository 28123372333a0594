"""A sweep under a real supervisor: one of its jobs measures the reference, the others find all of it in storage."""

from __future__ import annotations

from control_plane import sweeps
from control_plane.sweep_requests import read_sweep
from tests.worker.stubs import World, stub_programs, supervisor


def make_sweep(world: World, rates: list[float]) -> list[str]:
    """The ids of its jobs."""
    body = {"model": "base/tiny", "training_file": world.file("{}\n"), "method": {"type": "dpo"}}
    request = read_sweep({**body, "training": {"learning_rate": rates}})
    with world.database.transaction() as session:
        sweep = sweeps.create(session, world.project_id, request)
        return [job.id for job in sweeps.jobs_of(session, sweep)]


def reference_codes(world: World, job_id: str) -> list[str]:
    return [code for code in world.codes(job_id) if code.startswith("reference_")]


def test_one_job_of_a_sweep_measures_and_the_others_find(world: World) -> None:
    settings = world.settings.model_copy(update={"cpu_slots": 4})
    with supervisor(settings, stub_programs(["--steps=2"])):
        job_ids = make_sweep(world, [1e-6, 3e-6, 1e-5, 3e-5])
        for job_id in job_ids:
            world.reaches(job_id, "succeeded", "failed")
        world.nothing_left()
    assert [reference_codes(world, job_id) for job_id in job_ids] == [["reference_computed"]] + [
        ["reference_found"]
    ] * 3


def test_a_leader_that_fails_at_its_first_step_has_measured_for_the_others(world: World) -> None:
    settings = world.settings.model_copy(update={"cpu_slots": 2})
    with supervisor(settings, stub_programs(["--fail-at=0", "--failure=user"])):
        job_ids = make_sweep(world, [1e-6, 3e-6])
        for job_id in job_ids:
            world.reaches(job_id, "failed")
        world.nothing_left()
    assert [reference_codes(world, job_id) for job_id in job_ids] == [["reference_computed"], ["reference_found"]]
