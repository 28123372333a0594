from __future__ import annotations

import pytest

from dpo_core.data.prefix import common_prefix


@pytest.mark.parametrize(
    ("first", "second", "length"),
    [([], [], 0), ([1], [2], 0), ([1, 2], [1, 2], 2), ([1, 2, 3], [1, 2], 2), ([1, 2, 3, 4, 5], [1, 2, 3, 9, 5], 3)],
)
def test_common_prefix(first: list[int], second: list[int], length: int) -> None:
    assert common_prefix(first, second) == length
    assert common_prefix(second, first) == length
