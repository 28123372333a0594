"""`make faults`: every fault at random moments of a seed, resumable, with a table in the end.

`--kinds` takes parts of names, or families (processes, redis, …), joined by commas. Several `--lanes` play side by
side, each with deployments of its own.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.faults import table
from tests.faults.campaign import POINTS, Plan, perform, plans, say
from tests.faults.fault import Fault
from tests.faults.journal import Journal, Row, newest_seed, rows
from tests.faults.kinds import FAMILIES, FAULTS

CLONE_NEWNS = 0x00020000
MS_REC_PRIVATE = 0x4000 | 0x40000


def main() -> int:
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell's background job ignores the first
        signal.signal(number, signal.default_int_handler)
    options = _options()
    points = {**POINTS, "stub": (options.points, 1)}
    wanted = plans(_named(options.kinds), options.trainers.split(","), points)
    seed = _seed(options.seed, wanted)
    journal = Journal(seed)
    say(f"SEED={seed}: {len(wanted)} plays of {len({plan.fault.name for plan in wanted})} kinds; {journal.path}")
    if options.lanes > 1:
        _in_lanes(options, seed, wanted)
    elif options.table is None:
        _mounts_of_our_own()
        perform(wanted, seed, journal)
    if options.silent:
        return 0
    order = list(dict.fromkeys((plan.fault.name, plan.trainer) for plan in plans(FAULTS, ("stub", "real"), POINTS)))
    measured = rows(journal.lines(), order)
    if options.table is not None:
        table.write_into(options.table, table.markdown(measured, {fault.name: fault.promise for fault in FAULTS}))
    return _verdict(measured, wanted, journal)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make faults")
    parser.add_argument("--seed", type=int, help="that of an earlier run goes on with it")
    parser.add_argument("--kinds", default="", help="parts of names, or families")
    parser.add_argument("--trainers", default="stub,real")
    parser.add_argument("--points", type=int, default=POINTS["stub"][0], help="plays of each kind with the stub")
    parser.add_argument("--lanes", type=int, default=1)
    parser.add_argument("--table", type=Path, help="plays nothing: writes the table into this page")
    parser.add_argument("--silent", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def _named(kinds: str) -> list[Fault]:
    names = [name.strip() for name in kinds.split(",") if name.strip()]
    if not names:
        return FAULTS
    whole = {fault.name for fault in FAULTS}
    found = [
        fault
        for family, faults in FAMILIES.items()
        for fault in faults
        if any(name in (family, fault.name) or (name not in whole and name in fault.name) for name in names)
    ]
    if not found:
        sys.exit(f"KINDS={kinds} names no fault; there are the families {', '.join(FAMILIES)}, and parts of names")
    return found


def _seed(given: int | None, wanted: Sequence[Plan]) -> int:
    """The given one, or that of the newest run if it isn't done, or a new one."""
    if given is not None:
        return given
    newest = newest_seed()
    if newest is not None:
        played = Journal(newest).played()
        if any((plan.fault.name, plan.trainer, plan.number) not in played for plan in wanted):
            return newest
    return random.SystemRandom().randrange(10**6)


def _in_lanes(options: argparse.Namespace, seed: int, wanted: Sequence[Plan]) -> None:
    """Each kind of a stage in one lane, the lanes as processes."""
    names = list(dict.fromkeys(plan.fault.name for plan in wanted))
    command = [sys.executable, "-m", "tests.faults", "--silent", "--seed", str(seed), "--trainers", options.trainers]
    command += ["--points", str(options.points)]
    lanes = [
        subprocess.Popen([*command, "--kinds", ",".join(mine)])
        for number in range(options.lanes)
        if (mine := names[number :: options.lanes])
    ]
    for lane in lanes:
        lane.wait()


def _mounts_of_our_own() -> None:
    """Whatever is mounted here goes when the last of our processes does, and nobody else sees it."""
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(CLONE_NEWNS) == 0:
            libc.mount(b"none", b"/", None, MS_REC_PRIVATE, None)


def _verdict(measured: list[Row], wanted: Sequence[Plan], journal: Journal) -> int:
    names = {(plan.fault.name, plan.trainer) for plan in wanted}
    shown = [row for row in measured if (row.fault, row.trainer) in names]
    lost = [line for line in journal.lines() if line.outcome == "lost" and (line.fault, line.trainer) in names]
    before = [line for line in journal.lost_before() if (line.fault, line.trainer) in names]
    for line in [*before, *lost]:
        when = ", and not when it was played again," if line in before else ""
        where = f"{line.fault} ({line.trainer}) {line.play + 1}{when} at {', '.join(line.moments)}"
        say(f"LOST {where}: {'; '.join(line.why)}")
    played = {line.key for line in journal.lines()}
    missing = [plan for plan in wanted if (plan.fault.name, plan.trainer, plan.number) not in played]
    said = (
        f"{table.printed(shown)}\n{sum(row.survived for row in shown)} passed, {sum(row.lost for row in shown)} failed"
    )
    said += f", {len(before)} times lost before, and not when it was played again" if before else ""
    sys.stdout.write(f"{said}{f', {len(missing)} plays missing' if missing else ''}\n")
    return 1 if lost or missing else 0


if __name__ == "__main__":
    sys.exit(main())
