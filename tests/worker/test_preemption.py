"""A job of high priority takes the room of a preemptible one, which goes on later as if nothing had been."""

from __future__ import annotations

from control_plane.tables import Attempt
from tests.stub_trainer import chain
from tests.worker.stubs import World, stub_programs, supervisor


def test_a_preempted_job_makes_a_checkpoint_and_ends_with_the_same_bytes(world: World) -> None:
    settings = world.settings.model_copy(update={"cpu_slots": 1})
    with supervisor(settings, stub_programs(["--hold-at=3", f"--until={world.go}"])):
        low = world.job(preemptible=True)
        world.held(low, step=2)
        urgent = world.job(priority="high")
        world.reaches(urgent, "running")
        world.reaches(low, "queued")
        assert [checkpoint.step for checkpoint in world.checkpoints(low)] == [2, 3], "it made one more"
        world.go.touch()
        for job_id in (urgent, low):
            world.reaches(job_id, "succeeded", "failed")
        world.nothing_left()
    assert [world.final_weights(job_id) for job_id in (low, urgent)] == [chain(6, low), chain(6, urgent)]
    assert world.outcomes(low)[1:] == [("train", "stopped"), ("train", "succeeded")]
    assert world.measured(low) == list(range(6))
    with world.database.transaction() as session:
        (begun,) = session.query(Attempt.started_at).filter_by(job_id=urgent, kind="train").one()
        (again,) = session.query(Attempt.started_at).filter_by(job_id=low, outcome="succeeded", kind="train").one()
    assert begun < again, "the one of high priority went first"
