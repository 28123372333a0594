"""Lists in pages, as OpenAI's clients read them: the next page's `after` is the last item's id."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sqlalchemy import Select, SQLColumnExpression, tuple_
from sqlalchemy.orm import InstrumentedAttribute, Session

from control_plane.errors import InvalidRequest
from control_plane.tables import Base

MAX_LIMIT = 100

T = TypeVar("T", bound=Base)


@dataclass(frozen=True)
class Page(Generic[T]):
    items: list[T]
    has_more: bool


def paginate(
    session: Session,
    query: Select[T],
    *,
    item_id: InstrumentedAttribute[str],
    order: tuple[SQLColumnExpression[Any], ...],
    after: str | None,
    limit: int,
    newest_first: bool = True,
    max_limit: int = MAX_LIMIT,
) -> Page[T]:
    """One page of `query`. `order` must tell any two items apart, such as `(Model.created_at, Model.id)`.

    InvalidRequest when `limit` is out of range or `after` names nothing in this list.
    """
    if not 1 <= limit <= max_limit:
        raise InvalidRequest(f"`limit` must be between 1 and {max_limit}, not {limit}.", param="limit")
    if after is not None:
        last = session.execute(query.with_only_columns(*order).where(item_id == after)).one_or_none()
        if last is None:
            raise InvalidRequest(
                f"`after` is {after!r}, which is not in this list; use the id of an item.", param="after"
            )
        place, passed = tuple_(*order), tuple_(*last)
        query = query.where(place < passed if newest_first else place > passed)
    query = query.order_by(*(column.desc() if newest_first else column.asc() for column in order))
    found = list(session.scalars(query.limit(limit + 1)))
    return Page(found[:limit], len(found) > limit)
