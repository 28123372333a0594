"""The memory plan against measured peaks: `make bench-memory`.

Every setting trains a few steps in fresh processes. Planned and measured are bytes of the fullest rank: on a CPU above
the process with everything imported (resident memory), on a GPU what torch allocates.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import re
import subprocess
import sys
from ctypes import CDLL
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.lengths import PairLengths
from benchmarks.shape import SHAPES, Shape
from benchmarks.workload import SEED, Workload, build_drawn
from dpo_core.footprint import Footprint, Layout, estimate
from dpo_core.model_folder import model_facts
from dpo_core.run_directory import RunDirectory
from dpo_core.spec import Device, LoraSpec, ModelSource, Offload, RunSpec, TrainingSpec

ROOT = Path(__file__).parents[1]
STEPS = 2
PAIR = PairLengths(prompt=130, chosen=58, rejected=70)
"""256 input tokens when the prompt counts once and no answer's last token is read: budgets are filled to the brim."""
PAIR_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Setting:
    shape: str
    ranks: int = 1
    zero_stage: int = 0
    offload: Offload = "none"
    lora: bool = False
    checkpointing: bool = False
    tokens: int = 4096

    @property
    def pairs(self) -> int:
        """In a step: what fills one forward pass of every rank, or several small ones."""
        return self.ranks * max(self.tokens, 4096) // PAIR_TOKENS

    @property
    def name(self) -> str:
        kind = "LoRA" if self.lora else "full"
        recomputed = ", recomputed" if self.checkpointing else ""
        offload = "" if self.offload == "none" else f", {self.offload} offloaded"
        return f"{self.shape} {kind}, {self.ranks} rank, ZeRO {self.zero_stage}{offload}, {self.tokens}{recomputed}"


SHAPES_HERE = SHAPES | {"medium": Shape(256, 4, heads=8, key_value_heads=4, intermediate=704, vocabulary=6400)}
"""`medium` has 6 million weights: activations outweigh them."""
ON_CPU = [
    Setting("medium", ranks=2, zero_stage=3),
    Setting("medium", lora=True),
    Setting("medium", ranks=2, zero_stage=2),
    Setting("medium", lora=True, checkpointing=True),
    Setting("medium", ranks=2, zero_stage=3, lora=True),
    Setting("medium", ranks=2, zero_stage=2, tokens=1024, checkpointing=True),
    Setting("small"),
    Setting("small", checkpointing=True),
    Setting("small", tokens=1024),
]
ON_GPU = [
    Setting("1b", tokens=4096),
    Setting("1b", tokens=16384, checkpointing=True),
    Setting("1b", zero_stage=2, offload="optimizer", tokens=4096),
    Setting("1b", zero_stage=3, offload="parameters", tokens=4096),
    Setting("8b", lora=True, tokens=4096),
    Setting("8b", lora=True, tokens=16384, checkpointing=True),
]


def training_spec(setting: Setting, device: Device) -> TrainingSpec:
    return TrainingSpec(
        beta=0.1,
        learning_rate=1e-6,
        batch_size=setting.pairs,
        micro_batch_tokens=setting.tokens,
        packing="shared",
        epochs=STEPS,
        max_steps=STEPS,
        max_length=2048,
        precision="bfloat16" if device == "cuda" else "float32",
        zero_stage=setting.zero_stage,
        offload=setting.offload,
        activation_checkpointing=setting.checkpointing,
        lora=LoraSpec() if setting.lora else None,
        validation_fraction=0.0,
        evaluation_steps=STEPS,
        checkpoint_steps=STEPS,
        seed=SEED,
    )


def planned(setting: Setting, workload: Workload, device: Device) -> Footprint:
    spec = training_spec(setting, device)
    layout = Layout(
        device=device,
        ranks=setting.ranks,
        zero_stage=setting.zero_stage,
        offload=setting.offload,
        activation_checkpointing=setting.checkpointing,
        micro_batch_tokens=setting.tokens,
        bfloat16=spec.precision == "bfloat16",
        lora=spec.lora,
    )
    return estimate(model_facts(ModelSource(id="bench", path=workload.model)), layout)


