"""Jinja's sandbox with bounds on what a chat template may take: a stranger wrote it, and everyone's worker runs it.

What is counted are steps and characters, not seconds: a row is refused on every machine or on none. What a filter or a
method of a text makes (`replace`, `center`) counts as soon as it is made; until then, the bound on the process's memory
holds (parallel.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from types import BuiltinMethodType
from typing import Any

from jinja2 import Template, nodes
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

PLAIN = frozenset({str, int, float, bool, list, dict, tuple, type(None)})
"""What JSON is made of: the attributes of such a value are those of its type."""

OF_TEXTS = frozenset(name for name in dir(str) if not name.startswith("_")) - {"format", "format_map"}
"""Attributes of a text that may be used as they are; the sandbox has its own for the two."""

OF_OBJECTS = frozenset(dir(dict))

MAX_STEPS = 2**20
"""Rounds of loops in one rendering, and calls, each of which counts as STEPS_OF_A_CALL."""

STEPS_OF_A_CALL = 8

CHARACTERS_EACH, CHARACTERS_MORE = 64, 2**18
"""What a rendering may write, or hold in one value: so many times what it was given, and so many more."""

MAX_BITS = 2**14
"""Of a number."""


class SafeNamespace(Namespace):
    """Jinja's `namespace` without names that begin with an underscore: no template reaches Python's own."""

    def __init__(self, *args: Mapping[str, object], **kwargs: object) -> None:
        super().__init__()
        for name, value in dict(*args, **kwargs).items():
            self[name] = value

    def __setitem__(self, name: str, value: object) -> None:
        if name.startswith("_"):
            raise SecurityError(f"a chat template may not set the attribute {name!r} of a namespace")
        super().__setitem__(name, value)


OWN = (SafeNamespace, LoopContext)
"""Types of Jinja's that templates ask often; what they say, if it is PLAIN, may be used as it is."""


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
        self.filters["_made"] = self._made

    def bounded(self, source: str) -> Template:
        """A template for `render`. Raises TemplateSyntaxError."""
        tree = _Bounds().visit(self.parse(source))
        template = self.from_string(tree.set_environment(self))
        template.globals = dict(template.globals)  # each rendering copies them, a ChainMap much slower
        return template

    def render(self, template: Template, given: int, **variables: object) -> str:
        """The text of a `bounded` template; `given` says how many characters its variables have.

        Raises:
            SecurityError: it takes more than it may.
            Exception: what else went wrong in it.
        """
        self._steps, self._characters = MAX_STEPS, CHARACTERS_MORE + CHARACTERS_EACH * given
        size, pieces = 0, []
        for piece in template.root_render_func(template.new_context(variables)):
            size += len(piece)
            if size > self._characters:
                self._refuse_size(size)
            pieces.append(piece)
        return "".join(pieces)

    def concat(self, pieces: Iterable[str]) -> str:
        """What a macro or a block wrote."""
        return self._joined(pieces)

    def getattr(self, obj: object, attribute: str) -> object:
        """What Jinja's own finds, but sooner where the value's type tells enough."""
        kind = type(obj)
        if kind is dict and attribute not in OF_OBJECTS:  # Jinja would first fail to find an attribute of that name
            return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)  # type: ignore[operator, index]
        if kind is str and attribute in OF_TEXTS:
            return getattr(obj, attribute)
        if kind in OWN and not attribute.startswith("_"):
            value = getattr(obj, attribute, None)
            if value is not None and type(value) in PLAIN:
                return value
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
        if type(obj) is BuiltinMethodType and type(obj.__self__) is str:  # of a text: safe, and asks for no context
            kwargs.pop("_block_vars", None)
            kwargs.pop("_loop_vars", None)
            return self._made(obj(*args, **kwargs))
        if isinstance(obj, LoopContext):  # a recursive loop goes on with other items
            args = tuple(map(self._counted, args))
        return self._made(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "+" and type(left) is str and type(right) is str:
            self._refuse_size(len(left) + len(right))
            return left + right
        if isinstance(left, str | list | tuple) or isinstance(right, str | list | tuple):
            self._refuse_size(_size_of(operator, left, right))
        elif operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
            _refuse_bits(left, right, operator)
        return super().call_binop(context, operator, left, right)

    def _made(self, value: Any) -> Any:
        """What a filter or a call made, if it is not too large."""
        if isinstance(value, str | list | tuple) and len(value) > self._characters:
            self._refuse_size(len(value))
        return value

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
    """Has a template count the rounds of its loops, and what `~` and filters make."""

    def visit_Filter(self, node: nodes.Filter) -> nodes.Node:  # noqa: N802 (jinja2's name)
        self.generic_visit(node)
        return nodes.Filter(node, "_made", [], [], None, None, lineno=node.lineno)

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
