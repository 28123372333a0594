"""The long-lived processes start fast: in a fresh one, none of them loads the training libraries."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "deepspeed", "peft")


@pytest.mark.parametrize("module", ["api.main", "worker.app", "worker.main", "cli.main", "cli.up", "migrations.run"])
def test_no_tensors(module: str) -> None:
    program = f"import sys, {module}; print(*(name for name in {HEAVY} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == []
