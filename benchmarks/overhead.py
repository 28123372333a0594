"""`make bench-overhead`: what the service costs: a training step under its worker, from a POST to the first step, and
claims in a long queue. benchmarks/README.md says what each figure means. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import claims
from benchmarks.lengths import PairLengths, like_hh_rlhf
from benchmarks.report import machine, print_table
from benchmarks.servers import running
from benchmarks.service import Load, service
from benchmarks.shape import Shape
from benchmarks.supervision import measure
from benchmarks.timeline import own_share, timeline
from benchmarks.workload import Workload, build_drawn
from cli.servers import postgres
from migrations.run import upgrade

PARTS = ("training", "timeline", "claims")
BATCH_SIZE = 8
SHAPE = Shape(hidden=256, layers=4, heads=4, key_value_heads=2, intermediate=704, vocabulary=2048)
CORES = len(os.sched_getaffinity(0))
LOADS = {"every core computes": Load(ranks=2), "one core is left": Load(ranks=1, threads=max(1, CORES - 1))}
"""The worst case, and a host whose trainers compute on GPUs and wait for them on some of its cores."""
ALIKE = PairLengths(prompt=60, chosen=40, rejected=40)
"""Of every pair whose steps are compared."""
STEPS_PER_EPOCH, EPOCHS = 21, 5_000
PARTS_OF_A_CLAIM = {"p99 until the commit": "before_the_commit_ms", "p99 of the commit": "commit_ms"}
MOST_COST, MOST_SECONDS, MOST_CLAIM_MS = 0.01, 1.0, 10.0
"""The goals."""


def request(file_id: str, steps: int, ranks: int, epochs: int = 1) -> dict[str, Any]:
    training = {
        "batch_size": BATCH_SIZE,
        "epochs": epochs,
        "learning_rate": 1e-6,
        "validation_fraction": 0.0,
        "max_steps": steps,
    }
    body = {"model": "base/bench", "training_file": file_id, "method": {"type": "dpo"}}
    return {**body, "training": training, "resources": {"gpus": ranks}}


def cost_of_supervision(folder: Path, load: Load, pairs: int) -> dict[str, Any]:
    workload = Workload(folder / "workload", SHAPE, BATCH_SIZE, max_length=1024)
    build_drawn(workload, [ALIKE] * (BATCH_SIZE * STEPS_PER_EPOCH))
    with service(folder, workload.model, load) as served:
        asked = request(served.upload(workload.pairs), STEPS_PER_EPOCH * EPOCHS, load.ranks, EPOCHS)
        asked["training"]["checkpoint_steps"] = STEPS_PER_EPOCH * EPOCHS
        found = measure(served, asked, pairs)
    print(found, flush=True)
    return {"ranks": load.ranks, "threads": load.threads} | asdict(found)


def from_post_to_step(folder: Path, rounds: int) -> dict[str, Any]:
    """Medians over jobs that are submitted one by one to an idle service."""
    workload = Workload(folder / "workload", SHAPE, BATCH_SIZE, max_length=1024)
    build_drawn(workload, like_hh_rlhf(BATCH_SIZE * 2, seed=1))
    with service(folder, workload.model, Load(ranks=1)) as served:
        file_id = served.upload(workload.pairs)
        seen = []
        for number in range(rounds):
            asked = request(file_id, steps=2, ranks=1)
            asked["training"]["beta"] = 0.1 + number / 1000  # another job, not one sent again
            seen.append(timeline(served, asked))
    marks = {name: round(median(run[name] for run in seen), 3) for name in seen[0]}
    return {"rounds": rounds, "seconds_since_post": marks, "own_share_seconds": own_share(marks)}


def claims_in_a_queue(folder: Path, jobs: int, workers: int, seconds: float, *, show_plans: bool) -> dict[str, Any]:
    part, url = postgres(folder, lambda _: None)
    part.argv += ["-c", f"max_connections={claims.CONNECTIONS}"]
    with running(part):
        upgrade(url)
        found = {}
        for queue in claims.QUEUES:
            found[queue.name] = claims.measure(url, queue, jobs=jobs, workers=workers, seconds=seconds)
            if show_plans:
                print(f"\n{queue.name}\n{claims.plans(url, queue)}", flush=True)
    return {"jobs": jobs, "workers": workers, "poll_seconds": claims.POLL_SECONDS, "queues": found}


def show(facts: dict[str, Any]) -> None:
    rows: list[tuple[str, ...]]
    if "training" in facts:
        rows = []
        for name, found in facts["training"].items():
            per_step = [f"{1000 * found[how]:.1f}" for how in ("alone", "supervised")]
            cost = f"{100 * found['cost']:.2f} ± {100 * found['give_or_take']:.2f}"
            rows.append((name, *per_step, cost, f"{100 * found['share_left_alone']:.2f}"))
        heads = ("", "ms a step alone", "beside a service that catches up", "cost, %", "its CPU time, % of a core")
        print_table("What supervision costs a training step", heads, rows)
    if "timeline" in facts:
        marks, before, rows = facts["timeline"]["seconds_since_post"], 0.0, []
        for name, at in sorted(marks.items(), key=lambda mark: mark[1]):
            rows.append((name, f"{at:.3f}", f"{at - before:.3f}"))
            before = at
        print_table("From a POST to the first step", ("", "s since POST", "s"), rows)
        for name, seconds in facts["timeline"]["own_share_seconds"].items():
            print(f"the service's own share, {name.replace('_', ' ')}: {seconds:.3f} s")
    if "claims" in facts:
        found = facts["claims"]
        measured = [f"{name} ms" for name in ("p50", "p95", "p99", "max", *PARTS_OF_A_CLAIM)]
        columns = ("", "looks", "found", *measured, "claims/s without a pause")
        rows = []
        for name, queue in found["queues"].items():
            due = queue["since_due_ms"]
            latencies = (due[at] for at in ("p50", "p95", "p99", "max"))
            parts = (queue[part]["p99"] for part in PARTS_OF_A_CLAIM.values())
            cells = [f"{cell:g}" for cell in (due["requests"], queue["found"], *latencies, *parts)]
            rows.append((name, *cells, str(queue["claims_per_second"])))
        title = f"{found['jobs']:,} jobs wait, {found['workers']} workers look every {found['poll_seconds']:g} s"
        print_table(title, columns, rows)


def reached(facts: dict[str, Any]) -> dict[str, bool]:
    goals: dict[str, bool] = {}
    if "training" in facts:
        training = facts["training"].items()
        goals |= {name: found["cost"] + found["give_or_take"] < MOST_COST for name, found in training}
    if "timeline" in facts:
        goals["timeline"] = all(share < MOST_SECONDS for share in facts["timeline"]["own_share_seconds"].values())
    if "claims" in facts:
        queues = facts["claims"]["queues"].values()
        goals["claims"] = all(queue["since_due_ms"]["p99"] < MOST_CLAIM_MS for queue in queues)
    return goals


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS)
    parser.add_argument("--pairs", type=int, default=900, help="of steps, one supervised and one not")
    parser.add_argument("--rounds", type=int, default=3, help="of the timeline")
    parser.add_argument("--jobs", type=int, default=100_000)
    parser.add_argument("--workers", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=60.0, help="of claims for each kind of queue")
    parser.add_argument("--plans", action="store_true", help="print what PostgreSQL does for a claim")
    given = parser.parse_args()
    facts: dict[str, Any] = {}
    for part in given.only:
        with tempfile.TemporaryDirectory(prefix="dpo-bench-overhead-") as folder:
            if part == "training":
                facts[part] = {}
                for name, load in LOADS.items():
                    place = Path(folder) / str(load.ranks)
                    facts[part][name] = cost_of_supervision(place, load, given.pairs)
            elif part == "timeline":
                facts[part] = from_post_to_step(Path(folder), given.rounds)
            else:
                asked = {"jobs": given.jobs, "workers": given.workers, "seconds": given.seconds}
                facts[part] = claims_in_a_queue(Path(folder), **asked, show_plans=given.plans)
    show(facts)
    used = machine()
    print(json.dumps({**facts, "reached": reached(facts), "machine": {"cores": used["cores"], "cpu": used["cpu"]}}))


if __name__ == "__main__":
    main()
