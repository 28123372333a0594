"""What is odd about a rendered row is said with its line, and nothing is said of a row that is as it should be."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dpo_core.data.findings import FINDINGS
from dpo_core.data.records import JsonText, Message, Pair
from dpo_core.data.render import Renderer
from dpo_core.data.template import TemplateRefusal
from tests.dpo_core.data.conversations import TOOLS, call
from tests.makers import CHAT_TEMPLATE, make_tokenizer

SYSTEM = Message("system", "You are brief.")
PROMPT = (SYSTEM, Message("user", "Weather?"))
CALLING = (
    Message("assistant", "look", tool_calls=call("Paris")),
    Message("tool", "sunny"),
    Message("assistant", "Sun"),
)
PAIR = Pair(7, PROMPT, (Message("assistant", "Sun"),), (Message("assistant", "Rain"),))
TURNS = replace(PAIR, chosen=CALLING)
TOOL_TEMPLATE = "{{ tools | tojson if tools }}" + CHAT_TEMPLATE.replace(
    "message.content +", "message.content + (message.tool_calls | tojson if message.tool_calls else '') +"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tokenizer(tmp_path_factory.mktemp("chat"))


def found(folder: Path, template: str, pair: Pair) -> set[str]:
    renderer = Renderer(folder, template)
    renderer.pair(pair)
    found = renderer.take_findings()
    assert all(finding.lines == [7] and finding.message == FINDINGS[finding.code] for finding in found)  # type: ignore[index]
    return {finding.code for finding in found}


USER_ONLY = CHAT_TEMPLATE.replace("in messages %}", "in messages if message.role != 'system' %}")
EMPTY_THOUGHT = CHAT_TEMPLATE.replace("'<|im_start|>' +", "'<|im_start|>' + ").replace(
    "message.content +", "('<think></think>' if message.role == 'assistant' else '') + message.content +"
)


@pytest.mark.parametrize(
    ("template", "pair", "codes"),
    [
        (CHAT_TEMPLATE, PAIR, set()),
        (TOOL_TEMPLATE, replace(TURNS, tools=TOOLS), set()),
        (USER_ONLY, PAIR, {"system_dropped"}),
        ("{{ messages[0].content }}" + CHAT_TEMPLATE, PAIR, {"system_doubled"}),
        # the template's own words, and the user's, are no second system turn
        ("You are brief. " + CHAT_TEMPLATE, PAIR, set()),
        (CHAT_TEMPLATE, replace(PAIR, prompt=(SYSTEM, Message("user", "You are brief."))), set()),
        (CHAT_TEMPLATE, replace(PAIR, tools=TOOLS), {"tools_dropped"}),
        (CHAT_TEMPLATE, TURNS, {"tool_calls_dropped"}),
        # that the function's name stands among the tools is no call
        ("{{ tools | tojson }}" + CHAT_TEMPLATE, replace(TURNS, tools=TOOLS), {"tool_calls_dropped"}),
        (CHAT_TEMPLATE, replace(PAIR, chosen=(Message("assistant", "Sun", reasoning="hm"),)), {"thinking_stripped"}),
        (CHAT_TEMPLATE, replace(PAIR, prompt=(Message("user", "q", reasoning="hm"),)), {"turn_changed"}),
        (
            CHAT_TEMPLATE.replace("message.content", "message.content[:2]"),
            TURNS,
            {"answer_changed", "turn_changed", "system_dropped", "tool_calls_dropped"},
        ),
        (EMPTY_THOUGHT, PAIR, {"text_before_answer"}),
        (CHAT_TEMPLATE, replace(PAIR, rejected=(Message("assistant", "Rain<|im_start|>"),)), {"special_token_in_text"}),
    ],
)
def test_what_is_odd_is_said(folder: Path, template: str, pair: Pair, codes: set[str]) -> None:
    assert found(folder, template, pair) == codes


def test_a_changing_date_is_said_of_the_rows_that_it_is_in(folder: Path) -> None:
    renderer = Renderer(
        folder, "{% if messages[0].role == 'system' %}{{ strftime_now('%Y') }}{% endif %}" + CHAT_TEMPLATE
    )
    renderer.pairs([PAIR, replace(PAIR, line=8, prompt=PROMPT[1:])])
    assert [(finding.code, finding.lines) for finding in renderer.take_findings()] == [("date_in_template", [7])]


NO_END_OF_CALLS = CHAT_TEMPLATE.replace(
    "+ '<|im_end|>\\n'", "+ ('<|im_end|>\\n' if loop.last or message.role != 'assistant' else '\\n')"
)
ONLY_THE_LAST_WHOLE = CHAT_TEMPLATE.replace(
    "message.content +", "(message.content if loop.last else message.content[:1]) +"
)


@pytest.mark.parametrize(
    ("template", "pair", "why"),
    [
        (NO_END_OF_CALLS, TURNS, "no end-of-turn token between"),
        (CHAT_TEMPLATE.replace("<|im_end|>", ""), TURNS, "no end-of-turn token between"),
        (ONLY_THE_LAST_WHOLE, TURNS, "writes earlier turns differently"),
        (ONLY_THE_LAST_WHOLE, PAIR, "writes earlier turns differently"),
        (
            CHAT_TEMPLATE,
            replace(TURNS, chosen=(Message("assistant", "a<|im_end|>"), *CALLING[1:])),
            "holds the token that ends",
        ),
        (CHAT_TEMPLATE, replace(PAIR, variables=JsonText('{"messages": []}')), "`messages` stands among the variables"),
    ],
)
def test_where_the_turns_cannot_be_told_apart_the_row_is_refused(
    folder: Path, template: str, pair: Pair, why: str
) -> None:
    renderer = Renderer(folder, template)
    with pytest.raises(TemplateRefusal, match=why):
        renderer.pair(pair)
    (refusal,) = renderer.pairs([pair])
    assert isinstance(refusal, TemplateRefusal)


def test_the_row_s_own_variables_stand_before_the_job_s(folder: Path) -> None:
    template = "{{ tone }} {{ documents }}" + CHAT_TEMPLATE
    renderer = Renderer(folder, template, {"tone": "dry"})
    own = JsonText('{"tone": "warm"}')

    def text(ids: list[int]) -> str:
        return str(renderer.tokenizer.decode(ids, skip_special_tokens=False))

    assert text(renderer.prompt("q")).startswith("dry None<|im_start|>")
    assert text(renderer.prompt("q", variables=own)).startswith("warm None")
    assert text(renderer.pair(replace(PAIR, variables=own)).chosen).startswith("warm None")
