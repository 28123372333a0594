"""Five families' chat templates against transformers, and what must hold of every conversation with each of them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpo_core.data.records import JsonText, Message, Pair, Spans, TokenPair
from dpo_core.data.render import Renderer
from dpo_core.data.template import TemplateRefusal
from dpo_core.data.truncate import fit
from tests.dpo_core.data.conversations import TOOLS, as_dicts, call, pairs
from tests.templates import FAMILIES, LLAMA, MISTRAL, QWEN, Family, make_family

EXAMPLES = settings(max_examples=40)


@pytest.fixture(scope="module")
def renderers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Renderer, Any]]:
    """For each family ours and transformers' own, on the same folder."""
    from transformers import AutoTokenizer

    made = {}
    for family in FAMILIES:
        folder = make_family(tmp_path_factory.mktemp(family.name), family)
        made[family.name] = Renderer(folder, None, dict(family.variables)), AutoTokenizer.from_pretrained(folder)
    return made


def kinds(family: Family) -> st.SearchStrategy[Pair]:
    plain = pairs()
    if not family.tools:
        return plain
    return plain | pairs(tools=True, thinking=family is QWEN)


def learned(item: TokenPair) -> list[tuple[list[int], list[int], list[int]]]:
    """Of each side: the prompt, the tokens that carry loss, the silent ones."""
    sides: list[tuple[list[int], int, Spans]] = [
        (item.chosen, item.chosen_prompt, item.chosen_silent),
        (item.rejected, item.rejected_prompt, item.rejected_silent),
    ]
    parts = []
    for tokens, prompt, spans in sides:
        silent = {place for start, end in spans for place in range(start, end)}
        behind = range(prompt, len(tokens))
        parts.append(
            (tokens[:prompt], [tokens[it] for it in behind if it not in silent], [tokens[it] for it in sorted(silent)])
        )
    return parts


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
@EXAMPLES
@given(data=st.data())
def test_text_and_ids_are_those_of_transformers(
    renderers: dict[str, tuple[Renderer, Any]], family: Family, data: st.DataObject
) -> None:
    ours, theirs = renderers[family.name]
    pair = data.draw(kinds(family))
    item = ours.pair(pair)
    shared: dict[str, Any] = {"tools": None if pair.tools is None else json.loads(pair.tools), **family.variables}
    prompt = as_dicts(pair.prompt)  # type: ignore[arg-type]
    opening = theirs.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False, **shared)
    assert ours.prompt(pair.prompt, pair.tools) == opening == item.chosen[: item.chosen_prompt]
    for answer, tokens in ((pair.chosen, item.chosen), (pair.rejected, item.rejected)):
        turns = prompt + as_dicts(answer)  # type: ignore[arg-type]
        whole = theirs.apply_chat_template(turns, return_dict=False, **shared)
        assert whole[: len(tokens)] == tokens
        # Behind the answer nothing but what nobody generates.
        assert re.fullmatch(r"\s*(<\|endoftext\|>)?", theirs.decode(whole[len(tokens) :])), "the answer was cut"
        text = theirs.apply_chat_template(turns, tokenize=False, **shared)
        assert ours.template is not None
        messages = (*pair.prompt, *answer)
        assert ours.template.render(messages, tools=pair.tools, add_generation_prompt=False) == text  # type: ignore[arg-type]


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
@EXAMPLES
@given(data=st.data())
def test_the_mask_covers_exactly_what_the_assistant_writes(
    renderers: dict[str, tuple[Renderer, Any]], family: Family, data: st.DataObject
) -> None:
    """Prompt and answer are the whole; every own turn is learned to its end token, and nothing else is."""
    renderer, _ = renderers[family.name]
    pair = data.draw(kinds(family))
    item = renderer.pair(pair)
    assert item == renderer.pairs([pair, pair])[1]
    for answer, (prompt, own, silent) in zip((pair.chosen, pair.rejected), learned(item), strict=True):
        assert prompt == renderer.prompt(pair.prompt, pair.tools)
        assert own[-1] in renderer.end_tokens
        turns: list[Message] = [turn for turn in answer if isinstance(turn, Message)]
        assert sum(token in renderer.end_tokens for token in own) == sum(turn.role == "assistant" for turn in turns)
        text = renderer.tokenizer.decode(own, skip_special_tokens=False)
        told = renderer.tokenizer.decode(silent, skip_special_tokens=False)
        ends = [renderer.tokenizer.id_to_token(end) for end in renderer.end_tokens]
        written = [part for part in re.split("|".join(map(re.escape, ends)), text) if part.strip()]
        assert len(written) == sum(turn.role == "assistant" for turn in turns)
        assert turns[-1].content.strip() in written[-1]
        for turn in turns:
            if turn.role == "tool":
                assert turn.content.strip() in told or json.dumps(turn.content, ensure_ascii=False)[1:-1] in told
        for token in silent[-1:]:
            assert token not in renderer.end_tokens, "the opening of the next turn is silent, too"


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_ids_are_those_of_the_whole_text_though_it_is_cut(
    renderers: dict[str, tuple[Renderer, Any]], family: Family
) -> None:
    renderer, _ = renderers[family.name]
    seams = {
        "llama3": "<|end_header_id|>",
        "qwen3": "<|im_start|>",
        "gemma": "<start_of_turn>",
        "mistral": "[/INST]",
        "phi": "<|assistant|>",
    }
    assert renderer.encoder.seam == seams[family.name]


