"""`make bench-train`: this project and TRL 1.16.0 train the same model on the same pairs, in turn, on the same cores.

First every setting of TRL's grid runs once; the fastest is "TRL's best". Then the finalists run in turn, several
rounds. Every run is a process of its own. benchmarks/README.md says what each figure means.

`--finalists` takes TRL's best from the grid of an earlier result, and leaves out the grid, TRL's default and the sweep.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import ours
from benchmarks.contest import COLUMNS, MEBIBYTE, Entry, Ring, tokens_for
from benchmarks.gradients import compare
from benchmarks.lengths import like_hh_rlhf
from benchmarks.outcome import largest_difference
from benchmarks.report import RESULTS, machine, print_table, write_result
from benchmarks.shape import SHAPES
from benchmarks.theirs import DEFAULT, GRID, Recipe, TrlSettings
from benchmarks.workload import Workload, build_drawn, build_real, real_data

BATCH_SIZE = 8
RECIPE = Recipe(beta=0.1, learning_rate=1e-5, device="cpu")


def make_workload(folder: Path, shape: str, steps: int) -> Workload:
    """Pairs of hh-rlhf, or as long as those; one step more than is timed."""
    workload = Workload(folder, SHAPES[shape], BATCH_SIZE, max_length=1024)
    pairs, root = BATCH_SIZE * (steps + 1), real_data()
    if root is None or shape == "tiny":
        print(f"{pairs} pairs of random words with hh-rlhf's lengths")
        build_drawn(workload, like_hh_rlhf(pairs, seed=1))
    else:
        print(f"{pairs} pairs of hh-rlhf (harmless-base test)")
        build_real(workload, root, pairs)
    return workload


def heats(ring: Ring, grid: list[TrlSettings]) -> dict[TrlSettings, Entry]:
    """Every setting of TRL's, once."""
    entries = {settings: ring.entry(str(settings), [ring.trl(settings)]) for settings in grid}
    print_table("TRL's settings, one run each", COLUMNS, [entry.row() for entry in entries.values()])
    return entries


def best_of_earlier_grid(file: Path) -> TrlSettings:
    """TRL's fastest setting in a result that `make bench-train` left."""
    if not file.exists():
        raise SystemExit(f"{file} is not there: run `make bench-train` without --finalists first.")
    known = {entry["name"]: sum(entry["rounds"][0]["seconds"]) for entry in json.loads(file.read_bytes())["entries"]}
    return min(GRID, key=lambda settings: known.get(str(settings), math.inf))


OURS: dict[str, dict[str, Any]] = {"ours": {}, "ours, compiled": {"compile": True}}
"""Settings of ours: all on `auto`, and the one that `auto` leaves to the user on a CPU."""


def finals(ring: Ring, best: TrlSettings, rounds: int) -> dict[str, Entry]:
    """The finalists in turn, round by round."""
    names = {"trl_default": f"default: {DEFAULT}", "trl_best": f"best: {best}"}
    names |= {f"{who}, {cache}": f"{who}, {cache} cache" for who in OURS for cache in ("cold", "warm")}
    outcomes: dict[str, list[Any]] = {name: [] for name in names}
    for _ in range(rounds):
        outcomes["trl_default"].append(ring.trl(DEFAULT))
        outcomes["trl_best"].append(ring.trl(best))
        for who, settings in OURS.items():
            cold = ring.directory(**settings)
            outcomes[f"{who}, cold"].append(ours.train(cold, ring.imported))
            warm = ring.directory(cold.reference, **settings)
            outcomes[f"{who}, warm"].append(ours.train(warm, ring.imported))
    entries = {key: ring.entry(names[key], outcomes[key]) for key in outcomes}
    print_table(f"The finalists, {rounds} rounds in turn", COLUMNS, [entry.row() for entry in entries.values()])
    return entries