def measured(setting: Setting, workload: Workload, warm_up: Workload, device: Device) -> int:
    """Bytes of the fullest rank, in fresh processes."""
    runs = workload.folder / "runs" / re.sub(r"\W+", "-", setting.name)
    directories = []
    for name, work in (("warm-up", warm_up), ("run", workload)):
        directory = RunDirectory(runs / name)
        model = ModelSource(id="bench", path=work.model)
        training = training_spec(setting, device)
        directory.create(
            RunSpec(
                job_id=name,
                training=training,
                model=model,
                training_file=work.pairs,
                ranks=setting.ranks,
                device=device,
            )
        )
        directories.append(str(directory.path))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1", f"--log-dir={os.devnull}"]
    command = [
        sys.executable,
        *torchrun,
        f"--nproc-per-node={setting.ranks}",
        "--module",
        "benchmarks.memory",
        "--rank",
    ]
    threads = str(max(1, (os.cpu_count() or 1) // setting.ranks))
    environment = os.environ | {"DS_ACCELERATOR": device, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": threads}
    subprocess.run([*command, *directories], check=True, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    peaks: dict[str, int] = json.loads((runs / "run" / "peak.json").read_text())
    return max(peaks.values())


def rank_main(warm_up: Path, path: Path) -> None:
    """One rank: a tiny run first, so that everything is imported and every library has made its own buffers."""
    from dpo_core.engine import processes
    from dpo_core.train import Loop

    device = RunDirectory(path).spec().device
    with processes(device) as world:
        Loop(RunDirectory(warm_up).spec(), RunDirectory(warm_up), world).run_to_end()
        before = forget_peak(device)
        directory = RunDirectory(path)
        Loop(directory.spec(), directory, world).run_to_end()
        import torch

        peaks = world.gather(torch.tensor([float(peak(device) - before)], device=world.device))
        if world.rank == 0:
            values = {str(rank): int(value) for rank, value in enumerate(peaks.flatten().tolist())}
            (path / "peak.json").write_text(json.dumps(values))


def forget_peak(device: Device) -> int:
    """Returns what is held now, and makes it the peak so far."""
    import torch

    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets the peak of the resident set
    return in_status("VmRSS")


def peak(device: Device) -> int:
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    return in_status("VmHWM")


def in_status(name: str) -> int:
    """Bytes of a field of /proc/self/status."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def compare(settings: list[Setting], device: Device, folder: Path) -> list[dict[str, Any]]:
    """Runs every setting, prints a line for each."""
    pairs = [PAIR] * max(setting.pairs for setting in settings)
    tiny = Workload(folder / "tiny", SHAPES_HERE["tiny"], len(pairs), 2048)
    build_drawn(tiny, pairs)
    workloads: dict[str, Workload] = {}
    rows = []
    width = max(len(setting.name) for setting in settings)
    print(f"{'setting':{width}}  {'planned':>9}  {'measured':>9}  {'ratio':>5}  (MiB a rank)")
    for setting in settings:
        if setting.shape not in workloads:
            workloads[setting.shape] = Workload(folder / setting.shape, SHAPES_HERE[setting.shape], len(pairs), 2048)
            build_drawn(workloads[setting.shape], pairs, device=device)
        work = workloads[setting.shape]
        plan, found = planned(setting, work, device), measured(setting, work, tiny, device)
        ratio = plan.peak / found
        print(f"{setting.name:{width}}  {plan.peak / 2**20:9.0f}  {found / 2**20:9.0f}  {ratio:5.2f}", flush=True)
        parts = asdict(plan)
        rows.append(
            {"setting": asdict(setting), "planned": plan.peak, "measured": found, "ratio": ratio, "parts": parts}
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rank", nargs=2, type=Path, metavar=("WARM_UP", "RUN"), help=argparse.SUPPRESS)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--only", default="", help="settings whose name contains this")
    arguments = parser.parse_args()
    if arguments.rank:
        rank_main(*arguments.rank)
        return
    device: Device = arguments.device
    settings = [it for it in (ON_GPU if device == "cuda" else ON_CPU) if arguments.only in it.name]
    with TemporaryDirectory(prefix="bench-memory-") as folder:
        rows = compare(settings, device, Path(folder))
    results = ROOT / "benchmarks" / "results"
    results.mkdir(exist_ok=True)
    record = {"when": datetime.now(UTC).isoformat(timespec="seconds"), "device": device, "machine": platform.machine()}
    (results / f"memory-{device}.json").write_text(json.dumps(record | {"rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