CALLING = (
    Message("assistant", "", tool_calls=call("Paris")),
    Message("tool", "sunny", name="weather"),
    Message("assistant", "Sun."),
)
ASKED = (Message("system", "Be brief."), Message("user", "Weather?"))
PAIR = Pair(1, ASKED, CALLING, (Message("assistant", "Rain."),), tools=TOOLS)
SHORT = Pair(1, ASKED, (Message("assistant", "Sun."),), (Message("assistant", "Rain."),))


@pytest.mark.parametrize(
    ("family", "call_", "result"),
    [
        (
            LLAMA,
            '{"name": "weather", "parameters": {"city": "Paris"}}<|eot_id|>',
            '<|start_header_id|>ipython<|end_header_id|>\n\n"sunny"<|eot_id|>'
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        (
            QWEN,
            '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call><|im_end|>',
            "\n<|im_start|>user\n<tool_response>\nsunny\n</tool_response><|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            MISTRAL,
            '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Paris"}}]</s>',
            '[TOOL_RESULTS] {"content": "sunny"}[/TOOL_RESULTS]',
        ),
    ],
    ids=["llama3", "qwen3", "mistral"],
)
def test_results_of_tools_carry_no_loss(
    renderers: dict[str, tuple[Renderer, Any]], family: Family, call_: str, result: str
) -> None:
    renderer, _ = renderers[family.name]
    (_, own, silent), (_, _, none) = learned(renderer.pair(PAIR))
    assert renderer.tokenizer.decode(silent, skip_special_tokens=False) == result
    assert renderer.tokenizer.decode(own, skip_special_tokens=False).startswith(call_)
    assert none == []
    example = replace(PAIR, rejected=PAIR.chosen)
    assert renderer.pair(example).rejected_silent == renderer.pair(PAIR).chosen_silent


@pytest.mark.parametrize("family", [LLAMA, QWEN, MISTRAL], ids=lambda family: family.name)
def test_a_shorter_prompt_moves_what_is_silent(renderers: dict[str, tuple[Renderer, Any]], family: Family) -> None:
    renderer, _ = renderers[family.name]
    earlier = (Message("user", "Hello?"), Message("assistant", "Hello!"))
    longer = replace(PAIR, prompt=(*ASKED[:1], *earlier, *ASKED[1:]))
    whole = renderer.pair(longer)
    cut, left = fit(renderer, longer, whole.length - 1)
    assert (cut, left) == (renderer.pair(PAIR), PAIR.prompt)
    assert isinstance(cut, TokenPair)
    assert cut.chosen_silent != whole.chosen_silent
    assert learned(cut)[0][1:] == learned(whole)[0][1:], "what is learned and what is silent stay as they were"


def codes(renderer: Renderer) -> set[str]:
    return {finding.code for finding in renderer.take_findings()}


def test_llama_writes_the_date_unless_it_is_given(renderers: dict[str, tuple[Renderer, Any]], tmp_path: Any) -> None:
    folder = make_family(tmp_path, LLAMA)
    renderer = Renderer(folder)
    renderer.pair(SHORT)
    assert codes(renderer) == {"date_in_template"}
    own = replace(SHORT, variables=JsonText('{"date_string": "1 Jan 2026"}'))
    assert renderer.pair(own) == renderers["llama3"][0].pair(SHORT)
    assert codes(renderer) == set()


def test_qwen_thinks_or_does_not(renderers: dict[str, tuple[Renderer, Any]], tmp_path: Any) -> None:
    renderer, _ = renderers["qwen3"]
    renderer.take_findings()
    (_, own, _), _ = learned(renderer.pair(SHORT))
    assert renderer.tokenizer.decode(own, skip_special_tokens=False) == "<think>\n\n</think>\n\nSun.<|im_end|>"
    assert codes(renderer) == {"text_before_answer"}
    off = replace(SHORT, variables=JsonText('{"enable_thinking": false}'))
    (_, own, _), _ = learned(renderer.pair(off))
    assert renderer.tokenizer.decode(own, skip_special_tokens=False) == "Sun.<|im_end|>"
    assert codes(renderer) == set()
    earlier = Message("assistant", "Hi.", reasoning="greet")
    turns = (Message("user", "Hi"), earlier, Message("user", "Weather?"))
    thinking = (Message("assistant", "Sun.", reasoning="look"),)
    renderer.pair(Pair(1, turns, thinking, (Message("assistant", "<think>\nsee\n</think>\n\nRain."),)))
    assert codes(renderer) == {"turn_changed"}, "the thinking of an earlier turn goes, and it is said"


def test_a_template_that_strips_thinking_says_so(renderers: dict[str, tuple[Renderer, Any]]) -> None:
    for name in ("llama3", "gemma", "mistral", "phi"):
        renderer, _ = renderers[name]
        renderer.take_findings()
        renderer.pair(replace(SHORT, chosen=(Message("assistant", "Sun.", reasoning="look"),)))
        assert "thinking_stripped" in codes(renderer), name


def test_tools_that_the_template_does_not_write(renderers: dict[str, tuple[Renderer, Any]]) -> None:
    renderer, _ = renderers["phi"]
    renderer.take_findings()
    renderer.pair(PAIR)
    assert codes(renderer) >= {"tools_dropped", "tool_calls_dropped", "turn_changed"}
    for name in ("llama3", "qwen3", "mistral"):
        renderer, _ = renderers[name]
        renderer.take_findings()
        renderer.pair(PAIR)
        assert not codes(renderer) & {"tools_dropped", "tool_calls_dropped", "turn_changed"}, name


def test_gemma_folds_the_system_turn_and_refuses_two_turns_of_one_role(
    renderers: dict[str, tuple[Renderer, Any]],
) -> None:
    renderer, _ = renderers["gemma"]
    renderer.take_findings()
    renderer.pair(SHORT)
    assert codes(renderer) == set()
    twice = replace(SHORT, prompt=(Message("user", "a"), Message("user", "b")))
    with pytest.raises(TemplateRefusal, match="must alternate"):
        renderer.pair(twice)
    refused, made = renderer.pairs([twice, SHORT])
    assert isinstance(refused, TemplateRefusal)
    assert made == renderer.pair(SHORT)


def test_mistral_refuses_what_does_not_alternate(renderers: dict[str, tuple[Renderer, Any]]) -> None:
    renderer, _ = renderers["mistral"]
    with pytest.raises(TemplateRefusal, match="must alternate"):
        renderer.pair(replace(SHORT, prompt=(*ASKED, Message("user", "b"))))


def test_phi_ends_a_turn_with_a_token_of_its_own(renderers: dict[str, tuple[Renderer, Any]]) -> None:
    renderer, _ = renderers["phi"]
    renderer.take_findings()
    (_, own, _), _ = learned(renderer.pair(SHORT))
    assert renderer.tokenizer.decode(own, skip_special_tokens=False) == "Sun.<|end|>"
    assert codes(renderer) == {"doubled_end_of_turn"}
