"""A conversation that is filled into an outline is what its template writes; what no outline can say is rendered."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpo_core.data.outlines import ATTEMPTS, CHARACTERS, FORMS, TURNS, Outlines
from dpo_core.data.records import Message
from dpo_core.data.template import ChatTemplate, TemplateRefusal
from dpo_core.data.tokenizer import chat_template, special_tokens
from tests.templates import FAMILIES, Family, make_family

EACH = "{% for message in messages %}"
TEXTS = (
    "a",
    "",
    " b ",
    "<think>x</think> y",
    "</think>",
    "<tool_response>",
    "\n\n",
    "5",
    "append",
    "<a>",
    "é\x1c",
    "a" * 40,
)


def outlines(template: ChatTemplate) -> Outlines:
    return template._outlines


def written(template: ChatTemplate, *texts: str, opens: bool = False) -> str:
    """By an outline, if there is one, and as the template renders it: the same."""
    turns = [Message("user" if place % 2 == 0 else "assistant", text) for place, text in enumerate(texts)]
    text = template.render(turns, add_generation_prompt=opens)
    assert text == template._render(turns, opens, None, None)
    return text


def filled(template: ChatTemplate, *texts: str) -> str | None:
    """None where no outline fits."""
    roles = tuple("user" if place % 2 == 0 else "assistant" for place in range(len(texts)))
    return outlines(template).fill((roles, False), texts)


@pytest.mark.parametrize(
    "source",
    [
        EACH + "{{ '<' + message.role + '>' + message.content + '!' }}{% endfor %}",
        EACH + "{{ message['content'] | trim ~ message.role }}{% endfor %}",
        EACH + "{{ message.content.strip() + message.content.rstrip('!') }}{% endfor %}",
        EACH + "{% if '<' in message.content %}{{ message.content }}{% else %}none{% endif %}{% endfor %}",
        EACH + "{% if message.content == 'a' or not message.content %}x{% endif %}{{ message.content }}{% endfor %}",
        EACH + "{% if message.content is string and message.content.startswith('<') %}x{% endif %}{% endfor %}",
        EACH + "{% set c = message.content %}{% if c in ['a', 'b'] or 'a' == c %}{{ c }}{% endif %}{% endfor %}",
        "{% macro m(t) %}[{{ t }}]{% endmacro %}" + EACH + "{{ m(message.content) + m('b') }}{% endfor %}",
        EACH + "{% set b %}({{ message.content }}){% endset %}{{ b }}{% endfor %}",
        "{% set ns = namespace(last='') %}" + EACH + "{% set ns.last = message.content %}{% endfor %}{{ ns.last }}",
        EACH + "{{ loop.last }}{{ message.content }}{{ '' if loop.first else loop.previtem.content }}{% endfor %}",
        EACH + "{{ message.name }}{{ message.content | default('x') }}{{ messages | length }}{% endfor %}",
        EACH + "{% if message.content != 'a' %}{{ message.content }}{% endif %}{% endfor %}",
    ],
)
def test_a_template_is_run_once_for_texts_that_answer_alike(source: str) -> None:
    template = ChatTemplate(source, {})
    written(template, "one text", "another")
    for text in TEXTS:
        for other in TEXTS[:4]:
            written(template, text, other)
    assert filled(template, "some text", "another") == written(template, "some text", "another")


@pytest.mark.parametrize(
    "expression",
    [
        "message.content | upper",
        "message.content | int",
        "message.content | length",
        "message.content | string",
        "message.content | tojson",
        "message.content is sequence",
        "message.content is iterable",
        "message.content[0]",
        "message.content[1:]",
        "messages[message.content]",
        "{}[message.content]",
        "{'5': 1}[message.content]",
        "[message.content]",
        "message",
        "message.content.upper()",
        "message.content.split('a')[-1]",
        "message.content.startswith(message.content)",
        "message.content == messages[1].content",
        "message.content in {'5': 1}",
        "message.content in 'abc'",
        "message.content * 2",
        "message.content < 'b'",
        "'%s' % message.content",
        "'{}'.format(message.content)",
        "''.join([message.content])",
        "message.content.format(1)",
        "(message.content + 'a').strip()",
        "(message.content + 'a') == 'aa'",
        "'x' if message.content + '' else 'y'",
        "message.content | trim('a') | upper",
        "messages | map(attribute='content') | join",
        "messages | sort(attribute='content') | length",
        "message.content.strip(message.role, 1)",
        "message.content + 1",
        "strftime_now('%Y') + message.content",
    ],
)
def test_what_an_outline_can_not_say_is_rendered(expression: str) -> None:
    template = ChatTemplate(EACH + "{{ " + expression + " }}{% endfor %}", {})
    for text in TEXTS:
        try:
            written(template, text, "other")
        except TemplateRefusal as refusal:
            assert "the chat template fails on it" in str(refusal)
    assert filled(template, "a", "other") is None
    assert not outlines(template)._known


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ChatTemplate]:
    made = {}
    for family in FAMILIES:
        folder = make_family(tmp_path_factory.mktemp(family.name), family)
        made[family.name] = ChatTemplate(chat_template(folder) or "", {**special_tokens(folder), **family.variables})
    return made


contents = st.lists(st.sampled_from([*TEXTS, "<|end|>", "</s>", "\t"]), max_size=3).map("".join) | st.text(max_size=8)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
@given(texts=st.lists(contents, min_size=1, max_size=5), opens=st.booleans())
def test_five_families_write_what_they_write(
    templates: dict[str, ChatTemplate], family: Family, texts: list[str], opens: bool
) -> None:
    written(templates[family.name], *texts, opens=opens)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_five_families_have_outlines(templates: dict[str, ChatTemplate], family: Family) -> None:
    written(templates[family.name], "2+2?", "4")
    assert filled(templates[family.name], "3+3?", "6") == written(templates[family.name], "3+3?", "6")


def test_a_refused_conversation_is_refused_though_others_have_an_outline() -> None:
    source = (
        EACH
        + "{% if 'bad' in message.content %}{{ raise_exception('no') }}{% endif %}{{ message.content }}{% endfor %}"
    )
    template = ChatTemplate(source, {})
    assert written(template, "good") == "good"
    for _ in range(2):
        with pytest.raises(TemplateRefusal, match="no"):
            template.render([Message("user", "bad")], add_generation_prompt=False)
    assert filled(template, "fine") == "fine"


def test_the_bounds_of_the_sandbox_hold() -> None:
    start = "{% set ns = namespace(x=messages[0].content) %}"
    template = ChatTemplate(start + "{% for _ in range(40) %}{% set ns.x = ns.x + ns.x %}{% endfor %}", {})
    for _ in range(2):
        with pytest.raises(TemplateRefusal, match="far more than it is given"):
            template.render([Message("user", "abc")], add_generation_prompt=False)
    for source in ("{% for _ in range(70) %}{{ messages[0].content }}{% endfor %}", "x" * (CHARACTERS + 1)):
        template = ChatTemplate(source, {})
        written(template, "a")
        assert filled(template, "a") is None


def test_what_is_kept_is_bounded() -> None:
    asked = EACH + "{% if 'ABC' == message.content %}{% endif %}" * 100 + "{{ message.content }}{% endfor %}"
    many = "".join(f"{{% if 'k{place}' in messages[0].content %}}x{{% endif %}}" for place in range(900))
    for source, fits in ((asked, True), (many, False)):
        template = ChatTemplate(source, {})
        written(template, "a")
        assert (filled(template, "b") is not None) == fits
    template = ChatTemplate(
        "".join(f"{{% if '{sign}' in messages[0].content %}}x{{% endif %}}" for sign in "abcdefgh"), {}
    )
    for number in range(256):
        written(template, "".join(sign for place, sign in enumerate("abcdefgh") if number >> place & 1))
    assert sum(map(len, outlines(template)._known.values())) == ATTEMPTS
    template = ChatTemplate(EACH + "{{ message.content }}{% endfor %}", {})
    for turns in range(1, TURNS + 3):
        written(template, *["a"] * turns)
    assert len(outlines(template)._known) == TURNS
    for number in range(FORMS + 10):
        template.render([Message(f"role{number}", "a")], add_generation_prompt=False)
    assert len(outlines(template)._known) == FORMS
