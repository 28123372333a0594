"""The files of other projects go in as they are, and their known defects are named by line."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise

import pytest

from dpo_core.data.formats import read_rows
from dpo_core.data.options import ReadOptions
from dpo_core.data.records import Message, Pair
from dpo_core.spec import Method
from tests.makers import real_data


def defects(name: str, method: Method) -> tuple[int, dict[str, list[int]]]:
    """How many records a file has, and the lines of its problems by code."""
    problems: dict[str, list[int]] = defaultdict(list)
    good = 0
    for record in read_rows(real_data(name), ReadOptions(method)):
        if isinstance(record, Pair) or not hasattr(record, "code"):
            good += 1
        else:
            problems[record.code].append(record.line)
    return good, problems


@pytest.mark.parametrize(
    ("name", "method", "rows"),
    [
        ("orca/validation.jsonl", "dpo", 284),
        ("piqa/piqa_validation_pairs.jsonl", "dpo", 1838),
        ("piqa/piqa_train_pairs.jsonl", "dpo", 16_113),
        ("llama-factory/dpo_en_demo.json", "dpo", 300),
        ("medicalgpt/dpo_zh_500.jsonl", "dpo", 500),
        ("gsm8k/train.jsonl", "supervised", 7473),
    ],
)
def test_files_that_go_in_whole(name: str, method: Method, rows: int) -> None:
    assert defects(name, method) == (rows, {})


def test_the_defects_of_hh_rlhf() -> None:
    assert defects("hh-rlhf/harmless-base_test.jsonl.gz", "dpo") == (
        2303,
        {"empty_answer": [87, 517, 926, 1104], "prompts_differ": [1255, 1689, 1951, 1953, 2037]},
    )
    usable = read_rows(real_data("hh-rlhf/harmless-base_test.jsonl.gz"), ReadOptions("dpo"))
    repeated = [
        pair.line
        for pair in usable
        if isinstance(pair, Pair)
        and any(
            isinstance(a, Message) and isinstance(b, Message) and a.role == b.role for a, b in pairwise(pair.prompt)
        )
    ]
    assert len(repeated) == 4  # of the nine, the others are among `prompts_differ`


@pytest.mark.parametrize("method", ["dpo", "supervised"])
def test_unpaired_rows_are_refused(method: Method) -> None:
    good, problems = defects("llama-factory/kto_en_demo.json", method)
    assert good == 0
    assert {code: len(lines) for code, lines in problems.items()} == {"unpaired": 300}
    assert problems["unpaired"][0] == 2


def test_a_sharegpt_file_in_full() -> None:
    pairs = [
        it for it in read_rows(real_data("llama-factory/dpo_en_demo.json"), ReadOptions("dpo")) if isinstance(it, Pair)
    ]
    assert (pairs[0].line, pairs[1].line) == (2, 18)
    assert sum(pair.prompt[0] == Message("system", pair.prompt[0].content) for pair in pairs) == 80
    assert max(len(pair.prompt) for pair in pairs) == 13
    prompts = [pair.prompt for pair in pairs]
    assert len(prompts) - len(set(prompts)) == 5
