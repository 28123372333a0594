"""The deployments on which faults are played."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.faults.cables import cable
from tests.faults.deployment import REAL, STUB, Deployment, Size, Trainer, deployment
from tests.faults.fault import Stage
from tests.faults.kinds import clock, disk

MANY = Size(steps=4, checkpoint_steps=2, lease_seconds=4.0, deadline=3600.0)
"""Of a thousand jobs."""
SHORT = Size(steps=20, checkpoint_steps=5, lease_seconds=6.0, deadline=3600.0)
"""Of thirty real jobs."""
LONG = Size(steps=200, checkpoint_steps=5, lease_seconds=6.0, deadline=3600.0)
PATIENT = {"DPO_MAX_ATTEMPTS": "20"}
"""Where workers die all the time, a job may have bad luck several times in a row."""


@contextmanager
def stage(name: Stage, trainer: Trainer) -> Iterator[Deployment]:
    """Built for faults of that stage; at its end it stops, and nothing of it may be left."""
    size = STUB if trainer == "stub" else REAL
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="dpo-faults-", ignore_cleanup_errors=True)))
        folder.chmod(0o755)
        if name == "network":
            cables = [stack.enter_context(cable(number)) for number in range(2)]
            yield stack.enter_context(deployment(folder, trainer, size, own_slots=0, workers=2, cables=cables))
        elif name == "clock":
            beside = clock.environment(folder)
            yield stack.enter_context(deployment(folder, trainer, size, own_slots=0, workers=1, beside=beside))
        elif name == "disk":
            stack.enter_context(disk.mounts(folder / "data"))
            yield stack.enter_context(deployment(folder, trainer, size, workers=1))
        elif name == "storm":
            more = {"workers": 3, "settings": PATIENT, "stub_options": ["--alone"]}
            yield stack.enter_context(deployment(folder, trainer, MANY, slots=1, own_slots=1, **more))
        elif name == "real storm":
            more = {"workers": 1, "settings": PATIENT}
            yield stack.enter_context(deployment(folder, trainer, SHORT, slots=1, own_slots=1, **more))
        elif name == "long":
            yield stack.enter_context(deployment(folder, trainer, LONG, settings=PATIENT))
        else:
            yield stack.enter_context(deployment(folder, trainer, size, workers=1))
