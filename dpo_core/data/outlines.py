"""What a chat template writes for conversations of one form, found out once and filled in for each of them.

A template is run with marks in place of the turns' texts. A mark is no text: it can be written, joined to others and
stripped, and it answers a few questions as its text would; the answers are noted. Whatever else a template does with a
mark ends the attempt, and conversations are rendered as ever. What comes of it is an outline: pieces of text and marks.

Of a conversation a template sees its form and its texts, and of these no more than the answers. So for another one of
that form, whose texts give the same answers, it goes the same way and writes the outline with those texts in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

from jinja2 import Template, TemplateRuntimeError, nodes
from jinja2.compiler import CodeGenerator
from jinja2.runtime import Context

from dpo_core.data.sandbox import CHARACTERS_EACH, MAX_STEPS, Sandbox

Method = Callable[..., Any]
Step = tuple[int, Method, tuple[str, ...]]
"""Something done with a value: its place, what, and with which further texts."""

Form = tuple[tuple[str, ...], bool]
"""The turns' roles, and whether the opening of an answer follows."""

ATTEMPTS = 8
"""To make an outline of one form: several may be needed, one for each way that its texts send a template."""

FORMS, TURNS = 256, 64
"""So many forms, of so many turns at most, have outlines."""

MARKS, CHARACTERS = CHARACTERS_EACH, 2**14
"""Of a template's own in one outline. Both are within what the sandbox allows any text: nothing is counted again."""

NOTE_CHARACTERS = 16
"""What a note counts as, beside the text that is asked for."""

TURNED: dict[str, Method] = {"strip": str.strip, "lstrip": str.lstrip, "rstrip": str.rstrip}
"""What may become of a text: no more than it was."""

ASKED: dict[str, Method] = {"startswith": str.startswith, "endswith": str.endswith}

FILTERS = frozenset({"_counted", "_joined", "_made", "count", "default", "length", "list", "tojson", "trim"})
TESTS = frozenset({"defined", "undefined", "none", "true", "false", "boolean", "mapping", "number", "string"})
"""Those that take a mark for the text that it stands for, or fail on it; others could take it for something else."""


class Unclear(BaseException):
    """A template does with a text what no outline can say. Not an Exception: Jinja passes over some of those."""


def _unclear(*_: object, **__: object) -> NoReturn:
    raise Unclear


def _no_outline(*_: object, **__: object) -> NoReturn:
    """In the place of a filter or a test. An Exception, because Jinja tries filters out when it compiles a template."""
    raise TemplateRuntimeError("no outline says what this makes of a text")


_NEVER: Any = _unclear


class Opaque:
    """Stands for a text that is not known."""

    __str__ = __repr__ = __format__ = __iter__ = __len__ = __getitem__ = __contains__ = __bool__ = _NEVER
    __eq__ = _NEVER
    __hash__ = _NEVER


@dataclass(frozen=True, slots=True)
class Outline:
    """Values are the turns' texts, then those that come of `turned`; numbers are their places."""

    turned: tuple[Step, ...]
    asked: tuple[tuple[Step, bool], ...]
    pieces: tuple[str | int, ...]

    def fill(self, texts: Sequence[str]) -> str | None:
        """The text of a conversation; None if one of its texts answers otherwise."""
        values = list(texts)
        for place, method, given in self.turned:
            values.append(method(values[place], *given))
        for (place, method, given), answer in self.asked:
            if method(values[place], *given) is not answer:
                return None
        return "".join([values[piece] if type(piece) is int else piece for piece in self.pieces])  # type: ignore[misc]


class _Trace:
    """What happens to the texts of one conversation."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.values = list(texts)
        self.turned: list[Step] = []
        self.asked: dict[Step, bool] = {}
        self._left = CHARACTERS

    def marks(self) -> list[Mark]:
        return [Mark(self, place) for place in range(len(self.values))]

    def turn(self, place: int, method: Method, *given: object) -> Mark:
        step = self._noted(place, method, given)
        self.values.append(method(self.values[place], *step[2]))
        self.turned.append(step)
        return Mark(self, len(self.values) - 1)

    def ask(self, place: int, method: Method, *given: object) -> bool:
        step = self._noted(place, method, given)
        answer: bool = method(self.values[place], *step[2])
        self.asked[step] = answer
        return answer

    def _noted(self, place: int, method: Method, given: tuple[object, ...]) -> Step:
        texts = tuple(it for it in given if type(it) is str)
        self._left -= NOTE_CHARACTERS + sum(map(len, texts))
        if len(texts) < len(given) or self._left < 0:
            raise Unclear
        return place, method, texts


class Mark(Opaque):
    """One of the trace's values."""

    def __init__(self, trace: _Trace, place: int) -> None:
        self.trace = trace
        self.place = place

    def method(self, name: str) -> Method:
        """Of a text, as a template gets it."""
        if name in TURNED:
            return partial(self.trace.turn, self.place, TURNED[name])
        if name in ASKED:
            return partial(self.trace.ask, self.place, ASKED[name])
        raise Unclear

    def __contains__(self, part: object) -> bool:
        return self.trace.ask(self.place, str.__contains__, part)

    def __eq__(self, other: object) -> bool:
        return self.trace.ask(self.place, str.__eq__, other)

    def __bool__(self) -> bool:
        return self.trace.ask(self.place, bool)

    __hash__ = _NEVER


