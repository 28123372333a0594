"""Chat templates: Jinja, in the sandbox, with the settings and globals that transformers gives them.

The same template must make the same text here and in `apply_chat_template`, because that is what the
model will see when it is used.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, time
from typing import NoReturn, TypeVar

from jinja2 import TemplateError, nodes
from jinja2.exceptions import TemplateSyntaxError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser

from dpo_core.data.outlines import Outlines, Tracer, Unclear
from dpo_core.data.records import JsonText, Message
from dpo_core.data.sandbox import SafeNamespace, Sandbox
from dpo_core.errors import user_error

Variable = str | int | float | bool
Environment = TypeVar("Environment", bound=Sandbox)


class TemplateRefusal(Exception):
    """A chat template, or what it made of one row, can't be used; the message says why."""


RESERVED = frozenset({"messages", "tools", "add_generation_prompt"})
"""What a conversation itself gives to the template, so that its variables may not."""


class ChatTemplate:
    """A compiled chat template with the variables that every rendering gets.

    Raises:
        RunError: the template is not valid Jinja.
    """

    def __init__(self, source: str, variables: Mapping[str, Variable], today: date | None = None) -> None:
        """`today` is what `strftime_now` writes, at midnight; None is the day on which this is made."""
        self._today = datetime.combine(today or date.today(), time())
        self._variables = {"documents": None, **variables}
        self.wrote_date = False
        """Whether a rendering since this was last reset asked for today's date."""
        try:
            self._sandbox = self._environment(Sandbox, self._strftime_now)
            self._template = self._sandbox.bounded(source)
            tracer = self._environment(Tracer, _no_outline)
            self._outlines = Outlines(tracer, tracer.bounded(source), self._variables)
        except TemplateSyntaxError as error:
            message = (
                f"The chat template is not valid Jinja: {error.message} (template line {error.lineno}). Correct it."
            )
            raise user_error("invalid_chat_template", message, param="training.chat_template") from error

    def render(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool,
        tools: JsonText | None = None,
        variables: JsonText | None = None,
    ) -> str:
        """The conversation's text; `add_generation_prompt` ends it with the opening of the assistant's turn.

        `variables` are the row's own, and stand before those of every rendering.

        Raises:
            TemplateRefusal: the template raised an error for these messages, takes or writes more than
                `dpo_core.data.sandbox` allows, or a variable has a reserved name.
        """
        if tools is None and variables is None and all(map(_is_plain, messages)):
            return self._by_outline(messages, add_generation_prompt)
        return self._render(messages, add_generation_prompt, tools, variables)

    def _by_outline(self, messages: Sequence[Message], opens: bool) -> str:
        form, texts = (tuple(it.role for it in messages), opens), [it.content for it in messages]
        text = self._outlines.fill(form, texts)
        if text is None:
            text = self._render(messages, opens, None, None)
            self._outlines.learn(form, texts, text)
        return text

    def _render(
        self, messages: Sequence[Message], opens: bool, tools: JsonText | None, variables: JsonText | None
    ) -> str:
        own: dict[str, object] = {} if variables is None else json.loads(variables)
        if taken := RESERVED & own.keys():
            raise TemplateRefusal(f"its own `{min(taken)}` stands among the variables of the chat template")
        given = sum(map(_characters, messages)) + len(tools or "") + len(variables or "")
        try:
            return self._sandbox.render(
                self._template,
                given,
                messages=[_as_dict(message) for message in messages],
                tools=None if tools is None else json.loads(tools),
                add_generation_prompt=opens,
                **{**self._variables, **own},
            )
        except MemoryError as error:
            raise TemplateRefusal("the chat template takes more memory than there is for it") from error
        except Exception as error:  # a template may fail in any way Python can
            raise TemplateRefusal(f"the chat template fails on it: {error}") from error

    def _environment(self, kind: type[Environment], strftime_now: Callable[[str], str]) -> Environment:
        environment = kind(trim_blocks=True, lstrip_blocks=True, extensions=[GenerationBlock, loopcontrols])
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = strftime_now
        environment.globals["dict"] = _make_dict
        environment.globals["namespace"] = SafeNamespace
        return environment

    def _strftime_now(self, form: str) -> str:
        self.wrote_date = True
        return self._today.strftime(form)


def _no_outline(_: str) -> NoReturn:
    """A date is another tomorrow."""
    raise Unclear


def _is_plain(message: Message) -> bool:
    """Whether it has nothing but a role and a content."""
    return (
        message.reasoning is None
        and message.tool_calls is None
        and message.tool_call_id is None
        and message.name is None
    )


def _characters(message: Message) -> int:
    return len(message.content) + len(message.reasoning or "") + len(message.tool_calls or "")


def _as_dict(message: Message) -> dict[str, object]:
    """As `apply_chat_template` hands it over: what isn't given is absent, not None."""
    given: dict[str, object] = {"role": message.role, "content": message.content}
    if message.reasoning is not None:
        given["reasoning_content"] = message.reasoning
    if message.tool_calls is not None:
        given["tool_calls"] = json.loads(message.tool_calls)
    if message.tool_call_id is not None:
        given["tool_call_id"] = message.tool_call_id
    if message.name is not None:
        given["name"] = message.name
    return given


class GenerationBlock(Extension):
    """`{% generation %}…{% endgeneration %}` marks the assistant's text; it renders as what is in it."""

    tags = {"generation"}  # noqa: RUF012 (the attribute's type is jinja2's)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True)).set_lineno(line)


def _make_dict(*args: Mapping[str, object], **kwargs: object) -> dict[str, object]:
    """Stands for the class `dict`, whose attributes a template needs not see."""
    return dict(*args, **kwargs)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Unlike Jinja's own filter, escapes no HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)
