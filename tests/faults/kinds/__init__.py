"""Every fault, one file a family."""

from __future__ import annotations

from tests.faults.fault import Fault
from tests.faults.kinds import api, clock, disk, messages, network, postgres, processes, redis, storms

FAMILIES = {
    "processes": processes.FAULTS,
    "redis": redis.FAULTS,
    "postgres": postgres.FAULTS,
    "network": network.FAULTS,
    "disk": disk.FAULTS,
    "clock": clock.FAULTS,
    "messages": messages.FAULTS,
    "api": api.FAULTS,
    "storms": storms.FAULTS,
}
FAULTS: list[Fault] = [fault for family in FAMILIES.values() for fault in family]
