"""`make bench-gpu`: this project and TRL 1.16.0 on one GPU, and how exact bfloat16 is there.

1 billion weights, all trained, under ZeRO 2 and 3; 8 billion with LoRA; pairs with hh-rlhf's lengths. Utilisation is
counted by the fewest operations that the pairs need (benchmarks/flops.py), so that wasted work never looks like speed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks import flops, ours, precision
from benchmarks.contest import COLUMNS, Entry, Ring
from benchmarks.lengths import like_hh_rlhf
from benchmarks.report import machine, print_table, write_result
from benchmarks.shape import SHAPES
from benchmarks.theirs import DEFAULT, Recipe, TrlSettings
from benchmarks.workload import SEED, Workload, apart, build_drawn
from dpo_core.flops import known_peak
from dpo_core.spec import Device


@dataclass(frozen=True, slots=True)
class Part:
    """One model and the ways in which we train it."""

    shape: str
    learning_rate: float
    lora_rank: int | None
    zero_stages: tuple[int, ...]


PARTS = {
    "1b": Part("1b", 1e-6, None, (2, 3)),
    "8b": Part("8b", 5e-6, 16, (0,)),
    "tiny": Part("tiny", 1e-4, None, (2, 3)),
    "tiny-lora": Part("tiny", 1e-4, 4, (0,)),
}


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is run."""

    batch_size: int
    steps: int
    grid: tuple[TrlSettings, ...]
    """TRL's settings, its default among them."""


@dataclass(frozen=True, slots=True)
class Meter:
    """Model FLOPs utilisation (Chowdhery et al. 2022, arXiv:2204.02311, appendix B) of an entry."""

    shape: str
    lora: bool
    peak: float | None

    def row(self, entry: Entry) -> list[str]:
        if self.peak is None:
            return [*entry.row(), "-"]
        return [*entry.row(), f"{self.utilisation(entry):.1%}"]

    def utilisation(self, entry: Entry) -> float | None:
        if self.peak is None:
            return None
        operations = sum(flops.shared(SHAPES[self.shape], step, lora=self.lora) for step in entry.timed)
        return operations / entry.seconds / self.peak

    def print(self, title: str, entries: list[Entry]) -> None:
        print_table(title, (*COLUMNS, "MFU"), [self.row(entry) for entry in entries])


def run_part(name: str, scale: Scale, device: Device, peak: float | None, folder: Path) -> dict[str, Any]:
    """Ours, then TRL's settings in one process; what of it goes into the results."""
    part = PARTS[name]
    workload = Workload(folder / "workload", SHAPES[part.shape], scale.batch_size, max_length=4096)
    lengths = like_hh_rlhf(scale.batch_size * (scale.steps + 1), SEED)
    dtype = "bfloat16" if device == "cuda" else "float32"
    build_drawn(workload, lengths, device=device, dtype=dtype)
    recipe = Recipe(0.1, part.learning_rate, device, part.lora_rank)
    ring = Ring(workload, folder, recipe, imported=0 if device == "cuda" else ours.imported_bytes())
    meter = Meter(part.shape, part.lora_rank is not None, peak)
    outcomes = {f"ours, ZeRO {stage}": ring.ours(zero_stage=stage) for stage in part.zero_stages}
    outcomes |= {str(settings): outcome for settings, outcome in ring.trl_several(scale.grid).items()}
    entries = {who: ring.entry(who, [outcome]) for who, outcome in outcomes.items()}
    meter.print(name, list(entries.values()))
    fastest = min((entry for who, entry in entries.items() if who.startswith("ours")), key=lambda entry: entry.seconds)
    return {
        "ratios": {who: entry.seconds / fastest.seconds for who, entry in entries.items()},
        "utilisation": {who: meter.utilisation(entry) for who, entry in entries.items()},
        "entries": [entry.record() for entry in entries.values()],
    }


def gpu_name() -> str:
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0].strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=["1b", "8b"])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu tries the command itself out")
    parser.add_argument("--batch-size", type=int, default=128, help="pairs per step")
    parser.add_argument("--steps", type=int, default=3, help="timed steps of every run")
    parser.add_argument("--micro-batches", type=int, nargs="+", default=[4, 8, 16], help="pairs, in TRL's grid")
    parser.add_argument("--whole-grid", action="store_true", help="also what only adds work to TRL's settings")
    parser.add_argument("--peak", type=float, help="dense bfloat16 operations a second of the GPU, if it is not known")
    options = parser.parse_args()
    gpu = gpu_name() if options.device == "cuda" else None
    peak = options.peak or (known_peak(gpu) if gpu else None)
    slower = (True, False) if options.whole_grid else (False,)
    grid = [
        TrlSettings(size, again, not running)
        for size in options.micro_batches
        for again, running in product(slower, slower)
    ]
    scale = Scale(options.batch_size, options.steps, tuple(dict.fromkeys([DEFAULT, *grid])))
    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as folder:
        exactness = apart(
            precision.errors, SHAPES["tiny" if gpu is None else "small"], 8, options.device, Path(folder) / "model"
        )
        rows = [[it.way, f"{it.token:.1e}", f"{it.sequence:.1e}", f"{it.gradient:.1e}"] for it in exactness]
        print_table("bfloat16 against float64", ("", "token", "sequence, largest", "gradient, relative"), rows)
        parts: dict[str, Any] = {}
        for name in options.parts:
            parts[name] = run_part(name, scale, options.device, peak, Path(folder) / name)
            # After each: who has the machine for minutes keeps what there is.
            record = {"machine": machine(gpu), "precision": [asdict(it) for it in exactness], "parts": parts}
            write_result("gpu" if gpu else "gpu-tried-on-cpu", record)
    print(json.dumps({name: {key: part[key] for key in ("ratios", "utilisation")} for name, part in parts.items()}))


if __name__ == "__main__":
    main()