def memory(ring: Ring, entries: dict[TrlSettings, Entry]) -> dict[int, float]:
    """Our peak memory in parts of TRL's, by pairs in a micro-batch: neither recomputes, neither runs a second model."""
    rows, ratios = [], {}
    for settings, entry in entries.items():
        if settings.checkpointing or not settings.precomputed:
            continue
        pairs = settings.micro_batch
        same = ring.entry("ours", [ring.ours(micro_batch_tokens=tokens_for(entry.steps, pairs))])
        ratios[pairs] = same.memory / entry.memory
        figures = (same.memory / MEBIBYTE, entry.memory / MEBIBYTE)
        speeds = (same.pairs_per_second, entry.pairs_per_second)
        rows.append([str(pairs), *(f"{figure:,.0f}" for figure in figures), f"{ratios[pairs]:.2f}"])
        rows[-1] += [f"{speed:.2f}" for speed in speeds]
    columns = ("pairs a micro-batch", "ours, MiB", "TRL, MiB", "ratio", "ours, pairs/s", "TRL, pairs/s")
    print_table("Peak memory above the imported process", columns, rows)
    return ratios


def agreement(ring: Ring, best: TrlSettings, settings: dict[str, Any]) -> dict[str, float]:
    """Largest differences in the losses of all steps and in the first step's gradient."""
    theirs, mine = ring.folder / "trl.safetensors", ring.folder / "ours.safetensors"
    outcome = ring.trl(best, theirs)
    directory = ring.directory(**settings)
    command = [sys.executable, "-m", "benchmarks.ours", str(directory.path), str(mine)]
    subprocess.run(command, check=True, capture_output=True)
    difference = compare(theirs, mine)
    apart = largest_difference(outcome.losses, ours.losses(directory))
    print(f"\nLargest difference in the loss of a step: {apart:.2e}")
    print(f"Gradient of the first step: largest difference of an element {difference.largest:.2e}", end="; ")
    print(f"its largest element {difference.of:.2e}; relative difference {difference.relative:.2e}")
    return {
        "max_loss_difference": apart,
        "max_gradient_difference": difference.largest,
        "relative_gradient_difference": difference.relative,
    }


def share_of_flop_bound(shape: str) -> float:
    """The smallest of `make bench-sharing`'s sweep. In a process of its own: this one stays small."""
    subprocess.run([sys.executable, "-m", "benchmarks.sharing", "--shape", shape], check=True)
    share: float = json.loads((RESULTS / "sharing.json").read_bytes())["share_of_flop_bound"]
    return share


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--steps", type=int, default=5, help="timed steps of every run")
    parser.add_argument("--rounds", type=int, default=3, help="runs of every finalist")
    parser.add_argument("--ranks", type=int, default=1, help="processes of ours; they share the cores")
    parser.add_argument("--finalists", action="store_true", help="TRL's best as an earlier result has it, no grid")
    options = parser.parse_args()
    known = best_of_earlier_grid(RESULTS / "train.json") if options.finalists else None
    with tempfile.TemporaryDirectory(prefix="bench-train-") as folder:
        workload = make_workload(Path(folder) / "workload", options.shape, options.steps)
        ring = Ring(workload, Path(folder), RECIPE, ours.imported_bytes(), options.ranks)
        entries = {} if known else heats(ring, GRID)
        best = known or min(entries, key=lambda settings: entries[settings].seconds)
        final = finals(ring, best, options.rounds)
        ratios = memory(ring, entries or {best: final["trl_best"]})
        fastest = min(OURS, key=lambda who: final[f"{who}, warm"].seconds)
        numbers = agreement(ring, best, OURS[fastest])
    warm = final[f"{fastest}, warm"]
    summary: dict[str, Any] = {
        "ratio_default": final["trl_default"].seconds / warm.seconds,
        "ratio_best": final["trl_best"].seconds / warm.seconds,
        "ratio_best_of_medians": final["trl_best"].median_seconds / warm.median_seconds,
        "ratio_best_auto": final["trl_best"].seconds / final["ours, warm"].seconds,
        "memory_ratio": ratios[max(ratios)],
        "share_of_flop_bound": share_of_flop_bound(options.shape),
    } | numbers
    everything = [*entries.values(), *final.values()]
    details = {"machine": machine(), "memory_ratios": ratios, "entries": [entry.record() for entry in everything]}
    write_result("train-finalists" if known else "train", summary | details)
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
