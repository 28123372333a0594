"""`make bench-sharing`: how much of what sharing prompts could save is saved, as prompts grow against answers.

The same pairs, model, engine and packing, once with every prompt computed once (`shared`), once twice (`separate`);
forward and backward of a whole batch, without the optimizer's step, which is the same for both. Share of the bound =
(seconds separate ÷ seconds shared) ÷ (operations separate ÷ operations shared).
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median

import torch

from benchmarks import flops
from benchmarks.lengths import PairLengths, with_ratio
from benchmarks.ours import make_run
from benchmarks.report import machine, print_table, write_result
from benchmarks.shape import SHAPES, Shape
from benchmarks.workload import SEED, Workload, apart, build_drawn
from dpo_core.data.records import TokenPair
from dpo_core.engine import processes
from dpo_core.loading import Loaded
from dpo_core.objective import Preference
from dpo_core.preference_loss import PreferenceLoss
from dpo_core.spec import Device, Way

RATIOS = (0.4, 0.7, 1.0, 1.5, 2.0, 4.0, 8.0, 11.0)
WAYS: tuple[Way, Way] = ("shared", "separate")


@dataclass(frozen=True, slots=True)
class Point:
    ratio: float
    """P/(C+R)."""

    seconds: dict[Way, float]
    operations: dict[Way, int]

    @property
    def faster(self) -> float:
        return self.seconds["separate"] / self.seconds["shared"]

    @property
    def bound(self) -> float:
        return self.operations["separate"] / self.operations["shared"]

    @property
    def share(self) -> float:
        return self.faster / self.bound


def sweep(shape: Shape, pairs: int, answers: int, rounds: int, device: Device) -> list[Point]:
    """All points, in a process of its own, as training is."""
    with tempfile.TemporaryDirectory(prefix="bench-sharing-") as folder:
        workload = Workload(Path(folder) / "workload", shape, pairs, max_length=shape.context)
        build_drawn(workload, with_ratio(pairs, 1.0, answers, SEED), device=device)
        return apart(_sweep, workload, answers, rounds, device)


def _sweep(workload: Workload, answers: int, rounds: int, device: Device) -> list[Point]:
    directory = make_run(workload, workload.folder / "run", {"beta": 0.1, "packing": "shared"}, device=device)
    with processes(device) as world:
        loaded = Loaded(directory.spec(), directory, world, lambda: False)
        loaded.engine.train()
        return [
            measure(loaded, workload.shape, ratio, with_ratio(workload.batch_size, ratio, answers, SEED), rounds)
            for ratio in RATIOS
        ]


def measure(loaded: Loaded, shape: Shape, ratio: float, lengths: list[PairLengths], rounds: int) -> Point:
    """One point of the sweep: both ways in turn, a round to warm up and `rounds` that count."""
    words = random.Random(SEED)
    items = [token_pair(pair, shape.vocabulary, words) for pair in lengths]
    seconds: dict[Way, list[float]] = {way: [] for way in WAYS}
    for _ in range(1 + rounds):
        for way in WAYS:
            seconds[way].append(pass_seconds(loaded, items, way))
    operations: dict[Way, int] = {
        "shared": flops.shared(shape, lengths),
        "separate": flops.separate(shape, lengths),
    }
    return Point(ratio, {way: median(seconds[way][1:]) for way in WAYS}, operations)


def pass_seconds(loaded: Loaded, items: list[TokenPair], way: Way) -> float:
    """Forward and backward over all items in micro-batches, as Loop.update does it."""
    packer = replace(loaded.packer, way=way)
    reference = torch.zeros(2, len(items), dtype=torch.float64)
    device = loaded.world.device
    objective = Preference(items, reference, packer, PreferenceLoss.of(loaded.run.training))
    synchronize(device)
    started = time.perf_counter()
    for share in objective.shares(range(len(items)), loaded.world):
        loss, _ = objective.loss_of(loaded.engine.score, objective.micro_batch(share))
        loaded.engine.backward(loss / len(items), last=False)
    synchronize(device)
    return time.perf_counter() - started


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def token_pair(pair: PairLengths, vocabulary: int, words: random.Random) -> TokenPair:
    """Random tokens of these lengths; the answers differ from their first token on."""

    def tokens(count: int) -> list[int]:
        return [words.randrange(vocabulary) for _ in range(count)]

    prompt, first = tokens(pair.prompt), words.randrange(1, vocabulary)
    chosen = [*prompt, first, *tokens(pair.chosen - 1)]
    rejected = [*prompt, first - 1, *tokens(pair.rejected - 1)]
    return TokenPair(0, chosen, rejected, pair.prompt, pair.prompt)


def print_points(points: list[Point]) -> None:
    columns = ("P/(C+R)", "shared, s", "separate, s", "times faster", "bound", "share")
    rows = [
        [
            f"{point.ratio:g}",
            *(f"{point.seconds[way]:.2f}" for way in WAYS),
            f"{point.faster:.2f}",
            f"{point.bound:.2f}",
            f"{point.share:.2f}",
        ]
        for point in points
    ]
    print_table("Sharing prompts: forward and backward of one batch", columns, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--pairs", type=int, default=4, help="in a batch")
    parser.add_argument("--answers", type=int, default=128, help="C+R on average, in tokens")
    parser.add_argument("--rounds", type=int, default=5, help="times that count")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    points = sweep(SHAPES[options.shape], options.pairs, options.answers, options.rounds, options.device)
    print_points(points)
    summary = {"share_of_flop_bound": min(point.share for point in points)}
    details = {"machine": machine(), "shape": options.shape, "points": [asdict(point) for point in points]}
    write_result("sharing", summary | details)
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
