"""Conversations of every kind that a row may hold, drawn by Hypothesis."""

from __future__ import annotations

import json

from hypothesis import strategies as st

from dpo_core.data.records import JsonText, Message, Pair

WORDS = (
    "a",
    "the weather",
    "2 + 2",
    "é ü",
    "日本",
    "\n\n",
    " ",
    "{x}",
    "ok.",
    "<b>",
    "don't",
    "🙂",
    "  two  ",
    '"q"',
    "1999",
)
words = st.lists(st.sampled_from(WORDS), min_size=1, max_size=5).map(" ".join).filter(lambda text: text.strip())
TOOLS = JsonText(
    json.dumps(
        [
            {
                "type": "function",
                "function": {
                    "name": "weather",
                    "description": "of a city",
                    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
                },
            }
        ]
    )
)


def call(city: str) -> JsonText:
    return JsonText(json.dumps([{"type": "function", "function": {"name": "weather", "arguments": {"city": city}}}]))


@st.composite
def prompts(draw: st.DrawFn, *, system: bool = True) -> tuple[Message, ...]:
    """Ends with a user's turn."""
    turns = [Message("system", draw(words))] if system and draw(st.booleans()) else []
    for _ in range(draw(st.integers(0, 2))):
        turns += [Message("user", draw(words)), Message("assistant", draw(words))]
    return (*turns, Message("user", draw(words)))


@st.composite
def answers(draw: st.DrawFn, *, tools: bool, thinking: bool) -> tuple[Message, ...]:
    """Begins and ends with the assistant's turn; with tools, calls and results may stand between."""
    turns = []
    for _ in range(draw(st.integers(0, 2)) if tools else 0):
        turns += [Message("assistant", "", tool_calls=call(draw(words))), Message("tool", draw(words), name="weather")]
    reasoning = draw(st.none() | words) if thinking else None
    return (*turns, Message("assistant", draw(words), reasoning=reasoning))


@st.composite
def pairs(draw: st.DrawFn, *, tools: bool = False, thinking: bool = False, system: bool = True) -> Pair:
    prompt = draw(prompts(system=system))
    chosen, rejected = (draw(answers(tools=tools, thinking=thinking)) for _ in range(2))
    return Pair(1, prompt, chosen, rejected, tools=TOOLS if tools else None)


def as_dicts(turns: tuple[Message, ...]) -> list[dict[str, object]]:
    """As `apply_chat_template` takes them; what isn't given is None."""
    return [
        {
            "role": turn.role,
            "content": turn.content,
            "reasoning_content": turn.reasoning,
            "tool_calls": None if turn.tool_calls is None else json.loads(turn.tool_calls),
            "tool_call_id": turn.tool_call_id,
            "name": turn.name,
        }
        for turn in turns
    ]
