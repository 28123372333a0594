"""Turns pydantic's errors into one sentence that a person can act on."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from control_plane.errors import InvalidRequest

M = TypeVar("M", bound=BaseModel)
MOST_NAMES_BESIDE_A_HINT = 12
"""Who is told the name that was meant needs no list of forty."""


def validated(model: type[M], data: object, where: str | None = None) -> M:
    """`data` as `model`. InvalidRequest whose `param` is the field's path, such as "training.beta".

    `where`: the path of `data` in the request.
    """
    try:
        return model.model_validate(data)
    except ValidationError as failure:
        refused = _first_problem(failure, model, data)
        if where is not None:
            refused.param = f"{where}.{refused.param}" if refused.param else where
        raise refused from None


def json_object(body: object) -> dict[str, Any]:
    """The body of a request. Raises InvalidRequest for any other JSON value."""
    if not isinstance(body, dict):
        raise InvalidRequest("The body must be a JSON object.", code="invalid_value")
    return body


def nearest(name: str, known: Iterable[str]) -> str:
    """A sentence with the known name most like `name`, or an empty string."""
    found = get_close_matches(name, list(known), n=1)
    return f' Did you mean "{found[0]}"?' if found else ""


def _first_problem(failure: ValidationError, model: type[BaseModel], data: object) -> InvalidRequest:
    errors = failure.errors(include_url=False)
    unknown = [error for error in errors if error["type"] == "extra_forbidden"]
    error = (unknown or errors)[0]
    path = _path(error, data)
    param = ".".join(path)
    if error["type"] == "extra_forbidden":
        where = f"in {'.'.join(path[:-1])}" if path[:-1] else "of this request"
        known = _fields(model, path[:-1])
        hint = _elsewhere(model, path) or nearest(path[-1], known)
        others = "" if hint and len(known) > MOST_NAMES_BESIDE_A_HINT else f" Known: {', '.join(known)}."
        return InvalidRequest(
            f'There is no field "{path[-1]}" {where}.{hint}{others}', param=param, code="unknown_field"
        )
    if error["type"] == "refused":
        field = error["ctx"]["field"]
        param = ".".join([*path, field] if field else path)
        return InvalidRequest(error["msg"], param=param, code="invalid_value")
    if error["type"] == "missing":
        return InvalidRequest(f'"{param}" is missing.', param=param, code="missing_field")
    wishes = list(dict.fromkeys(_wish(other["msg"]) for other in errors if _path(other, data) == path))
    if all(wish.startswith("be ") for wish in wishes):
        wishes[1:] = [wish.removeprefix("be ") for wish in wishes[1:]]
    given = "" if isinstance(error["input"], dict | list) else f", not {error['input']!r}"
    return InvalidRequest(f'"{param}" must {" or ".join(wishes)}{given}.', param=param or None, code="invalid_value")


def _path(error: ErrorDetails, data: object) -> list[str]:
    """The part of pydantic's location that is in the request: a union's branches are not."""
    path: list[str] = []
    value: Any = data
    for part in error["loc"]:
        if isinstance(value, dict) and (part in value or error["type"] == "missing"):
            path.append(str(part))
            value = value.get(part)
        elif isinstance(value, list) and isinstance(part, int):
            path.append(str(part))
            value = value[part]
    return path


def _fields(model: type[BaseModel], path: list[str]) -> list[str]:
    """The field names of the model at `path` inside `model`; a place in a list leads to no other model."""
    for name in path:
        if name in model.model_fields:
            model = next(kind for kind in _models_in(model.model_fields[name].annotation))
    return list(model.model_fields)


def _elsewhere(model: type[BaseModel], path: list[str]) -> str:
    """A sentence for a field that stands beside the object it belongs to, or an empty string."""
    if len(path) > 1:
        return ""
    for name, field in model.model_fields.items():
        if any(path[0] in inner.model_fields for inner in _models_in(field.annotation)):
            return f' It belongs into "{name}": write {{"{name}": {{"{path[0]}": ...}}}}.'
    return ""


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [kind for part in getattr(annotation, "__args__", ()) for kind in _models_in(part)]


def _wish(message: str) -> str:
    """What the value must do: "be a valid integer", "have at most 16 items"."""
    subject, should, rest = message.partition(" should ")
    if should and " " not in subject:
        return rest.replace(" after validation", "").partition(", not ")[0]
    text = message.removeprefix("Value error, ")
    return f"be {text[:1].lower()}{text[1:]}"
