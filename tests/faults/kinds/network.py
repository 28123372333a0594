"""The network between a worker and PostgreSQL: two workers, each in a network namespace of its own."""

from __future__ import annotations

from tests.faults.cables import lacks_namespaces
from tests.faults.fault import Fault, struck
from tests.faults.kinds.postgres import pass_by
from tests.faults.scene import Missed, Scene


def cut(scene: Scene) -> None:
    """Of the worker that has the job, for longer than its lease; the other one goes on."""
    cable = scene.deployment.cables.get(scene.worker().environ()["PGAPPNAME"])
    if cable is None:  # `dpo up`'s own worker validates
        raise Missed
    cable.set("down")
    try:
        pass_by(scene.draw.uniform(1.2, 1.8) * scene.deployment.size.lease_seconds)
    finally:
        cable.set("up")


FAULTS = [
    Fault(
        "network cut between a worker and PostgreSQL",
        "its ranks stop before the lease ends, and another worker goes on; what it says afterwards changes nothing",
        struck(cut, another_attempt=True),
        stage="network",
        lacks=lacks_namespaces,
    ),
]
