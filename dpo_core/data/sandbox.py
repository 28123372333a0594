"""Jinja's sandbox with bounds on what a chat template may take: a stranger wrote it, and everyone's worker runs it.

What is counted are steps and characters, not seconds: a row is refused on every machine or on none. What a filter or a
method of a text makes (`replace`, `center`) counts once it is written, not before.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from jinja2 import Template, nodes
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

PLAIN = frozenset({str, int, float, bool, list, dict, tuple, type(None)})
"""What JSON is made of: the attributes of such a value are those of its type."""

MAX_STEPS = 2**20
"""Rounds of loops in one rendering, and calls, each of which counts as STEPS_OF_A_CALL."""

STEPS_OF_A_CALL = 8

CHARACTERS_EACH, CHARACTERS_MORE = 64, 2**18
"""What a rendering may write, or hold in one value: so many times what it was given, and so many more."""

MAX_BITS = 2**14
"""Of a number."""


class Sandbox(ImmutableSandboxedEnvironment):
    """Decides alike for all values of a plain type, and so decides once. One rendering at a time."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._safe: dict[tuple[type, str], bool] = {}
        self._steps = self._characters = 0
        self.globals.pop("lipsum")
        self.filters["_counted"] = self._counted
        self.filters["_joined"] = self._joined

    def bounded(self, source: str) -> Template:
        """A template for `render`. Raises TemplateSyntaxError."""
        tree = _Bounds().visit(self.parse(source))
        return self.from_string(tree.set_environment(self))

    def render(self, template: Template, given: int, **variables: object) -> str:
        """The text of a `bounded` template; `given` says how many characters its variables have.

        Raises:
            SecurityError: it takes more than it may.
            Exception: what else went wrong in it.
        """
        self._steps, self._characters = MAX_STEPS, CHARACTERS_MORE + CHARACTERS_EACH * given
        size, pieces = 0, []
        for piece in template.generate(**variables):
            size += len(piece)
            self._refuse_size(size)
            pieces.append(piece)
        return "".join(pieces)

    def concat(self, pieces: Iterable[str]) -> str:
        """What a macro or a block wrote."""
        return self._joined(pieces)

    def getattr(self, obj: object, attribute: str) -> object:
        """An item of an object of JSON is found at once: Jinja would first fail to find an attribute of that name."""
        if type(obj) is dict and attribute in obj and not hasattr(dict, attribute):
            return obj[attribute]
        return super().getattr(obj, attribute)

    def is_safe_attribute(self, obj: object, attr: str, value: object) -> bool:
        kind = type(obj)
        if kind not in PLAIN:
            return super().is_safe_attribute(obj, attr, value)
        if (kind, attr) not in self._safe:
            self._safe[kind, attr] = super().is_safe_attribute(obj, attr, value)
        return self._safe[kind, attr]

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        self._step(STEPS_OF_A_CALL)
        if isinstance(obj, LoopContext):  # a recursive loop goes on with other items
            args = tuple(map(self._counted, args))
        return super().call(context, obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if isinstance(left, str | list | tuple) or isinstance(right, str | list | tuple):
            self._refuse_size(_size_of(operator, left, right))
        elif operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
            _refuse_bits(left, right, operator)
        return super().call_binop(context, operator, left, right)

    def _step(self, steps: int = 1) -> None:
        self._steps -= steps
        if self._steps < 0:
            raise SecurityError(f"it takes more than {MAX_STEPS:,} steps")

    def _counted(self, items: Iterable[object]) -> Iterator[object]:
        for item in items:
            self._step()
            yield item

    def _joined(self, parts: Iterable[object]) -> str:
        texts = [str(part) for part in parts]
        self._refuse_size(sum(map(len, texts)))
        return "".join(texts)

    def _refuse_size(self, size: int) -> None:
        if size > self._characters:
            raise SecurityError(f"it writes more than {self._characters:,} characters, far more than it is given")


class _Bounds(NodeTransformer):
    """Has a template count the rounds of its loops, and what `~` makes."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 (jinja2's name)
        self.generic_visit(node)
        node.iter = nodes.Filter(node.iter, "_counted", [], [], None, None, lineno=node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802 (jinja2's name)
        self.generic_visit(node)
        parts = nodes.Tuple(node.nodes, "load", lineno=node.lineno)
        return nodes.Filter(parts, "_joined", [], [], None, None, lineno=node.lineno)


def _size_of(operator: str, left: Any, right: Any) -> int:
    """Characters or items of what comes of two operands, of which one has some."""
    if operator == "+":
        return sum(len(it) for it in (left, right) if isinstance(it, str | list | tuple))
    if operator == "*":
        many, times = (right, left) if isinstance(left, int) else (left, right)
        return len(many) * times if isinstance(times, int) else 0
    return 0


def _refuse_bits(left: int, right: int, operator: str) -> None:
    bits = left.bit_length() * right if operator == "**" else left.bit_length() + right.bit_length()
    if bits > MAX_BITS:
        raise SecurityError(f"it makes a number of more than {MAX_BITS:,} bits")
