"""Lists as OpenAI's clients read them: `after` of the next page is the last item's id."""

from __future__ import annotations

from typing import Annotated, Generic, Literal, TypeVar

from fastapi import Query
from pydantic import BaseModel

After = Annotated[str | None, Query(description="The last id of the page before this one.")]
Limit = Annotated[int, Query(ge=1, le=100, description="Items a page.")]


class Item(BaseModel):
    id: str


T = TypeVar("T", bound=Item)


class ListOf(BaseModel, Generic[T]):
    object: Literal["list"] = "list"
    data: list[T]
    has_more: bool
    first_id: str | None
    last_id: str | None


def list_of(items: list[T], has_more: bool) -> ListOf[T]:
    return ListOf[T](
        data=items,
        has_more=has_more,
        first_id=items[0].id if items else None,
        last_id=items[-1].id if items else None,
    )
