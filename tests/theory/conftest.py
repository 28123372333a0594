"""What docs/dpo.md draws is computed once, and is what these tests judge."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from illustrated.experiment import Results, run


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Models of 3,424 weights: a second thread would only be waited for."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="package")
def results(one_thread: None) -> Results:
    return run()
