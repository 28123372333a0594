"""One model and one set of pairs, in the files that each contender reads.

    FOLDER/model/       a Llama with random weights, tokenizer.json and its config
    FOLDER/pairs.jsonl  what this project trains on: text, rendered by the product itself
    FOLDER/tokens.json  the same pairs as token ids, in the order in which they are trained on: for peers

They are written in a process of their own: whoever starts the contenders stays small, because a process inherits
the peak memory of the one that started it.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from benchmarks.lengths import PairLengths
from benchmarks.shape import Shape, write_model
from dpo_core.process import die_with

if TYPE_CHECKING:
    from dpo_core.data.records import TokenItem

P = ParamSpec("P")
T = TypeVar("T")
SEED = 1
"""Of weights, lengths, words, and of the order in which pairs are trained on."""

HH_RLHF = "hh-rlhf/harmless-base_test.jsonl.gz"
MINIMIND = "tokenizers/minimind"
SPECIAL = 3
"""Special tokens of the drawn vocabulary: padding, unknown, end of turn."""


@dataclass(frozen=True, slots=True)
class Workload:
    folder: Path
    shape: Shape
    batch_size: int
    max_length: int
    """Tokens a sequence; longer ones of the real pairs lose their oldest turns, drawn ones are not that long."""

    @property
    def model(self) -> Path:
        return self.folder / "model"

    @property
    def pairs(self) -> Path:
        return self.folder / "pairs.jsonl"

    @property
    def tokens(self) -> Path:
        return self.folder / "tokens.json"

    def lengths(self) -> list[PairLengths]:
        """Of every pair, in the order of training."""
        return [
            PairLengths(len(row["prompt_ids"]), len(row["chosen_ids"]), len(row["rejected_ids"]))
            for row in json.loads(self.tokens.read_bytes())
        ]

    def steps(self) -> list[list[PairLengths]]:
        """The lengths, batch by batch."""
        lengths = self.lengths()
        return [lengths[start : start + self.batch_size] for start in range(0, len(lengths), self.batch_size)]


def real_data() -> Path | None:
    """The folder of real data, if it holds hh-rlhf and the minimind tokenizer. CONTRIBUTING.md says what they are."""
    root = Path(os.environ.get("DPO_TEST_DATA", Path(__file__).parents[1] / "shared" / "data"))
    return root if (root / HH_RLHF).exists() and (root / MINIMIND / "tokenizer.json").exists() else None


def build_real(workload: Workload, root: Path, count: int) -> None:
    """Writes the workload with `count` pairs of hh-rlhf, taken at random, and the minimind tokenizer."""
    apart(_build_real, workload, root, count)


def build_drawn(workload: Workload, lengths: list[PairLengths], *, device: str = "cpu", dtype: str = "float32") -> None:
    """Writes the workload with pairs of random words that have these lengths; every word is one token."""
    apart(_build_drawn, workload, lengths, device, dtype)


def apart(function: Callable[P, T], *arguments: P.args, **options: P.kwargs) -> T:
    """Calls `function` in a process of its own."""
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=die_with, initargs=(os.getpid(),)) as process:
        return process.submit(function, *arguments, **options).result()


def _build_real(workload: Workload, root: Path, count: int) -> None:
    workload.folder.mkdir(parents=True)
    write_model(workload.shape, workload.model, seed=SEED)
    for file in (root / MINIMIND).glob("tokenizer*"):
        shutil.copyfile(file, workload.model / file.name)
    good = _items(workload, root / HH_RLHF)
    taken = {item.line for item in random.Random(SEED).sample(good, count)}
    with gzip.open(root / HH_RLHF, "rt", encoding="utf-8") as rows:
        workload.pairs.write_text("".join(row for number, row in enumerate(rows, start=1) if number in taken))
    _write_tokens(workload)


def _build_drawn(workload: Workload, lengths: list[PairLengths], device: str, dtype: str) -> None:
    workload.folder.mkdir(parents=True)
    write_model(workload.shape, workload.model, seed=SEED, device=device, dtype=dtype)
    _write_tokenizer(workload.shape.vocabulary, workload.model)
    words = random.Random(SEED)
    with open(workload.pairs, "w", encoding="utf-8") as file:
        for pair in lengths:
            file.write(json.dumps(_row(pair, workload.shape.vocabulary, words)) + "\n")
    _write_tokens(workload)


def _row(pair: PairLengths, vocabulary: int, words: random.Random) -> dict[str, str]:
    """A pair of that many random words; the end of turn is each answer's last token."""

    def text(count: int) -> list[str]:
        return [f"w{words.randrange(SPECIAL, vocabulary)}" for _ in range(count)]

    # The answers differ from their first token on, so that the prompt is all that they share.
    first = words.randrange(SPECIAL, vocabulary - 1)
    chosen, rejected = (f"w{first}", *text(pair.chosen - 2)), (f"w{first + 1}", *text(pair.rejected - 2))
    return {
        "prompt": " ".join(text(pair.prompt)),
        "chosen": " " + " ".join(chosen),
        "rejected": " " + " ".join(rejected),
    }


def _write_tokenizer(vocabulary: int, folder: Path) -> None:
    """`w17` is token 17; the first three are special."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    names = ["<pad>", "<unk>", "<end>"] + [f"w{index}" for index in range(SPECIAL, vocabulary)]
    words = {name: index for index, name in enumerate(names)}
    tokenizer = Tokenizer(models.WordLevel(vocab=words, unk_token="<unk>"))  # noqa: S106 (no password)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names[:SPECIAL]])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<end>", "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def _items(workload: Workload, file: Path) -> Sequence[TokenItem]:
    """The rows of a file as the product itself renders and cuts them."""
    from dpo_core.data.dataset import load
    from dpo_core.data.options import ReadOptions
    from dpo_core.data.render import Renderer

    table = workload.folder / f"{file.name}.safetensors"
    return load([file], ReadOptions("dpo"), partial(Renderer, workload.model), workload.max_length, table)


def _write_tokens(workload: Workload) -> None:
    """The token ids that the product itself makes of the pairs, in the order in which it trains on them."""
    from dpo_core.batches import Sampler
    from dpo_core.data.records import TokenPair

    items = _items(workload, workload.pairs)
    sampler = Sampler(len(items), workload.batch_size, SEED)
    rows = []
    for step in range(sampler.steps_per_epoch):
        for index in sampler.batch(step):
            item = items[index]
            assert isinstance(item, TokenPair)
            assert item.chosen[: item.chosen_prompt] == item.rejected[: item.rejected_prompt]
            rows.append(
                {
                    "prompt_ids": item.chosen[: item.chosen_prompt],
                    "chosen_ids": item.chosen[item.chosen_prompt :],
                    "rejected_ids": item.rejected[item.rejected_prompt :],
                }
            )
    workload.tokens.write_text(json.dumps(rows))
