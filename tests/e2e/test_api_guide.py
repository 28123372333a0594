"""The Python of docs/api.md, one block after the other as a reader would paste them, against a running service."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.makers import write_preference_file
from tests.service import Service

GUIDE = Path(__file__).parents[2] / "docs" / "api.md"


def blocks() -> list[str]:
    return [part.partition("```")[0] for part in GUIDE.read_text(encoding="utf-8").split("```python\n")[1:]]


def test_the_guides_python_runs_as_written(running: Service, tmp_path: Path) -> None:
    write_preference_file(tmp_path / "pairs.jsonl", 40)
    uploads, downloads = blocks()
    program = uploads + downloads + "print(type(model).__name__)\n"
    for written, here in (
        ("http://127.0.0.1:8000", running.url),
        ("sk-dpo-…", running.key),
        ("base/my-model", "base/tiny"),
    ):
        assert written in program
        program = program.replace(written, here)
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "LlamaForCausalLM"
