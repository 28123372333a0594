"""The reader on mutated files of every kind: no crash, and no memory above a bound (`fuzz_reader.py`)."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from tests.dpo_core.data import fuzz_reader

CALL = {"id": "c", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
USER = {"role": "user", "content": "What is 1+1? é😀\n"}
ANSWER = [
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "2", "tool_call_id": "c"},
    {"role": "assistant", "content": "2", "reasoning_content": "easy"},
]
WRONG = {"role": "assistant", "content": "3"}
ROWS: list[dict[str, object]] = [
    {"input": {"messages": [USER]}, "preferred_output": ANSWER, "non_preferred_output": [WRONG], "tools": []},
    {"prompt": "q", "chosen": "a", "rejected": "b", "system": "s"},
    {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
    {"conversations": [{"from": "human", "value": "q"}], "chosen": {"from": "gpt", "value": "a"}, "rejected": "b"},
    {"question": "q", "history": [["x", "y"]], "response_chosen": "a", "response_rejected": "b"},
    {"prompt": "q", "answers": [{"text": "a", "score": 1}, {"text": "b", "score": 2}, {"text": "c", "score": "3"}]},
    {"messages": [USER, *ANSWER], "chat_template_kwargs": {"enable_thinking": True}},
]


def write_files(folder: Path) -> Path:
    """A whole file of every kind."""
    folder.mkdir()
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in ROWS).encode()
    array = json.dumps(ROWS, indent=1).encode()
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["prompt", "chosen", "rejected", "system"])
    writer.writerows([json.dumps([USER]), json.dumps(ANSWER), f'say "{number}"', "s"] for number in range(20))
    table = pa.table({"prompt": [[USER]] * 50, "chosen": [ANSWER[2:]] * 50, "rejected": [str(n) for n in range(50)]})
    pq.write_table(table, folder / "parquet", row_group_size=20)
    contents = {"jsonl": lines, "array": array, "csv": text.getvalue().encode()}
    packed = {f"{name}.gz": gzip.compress(it * 20, mtime=0) for name, it in contents.items()}
    packed |= {f"{name}.zst": zstandard.compress(it * 20) for name, it in contents.items()}
    for name, content in (contents | packed).items():
        (folder / name).write_bytes(content)
    return folder


def fuzz(folder: Path, seed: int, examples: int) -> None:
    program = [sys.executable, "-m", "tests.dpo_core.data.fuzz_reader", str(folder), str(seed), str(examples)]
    done = subprocess.run(program, capture_output=True, text=True, cwd=Path(__file__).parents[3], check=False)
    what = "\n".join(line[:300] for line in done.stderr.splitlines()[-80:])  # a falsifying example has long lines
    assert done.returncode == 0, f"seed {seed}, {examples} examples:\n{done.stdout}\n{what}"


def test_every_whole_file_is_read(tmp_path: Path) -> None:
    for path in write_files(tmp_path / "files").iterdir():
        fuzz_reader.read_whole(path, fuzz_reader.ReadOptions("dpo"))


def test_mutated_files(tmp_path: Path) -> None:
    fuzz(write_files(tmp_path / "files"), seed=20, examples=60)


@pytest.mark.long
def test_mutated_files_for_five_minutes(tmp_path: Path) -> None:
    files = write_files(tmp_path / "files")
    generator, until = random.Random(), time.monotonic() + 300
    while time.monotonic() < until:
        seed = generator.randrange(2**32)
        fuzz(files, seed, examples=400)


def test_a_line_of_a_gibibyte_is_not_held(tmp_path: Path) -> None:
    """A sparse file: a gibibyte of NUL bytes behind the first sign costs no room on the disk."""
    for begin in (b'{"prompt": "', b'[{"prompt": "', b"prompt,chosen\nq,"):
        path = tmp_path / "file"
        with path.open("wb") as file:
            file.write(begin)
            file.truncate(2**30)
        program = (
            "import pathlib, sys\n"
            "from dpo_core.data.formats import read_rows\n"
            "from dpo_core.data.options import ReadOptions\n"
            "print([it.code for it in read_rows(pathlib.Path(sys.argv[1]), ReadOptions('dpo'))])\n"
            # Its own peak: ru_maxrss would start at that of the process that started it.
            "status = pathlib.Path('/proc/self/status').read_text()\n"
            "print(status.split('VmHWM:')[1].split()[0])\n"
        )
        done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
        codes, kilobytes = done.stdout.splitlines()
        assert codes in ("['line_too_long']", "['truncated_array']", "['row_too_long']")
        assert int(kilobytes) < 200 * 1024