class Joined(Opaque):
    """Texts and marks, one behind the other."""

    def __init__(self, parts: Iterable[object]) -> None:
        self.parts: list[str | Mark] = []
        self._marks = self._own = 0
        for part in parts:
            for piece in part.parts if isinstance(part, Joined) else [part]:
                self._add(piece if isinstance(piece, Mark) else str(piece))

    def _add(self, piece: str | Mark) -> None:
        self._marks += isinstance(piece, Mark)
        self._own += len(piece) if isinstance(piece, str) else 0
        if self._marks > MARKS or self._own > CHARACTERS:
            raise Unclear
        if isinstance(piece, str) and self.parts and isinstance(self.parts[-1], str):
            self.parts[-1] += piece
        else:
            self.parts.append(piece)


class _Writes(CodeGenerator):
    """Has what a template writes go through `Tracer.written`, where a plain template has `str`."""

    def _output_child_pre(self, node: nodes.Expr, frame: Any, finalize: Any) -> None:
        if frame.eval_ctx.volatile or frame.eval_ctx.autoescape:
            super()._output_child_pre(node, frame, finalize)
        else:
            self.write("environment.written(")


class Tracer(Sandbox):
    """Runs a template on marks. Its options are those of the sandbox that it stands for."""

    code_generator_class = _Writes

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.filters = {name: it if name in FILTERS else _no_outline for name, it in self.filters.items()}
        self.filters["trim"] = self._trim
        self.tests = {name: it if name in TESTS else _no_outline for name, it in self.tests.items()}
        self.tests["string"] = lambda value: isinstance(value, str | Opaque)

    def outline(self, template: Template, texts: Sequence[str], roles: Sequence[str], **variables: object) -> Outline:
        """Raises Unclear, and whatever the template raises."""
        trace = _Trace(texts)
        messages = [{"role": role, "content": mark} for role, mark in zip(roles, trace.marks(), strict=True)]
        self._steps, self._characters = MAX_STEPS, CHARACTERS
        written = Joined(template.root_render_func(template.new_context({**variables, "messages": messages})))
        pieces = [it.place if isinstance(it, Mark) else it for it in written.parts]
        return Outline(tuple(trace.turned), tuple(trace.asked.items()), tuple(pieces))

    def written(self, value: object) -> object:
        return value if isinstance(value, Opaque) else str(value)

    def getattr(self, obj: object, attribute: str) -> object:
        if isinstance(obj, Opaque):
            return obj.method(attribute) if isinstance(obj, Mark) else _unclear()
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(obj, Opaque) or isinstance(argument, Opaque):
            raise Unclear
        return super().getitem(obj, argument)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if isinstance(left, Opaque) or isinstance(right, Opaque):
            if operator == "+" and isinstance(left, str | Opaque) and isinstance(right, str | Opaque):
                return Joined([left, right])
            raise Unclear
        return super().call_binop(context, operator, left, right)

    def _joined(self, parts: Iterable[object]) -> Any:
        parts = list(parts)
        return Joined(parts) if any(isinstance(part, Opaque) for part in parts) else super()._joined(parts)

    def _trim(self, value: object, *given: str) -> object:
        if isinstance(value, Mark):
            return value.method("strip")(*given)
        return value.strip(*given) if type(value) is str else _unclear()


class Outlines:
    """Of a template, by form; `write` is how it renders without."""

    def __init__(self, tracer: Tracer, template: Template, variables: Mapping[str, object]) -> None:
        self._tracer = tracer
        self._template = template
        self._variables = variables
        self._known: dict[Form, list[Outline]] = {}
        self._attempts: dict[Form, int] = {}

    def fill(self, form: Form, texts: Sequence[str]) -> str | None:
        """The conversation's text, if an outline fits it."""
        for outline in self._known.get(form, ()):
            if (text := outline.fill(texts)) is not None:
                return text
        return None

    def learn(self, form: Form, texts: Sequence[str], text: str) -> None:
        """Makes an outline of a conversation that became `text`, where that can be done."""
        attempts = self._attempts.get(form, 0)
        if attempts >= ATTEMPTS or len(texts) > TURNS or (not attempts and len(self._attempts) >= FORMS):
            return
        self._attempts[form] = attempts + 1
        roles, opens = form
        try:
            outline = self._tracer.outline(
                self._template, texts, roles, tools=None, add_generation_prompt=opens, **self._variables
            )
        except (Unclear, Exception):  # noqa: BLE001 (a template may fail in any way Python can)
            return
        if outline.fill(texts) == text:
            self._known.setdefault(form, []).append(outline)
