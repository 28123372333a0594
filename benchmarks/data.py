"""`make bench-data`: a million generated pairs checked, rendered and tokenized, beside TRL 1.16.0's preparation.

Ours reads the whole file; TRL reads a part of it, in turn with ours, and rates are compared. Every run is a process
of its own. benchmarks/README.md says what each figure means.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks.report import machine, print_table, write_result
from benchmarks.theirs import PYTHON, ROOT
from benchmarks.workload import MINIMIND, real_data

SEED = 1
MEBIBYTE = 2**20
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


@dataclass(frozen=True, slots=True)
class Run:
    """What one process did with a file."""

    seconds: float
    rows: int
    peak_bytes: int = 0
    first: dict[str, list[int]] | None = None
    """The first row's token ids, to compare."""

    @property
    def rate(self) -> float:
        return self.rows / self.seconds


def write_words(draw: random.Random) -> list[str]:
    """Words of English where there is real data, else of random letters."""
    root = real_data()
    if root is not None:
        text = (root / "gsm8k" / "train.jsonl").read_text(encoding="utf-8")
        return sorted({word for word in text.split() if word.isalpha()})
    return ["".join(draw.choices("etaoinshrdlu", k=draw.randint(1, 9))) for _ in range(5000)]


def generate(file: Path, rows: int, draw: random.Random) -> None:
    """Single-turn chats in the explicit format; words of English letters, so many that a row has some 760 bytes."""
    words = write_words(draw)

    def turn(role: str, most: int) -> list[dict[str, str]]:
        return [{"role": role, "content": " ".join(draw.choices(words, k=draw.randint(8, most)))}]

    with open(file, "w", encoding="utf-8") as sink:
        for _ in range(rows):
            row = {"prompt": turn("user", 40), "chosen": turn("assistant", 50), "rejected": turn("assistant", 50)}
            sink.write(json.dumps(row) + "\n")


def tokenizer(folder: Path, file: Path) -> Path:
    """The folder of minimind's, or of one that is trained on the generated words."""
    root = real_data()
    if root is not None:
        return root / MINIMIND
    from tokenizers import ByteLevelBPETokenizer

    made = ByteLevelBPETokenizer()
    with open(file, encoding="utf-8") as lines:
        made.train_from_iterator(islice(lines, 20_000), vocab_size=6400, special_tokens=list(SPECIAL))
    folder.mkdir()
    made.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": SPECIAL[2], "pad_token": SPECIAL[0]}
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": CHAT_TEMPLATE}))
    return folder


class Ring:
    """Starts both sides on the same machine."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.folder, self.model = folder, model

    def ours(self, file: Path, task: str) -> Run:
        return self._run([sys.executable, "-m", "benchmarks.data_run"], file, task=task)

    def trl(self, file: Path, processes: int | None) -> Run:
        return self._run([str(PYTHON), str(Path(__file__).with_name("trl_prepare.py"))], file, processes=processes)

    def _run(self, command: Sequence[str], file: Path, **options: object) -> Run:
        with tempfile.TemporaryDirectory(dir=self.folder) as output:
            given, result = Path(output) / "settings.json", Path(output) / "result.json"
            settings = {"file": str(file), "model": str(self.model), "output": output, "result": str(result)}
            given.write_text(json.dumps(settings | options))
            environment = os.environ | {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
            ended = subprocess.run(
                [*command, str(given)], capture_output=True, text=True, check=False, cwd=ROOT, env=environment
            )
            if ended.returncode:
                raise RuntimeError(f"{command[-1]} failed:\n{ended.stderr[-3000:]}")
            return Run(**json.loads(result.read_bytes()))


def head(file: Path, rows: int, name: str) -> Path:
    """The first rows of a file, beside it."""
    part = file.with_name(name)
    with open(file, "rb") as source, open(part, "wb") as sink:
        sink.writelines(islice(source, rows))
    return part


def rounds(ring: Ring, part: Path, count: int) -> dict[str, Run]:
    """Each side's fastest run on the same part of the file, in turn."""
    cores = len(os.sched_getaffinity(0))
    contenders: dict[str, Callable[[], Run]] = {
        "ours": lambda: ring.ours(part, "load"),
        "TRL, default": lambda: ring.trl(part, None),
        f"TRL, dataset_num_proc={cores}": lambda: ring.trl(part, cores),
    }
    runs: dict[str, list[Run]] = {name: [] for name in contenders}
    for _ in range(count):
        for name, run in contenders.items():
            runs[name].append(run())
    return {name: min(found, key=lambda run: run.seconds) for name, found in runs.items()}


def whole_file(ring: Ring, file: Path, rows: int) -> dict[str, Run]:
    """Ours alone: all rows, and a tenth of them, whose memory shows whether it grows."""
    tenth = head(file, max(1, rows // 10), "tenth.jsonl")
    tasks = {"check": "check", "check + render + tokenize": "load"}
    found = {f"{name}, a tenth": ring.ours(tenth, task) for name, task in tasks.items()}
    return found | {name: ring.ours(file, task) for name, task in tasks.items()}


def same_tokens(ours: Run, theirs: Run) -> bool:
    """Whether both made the same of the first row, but for what TRL keeps behind the end of an answer's turn."""
    if ours.first is None or theirs.first is None:
        return False
    pairs = [(ours.first[name], theirs.first[name]) for name in ("prompt_ids", "chosen_ids", "rejected_ids")]
    return pairs[0][0] == pairs[0][1] and all(mine == other[: len(mine)] for mine, other in pairs)


def table(title: str, runs: dict[str, Run]) -> None:
    columns = ("", "rows", "seconds", "rows/s", "peak MiB")
    lines = [
        [name, f"{run.rows:,}", f"{run.seconds:.1f}", f"{run.rate:,.0f}", f"{run.peak_bytes / MEBIBYTE:,.0f}"]
        for name, run in runs.items()
    ]
    print_table(title, columns, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--part", type=int, default=20_000, help="rows that both sides read")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-data-") as folder:
        file = Path(folder) / "pairs.jsonl"
        generate(file, options.rows, random.Random(SEED))
        print(f"{options.rows:,} pairs, {file.stat().st_size / options.rows:.0f} bytes a row")
        ring = Ring(Path(folder), tokenizer(Path(folder) / "tokenizer", file))
        beside = rounds(ring, head(file, options.part, "part.jsonl"), options.rounds)
        table(f"The first {options.part:,} rows, {options.rounds} rounds in turn, the fastest each", beside)
        alone = whole_file(ring, file, options.rows)
        table("The whole file", alone)
    ours, default, best = beside.values()
    load = alone["check + render + tokenize"]
    summary: dict[str, Any] = {
        "ratio": ours.rate / default.rate,
        "ratio_best": ours.rate / best.rate,
        "same_tokens": same_tokens(ours, default),
        "rows_per_second": load.rate,
        "checked_rows_per_second": alone["check"].rate,
        "peak_memory_mb": load.peak_bytes / MEBIBYTE,
        "peak_memory_mb_of_a_tenth": alone["check + render + tokenize, a tenth"].peak_bytes / MEBIBYTE,
    }
    write_result("data", summary | {"machine": machine()})
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
