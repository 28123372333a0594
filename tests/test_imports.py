"""The long-lived processes start fast: in a fresh one, none of them loads the training libraries."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

import pytest

TRAINING = ("torch", "transformers", "deepspeed", "peft")
SERVING = ("openai", "sqlalchemy", "psycopg", "redis", "numpy")


@pytest.mark.parametrize("module", ["api.main", "worker.app", "cli.up", "migrations.run"])
def test_no_tensors(module: str) -> None:
    assert loaded(module, TRAINING) == []


def test_a_worker_reads_no_numbers() -> None:
    assert loaded("worker.main", (*TRAINING, "numpy")) == []


def test_the_command_line_loads_what_a_command_runs_when_it_runs_it() -> None:
    assert loaded("cli.main", (*TRAINING, *SERVING)) == []


def loaded(module: str, libraries: Sequence[str]) -> list[str]:
    """Which of the libraries come with it."""
    program = f"import sys, {module}; print(*(name for name in {libraries} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.split()
