"""Items come in order and once, whether they were made early or not."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dpo_core.ahead import Ahead


def test_prepared_items_come_in_order_and_once() -> None:
    made = []

    def source() -> Iterator[int]:
        for number in range(4):
            made.append(number)
            yield number

    ahead = Ahead(source())
    assert made == []
    ahead.prepare()
    ahead.prepare()
    assert made == [0]
    assert [next(ahead), next(ahead)] == [0, 1]
    ahead.prepare()
    assert made == [0, 1, 2]
    assert list(ahead) == [2, 3]
    ahead.prepare()
    with pytest.raises(StopIteration):
        next(ahead)
