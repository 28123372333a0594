"""An iterator that can be told to make its next item early, while a device computes what was made of the last one."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """`source`, one item ahead where `prepare` was called."""

    def __init__(self, source: Iterator[T]) -> None:
        self.source = source
        self.prepared: list[T] = []

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        return self.prepared.pop() if self.prepared else next(self.source)

    def prepare(self) -> None:
        """Makes the next item now, if there is one."""
        if not self.prepared:
            self.prepared.extend(islice(self.source, 1))
