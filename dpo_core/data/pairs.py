"""Pairs out of other sequences, each made when it is asked for: what a reference pass goes through."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

from dpo_core.data.records import TokenItem, TokenPair


class _Pairs(Sequence[TokenPair]):
    """A slice is a list: it holds its pairs."""

    @overload
    def __getitem__(self, index: int) -> TokenPair: ...
    @overload
    def __getitem__(self, index: slice) -> list[TokenPair]: ...
    def __getitem__(self, index: int | slice) -> TokenPair | list[TokenPair]:
        if isinstance(index, slice):
            return [self._pair(place) for place in range(*index.indices(len(self)))]
        return self._pair(range(len(self))[index])

    def _pair(self, place: int) -> TokenPair:
        raise NotImplementedError


class Joined(_Pairs):
    """All items of several splits, one behind the other. They are pairs."""

    def __init__(self, *splits: Sequence[TokenItem]) -> None:
        self._splits = splits

    def __len__(self) -> int:
        return sum(map(len, self._splits))

    def _pair(self, place: int) -> TokenPair:
        for items in self._splits:
            if place < len(items):
                item = items[place]
                if not isinstance(item, TokenPair):
                    raise TypeError("the split holds examples, not pairs")
                return item
            place -= len(items)
        raise IndexError(place)


class Picked(_Pairs):
    """Some pairs of another sequence, in the order of `places`."""

    def __init__(self, pairs: Sequence[TokenPair], places: Sequence[int]) -> None:
        self._pairs = pairs
        self._places = places

    def __len__(self) -> int:
        return len(self._places)

    def _pair(self, place: int) -> TokenPair:
        return self._pairs[self._places[place]]
