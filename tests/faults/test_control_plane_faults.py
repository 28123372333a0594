"""Faults of the control plane under the stub trainer: one of each family in `make check`, every one of them in
`make check-long`, ten times each in `make faults`. The moments are random; DPO_FAULT_SEED repeats an earlier run's."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest

from tests.faults.campaign import Plan, survive
from tests.faults.deployment import Deployment
from tests.faults.fault import Fault
from tests.faults.kinds import FAMILIES, FAULTS
from tests.faults.stages import stage

PLAIN = {
    family: [fault for fault in faults if fault.stage == "plain" and "stub" in fault.trainers]
    for family, faults in FAMILIES.items()
}
OTHERS = [fault for fault in FAULTS if "stub" in fault.trainers and not fault.once]


@pytest.fixture(scope="module")
def deployment() -> Iterator[Deployment]:
    """One service for all families; after the last test it is stopped, and nothing of it may be left."""
    with stage("plain", "stub") as deployment:
        yield deployment


@pytest.mark.parametrize("family", [family for family, faults in PLAIN.items() if faults])
def test_a_fault_of_each_family(deployment: Deployment, seed: int, tell: Callable[[str], None], family: str) -> None:
    fault = random.Random(f"{seed} {family}").choice(PLAIN[family])
    tell(fault.name)
    survive(deployment, Plan(fault, "stub", 0, strikes=1), seed)


@pytest.mark.long
@pytest.mark.parametrize("fault", OTHERS, ids=lambda fault: fault.name)
def test_every_fault(seed: int, tell: Callable[[str], None], fault: Fault) -> None:
    if reason := fault.lacks():
        pytest.skip(reason)
    tell(fault.name)
    with stage(fault.stage, "stub") as deployment:
        survive(deployment, Plan(fault, "stub", 0, strikes=1), seed)
