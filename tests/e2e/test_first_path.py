"""A new user's path: README's own commands, as they stand there, on a small model and a file of pairs."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.cli.running import clean
from tests.makers import make_tiny_model, write_preference_file
from tests.service import poll_until

README = Path(__file__).parents[2] / "README.md"
MOST_COMMANDS = 6


@pytest.fixture
def folder() -> Iterator[Path]:
    """Not below pytest's own folder, for the reason that tests/conftest.py gives."""
    with TemporaryDirectory(prefix="dpo-test-first-") as folder:
        yield Path(folder)


def commands() -> list[str]:
    """Those under "Your own model and data", without their comments."""
    block = README.read_text().partition("**Your own model and data**")[2].split("```")[1]
    return [re.sub(r"\s+# .*", "", line) for line in block.strip().splitlines()]


def here(command: str) -> str:
    """README's paths as they are on this machine."""
    return command.replace(".venv/bin/", f"{Path(sys.executable).parent}/")


@contextmanager
def serving(command: str, data: Path) -> Iterator[str]:
    """`dpo up` until the block ends; yields what it printed."""
    output = data.with_suffix(".txt")
    argv = [*shlex.split(here(command)), "--port", "0", "--cpu-slots", "1"]
    with open(output, "w") as sink:
        process = subprocess.Popen(argv, env=environment(data), stdout=sink, stderr=subprocess.STDOUT)
    try:
        poll_until(lambda: process.poll() is not None or (data / "service.json").exists(), "dpo up is ready")
        assert process.poll() is None, output.read_text()
        poll_until(lambda: "In Python:" in output.read_text(), "it has said what to do next")
        yield output.read_text()
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 0, output.read_text()


def environment(data: Path) -> dict[str, str]:
    """`data` stands for the user's own data folder, which a test leaves alone."""
    return clean({"DPO_DATA": str(data), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"})


def run(command: str, folder: Path) -> str:
    """What the command prints; it must succeed."""
    done = subprocess.run(
        shlex.split(here(command)),
        cwd=folder,
        env=environment(folder / "data"),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_readmes_commands_lead_from_a_file_to_an_answer(folder: Path) -> None:
    make_tiny_model(folder / "my-model")
    write_preference_file(folder / "pairs.jsonl", 120)
    up, add, submit, download, generate = commands()
    assert len(commands()) < MOST_COMMANDS, "with git clone"
    with serving(up, folder / "data"):
        assert run(add.replace("/path/to/my-model", str(folder / "my-model")), folder) == "base/my-model\n"
        watched = run(submit, folder)
        job_id, *_, last = watched.splitlines()
        assert re.search(r"held out  loss 0\.6931 → ", watched)
        model = last.split()[-2]
        assert last.split()[-3:-1] == ["download", model]

        (numbers,) = re.findall(r"  all steps \S+ (files get \S+) > \S+\.csv\n", watched)
        assert run(f".venv/bin/dpo {numbers}", folder).startswith("step,train_loss,")

        again = run(f".venv/bin/dpo watch {job_id}", folder)
        assert again.splitlines()[-4:] == watched.splitlines()[-4:]
        run(re.sub(r"default/\S+", model, download), folder)
    answer = run(generate, folder)
    assert re.search(r"""'role': 'assistant', 'content': ['"][^'"]""", answer)  # repr chooses the quotes
