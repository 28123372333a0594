"""Every shape of a row, and what is wrong with those that are nearly one."""

from __future__ import annotations

import json

import pytest

from dpo_core.data.formats import RawRow, records
from dpo_core.data.options import ReadOptions
from dpo_core.data.records import Example, JsonText, Message, Pair, RowProblem

QUESTION, GOOD, BAD = Message("user", "q"), Message("assistant", "good"), Message("assistant", "bad")
SYSTEM = Message("system", "be brief")
TEXTS = Pair(1, "q", "good", "bad")
TURNS = Pair(1, (QUESTION,), (GOOD,), (BAD,))

USER = {"role": "user", "content": "q"}
RIGHT = {"role": "assistant", "content": "good"}
WRONG = {"role": "assistant", "content": "bad"}
EARLIER = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
TOLD = {"role": "tool", "content": "3"}
HUMAN = {"from": "human", "value": "q"}
FUNCTION = {"name": "add", "parameters": {"type": "object", "properties": {}}}
TOOLS = JsonText('[{"type":"function","function":{"name":"add","parameters":{"type":"object","properties":{}}}}]')
CALL = {"type": "function", "function": {"name": "add", "arguments": '{"b": 1, "a": 2}'}}
CALLS = JsonText('[{"type":"function","function":{"name":"add","arguments":{"b":1,"a":2}}}]')
CALLING = Message("assistant", "", tool_calls=CALLS)
RESULT = Message("tool", "3")


def read(row: object, options: ReadOptions | None = None) -> list[Pair | Example | RowProblem]:
    return records(RawRow(1, 1, json.dumps(row).encode()), options or ReadOptions("dpo"))


def answers(**more: object) -> dict[str, object]:
    return {"chosen": "good", "rejected": "bad"} | more


OPENAI = {"input": {"messages": [USER]}, "preferred_output": [RIGHT], "non_preferred_output": [WRONG]}


@pytest.mark.parametrize(
    ("row", "pair"),
    [
        (answers(prompt="q", system=""), TEXTS),
        (answers(prompt="q", system="be brief"), Pair(1, (SYSTEM, QUESTION), (GOOD,), (BAD,))),
        (answers(prompt=[{"role": "system", "content": "be brief"}, USER], system="be brief"),
         Pair(1, (SYSTEM, QUESTION), (GOOD,), (BAD,))),
        (answers(conversations=[HUMAN]), TURNS),
        (answers(conversations=[HUMAN]) | {"chosen": {"from": "gpt", "value": "good"}}, TURNS),
        (answers(conversations=[{"from": "system", "value": "be brief"}, HUMAN]) | {"chosen": [RIGHT]},
         Pair(1, (SYSTEM, QUESTION), (GOOD,), (BAD,))),
        (answers(conversations=[USER], system="be brief"), Pair(1, (SYSTEM, QUESTION), (GOOD,), (BAD,))),
        (answers(messages=[USER]), TURNS),
        (answers(question="q"), TEXTS),
        (answers(instruction="q", input=""), TEXTS),
        (answers(instruction="q", input="more"), Pair(1, "q\nmore", "good", "bad")),
        ({"question": "q", "response_chosen": "good", "response_rejected": "bad", "history": None}, TEXTS),
        ({"question": "q", "chosen_response": "good", "rejected_response": "bad"}, TEXTS),
        (answers(question="q", history=[["a", "b"]], system="be brief"),
         Pair(1, (SYSTEM, Message("user", "a"), Message("assistant", "b"), QUESTION), (GOOD,), (BAD,))),
        # the prompt once more at the beginning of each answer, as in UltraFeedback's binarized form
        ({"prompt": "q", "chosen": [USER, RIGHT], "rejected": [USER, WRONG], "messages": [USER, RIGHT]}, TURNS),
        # … of which one side may have more turns before
        ({"prompt": [{"role": "system", "content": "be brief"}, USER], "chosen": [USER, RIGHT],
          "rejected": [USER, WRONG]}, Pair(1, (SYSTEM, QUESTION), (GOOD,), (BAD,))),
        ({"prompt": "q", "system": "be brief", "chosen": [USER, RIGHT], "rejected": [USER, WRONG]},
         Pair(1, (SYSTEM, QUESTION), (GOOD,), (BAD,))),
        ({"prompt": " q ", "chosen": [{"role": "system", "content": "be brief"}, USER, RIGHT],
          "rejected": [{"role": "system", "content": "be brief"}, USER, WRONG]},
         Pair(1, (SYSTEM, QUESTION), (GOOD,), (BAD,))),
        ({"prompt": "q", "history": [["a", "b"]], "chosen": [*EARLIER, USER, RIGHT],
          "rejected": [*EARLIER, USER, WRONG]},
         Pair(1, (Message("user", "a"), Message("assistant", "b"), QUESTION), (GOOD,), (BAD,))),
        (OPENAI | {"system": "be brief"}, Pair(1, (SYSTEM, QUESTION), (GOOD,), (BAD,))),
        (OPENAI | {"history": [["a", "b"]]},
         Pair(1, (Message("user", "a"), Message("assistant", "b"), QUESTION), (GOOD,), (BAD,))),
        (answers(prompt="q", input="more"), Pair(1, "q\nmore", "good", "bad")),
        (answers(prompt="say: more!", input="more"), Pair(1, "say: more!", "good", "bad")),
        (answers(prompt="\n\nHuman: q\n\nAssistant:"), TURNS),
        (answers(prompt="Human: q"), Pair(1, "Human: q", "good", "bad")),
        (answers(prompt=None, question="q", chosen_response=None), TEXTS),
        (answers(prompt="", question="q"), TEXTS),
        (answers(prompt=[USER, {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": ""}]),
         Pair(1, (QUESTION, CALLING, Message("tool", "")), (GOOD,), (BAD,))),
        (answers(prompt="q", tools=[{"name": "\\u0000"}]),
         Pair(1, "q", "good", "bad", tools=JsonText('[{"type":"function","function":{"name":"\\\\u0000"}}]'))),
        (answers(prompt="q", chat_template_kwargs={"enable_thinking": False}),
         Pair(1, "q", "good", "bad", variables=JsonText('{"enable_thinking":false}'))),
    ],
)  # fmt: skip
def test_shapes_of_preference_rows(row: object, pair: Pair) -> None:
    assert read(row) == [pair]


@pytest.mark.parametrize(
    ("row", "example"),
    [
        ({"question": "q", "answer": "good"}, Example(1, "q", "good")),
        ({"instruction": "q", "input": "more", "output": "good"}, Example(1, "q\nmore", "good")),
        ({"instruction": "q", "response": "good"}, Example(1, "q", "good")),
        ({"instruction": "q", "output": "good", "system": "be brief"}, Example(1, (SYSTEM, QUESTION), (GOOD,))),
        ({"conversations": [HUMAN, {"from": "gpt", "value": "good"}]}, Example(1, (QUESTION,), (GOOD,))),
        ({"messages": [USER, RIGHT], "label": None}, Example(1, (QUESTION,), (GOOD,))),
        ({"messages": [USER, RIGHT], "tools": [FUNCTION]}, Example(1, (QUESTION,), (GOOD,), tools=TOOLS)),
        (
            {"messages": [USER, {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": "3"}, RIGHT]},
            Example(1, (QUESTION,), (CALLING, RESULT, GOOD)),
        ),
        (
            {"messages": [USER, {"role": "assistant", "tool_calls": [CALL], "weight": 0},
                          {"role": "tool", "content": "3"}, RIGHT]},
            Example(1, (QUESTION, CALLING, RESULT), (GOOD,)),
        ),
    ],
)  # fmt: skip
def test_shapes_of_supervised_rows(row: object, example: Example) -> None:
    assert read(row, ReadOptions("supervised")) == [example]


def test_tools_calls_and_answers_of_several_turns() -> None:
    messages = [
        {"role": "assistant", "content": None, "tool_calls": [CALL | {"id": "call_1"}]},
        {"role": "tool", "content": "3", "tool_call_id": "call_1", "name": "add"},
        {"role": "assistant", "content": "good", "reasoning_content": "hm"},
    ]
    row = {
        "input": {"messages": [USER], "tools": [{"type": "function", "function": FUNCTION}]},
        "preferred_output": messages,
        "non_preferred_output": [WRONG],
    }
    (pair,) = read(row)
    assert isinstance(pair, Pair)
    assert pair.tools == TOOLS
    assert pair.chosen == (
        Message("assistant", "", tool_calls=JsonText(CALLS.replace('[{"type"', '[{"id":"call_1","type"'))),
        Message("tool", "3", tool_call_id="call_1", name="add"),
        Message("assistant", "good", reasoning="hm"),
    )
    # the same as two whole conversations: what both begin with is the prompt
    (same,) = read({"chosen": [USER, *messages], "rejected": [USER, WRONG], "tools": [FUNCTION]})
    assert same == pair


def test_calls_in_both_conversations_belong_to_the_prompt() -> None:
    called = [USER, {"role": "assistant", "tool_calls": [CALL]}, {"role": "tool", "content": "3"}]
    (pair,) = read({"chosen": [*called, RIGHT], "rejected": [*called, WRONG]})
    assert pair == Pair(1, (QUESTION, CALLING, RESULT), (GOOD,), (BAD,))
    other = [*called[:2], {"role": "tool", "content": "4"}]
    (pair,) = read({"chosen": [*called, RIGHT], "rejected": [*other, RIGHT]})
    assert pair == Pair(1, (QUESTION,), (CALLING, RESULT, GOOD), (CALLING, Message("tool", "4"), GOOD))


def test_the_forms_of_a_call() -> None:
    forms: list[dict[str, object]] = [
        {"role": "assistant", "tool_calls": [{"name": "add", "arguments": {"b": 1, "a": 2}}]},
        {"role": "assistant", "content": "", "function_call": {"name": "add", "arguments": '{"b": 1, "a": 2}'}},
        {"from": "function_call", "value": '{"name": "add", "arguments": {"b": 1, "a": 2}}'},
    ]
    for form in forms:
        assert read({"prompt": [USER], "chosen": [form], "rejected": [WRONG]}) == [
            Pair(1, (QUESTION,), (CALLING,), (BAD,))
        ]
    answered = [HUMAN, forms[2], {"from": "observation", "value": "3"}]
    assert read(answers(conversations=answered, tools=json.dumps([FUNCTION]))) == [
        Pair(1, (QUESTION, CALLING, RESULT), (GOOD,), (BAD,), tools=TOOLS)
    ]


SCORED = [{"content": "good", "score": 9}, {"content": "middle", "score": "5.5"}, {"content": "bad", "score": 1}]
MIDDLE_PAIRS = [Pair(1, "q", "good", "middle"), TEXTS, Pair(1, "q", "middle", "bad")]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "answers": SCORED},
        {
            "instruction": "q",
            "completions": [{"response": it["content"], "overall_score": it["score"]} for it in SCORED],
        },
        {"prompt": "q", "responses": ["good", "middle", "bad"], "scores": [9, 5.5, 1]},
        {"prompt": "q", "responses": ["bad", "good", "middle"], "ratings": [1, 9, 5.5]},
    ],
)
def test_scored_answers_become_pairs(row: dict[str, object]) -> None:
    assert read(row) == [TEXTS]
    pairs = read(row, ReadOptions("dpo", scored="all"))
    assert sorted(pairs, key=repr) == sorted(MIDDLE_PAIRS, key=repr)


def test_answers_with_equal_scores_are_not_compared() -> None:
    row = {"prompt": "q", "responses": ["good", "bad", "other"], "scores": [2, 1, 2]}
    assert read(row) == [TEXTS]
    assert read(row, ReadOptions("dpo", scored="all")) == [TEXTS, Pair(1, "q", "other", "bad")]


def test_equal_answers_among_scored_ones_cost_their_own_pair_alone() -> None:
    row = {"prompt": "q", "responses": ["good", "bad", "good "], "scores": [3, 1, 2]}
    problem, *pairs = read(row, ReadOptions("dpo", scored="all"))
    assert pairs == [TEXTS, Pair(1, "q", "good ", "bad")]
    assert isinstance(problem, RowProblem)
    assert (problem.code, problem.field) == ("equal_answers", "responses[2]")
    assert read(row) == [TEXTS]


def scored(*scores: object, count: int | None = None) -> dict[str, object]:
    texts = [str(index) for index in range(len(scores) if count is None else count)]
    return {"prompt": "q", "responses": texts, "scores": list(scores)}


@pytest.mark.parametrize(
    ("row", "code", "field", "hint"),
    [
        (scored(1), "too_few_answers", "responses", "two answers"),
        (scored(1, 1, 1), "equal_scores", "responses", "same score"),
        (scored(*range(65)), "too_many_answers", "responses", "at most 64"),
        (scored(1, 2, count=3), "bad_score", "scores", "each of the 3 answers"),
        (scored(1, "N/A"), "bad_score", "scores[1]", "`N/A`"),
        (scored(1, True), "bad_score", "scores[1]", "no number"),
        (scored(1, "1e999"), "bad_score", "scores[1]", "no number"),
        ({"prompt": "q", "answers": ["a", "b"]}, "wrong_type", "answers[0]", "a text and a score"),
        ({"prompt": "q", "answers": [{"text": "a"}] * 2}, "bad_score", "answers[0]", "no `score`"),
        ({"prompt": "q", "answers": [{"text": "a", "score": n} for n in (1, 2)]}, "equal_answers", "answers[0]", "eq"),
        (answers(prompt=[{"role": "system", "content": "x"}, USER], system="y"), "two_systems", "system", "Keep one"),
        (answers(question="q", history=[["a"]]), "wrong_type", "history[0]", "pair of texts"),
        (answers(prompt="q", chat_template_kwargs=[1]), "wrong_type", "chat_template_kwargs", "an object"),
        (answers(prompt="q", tools="{"), "not_json", "tools", "not valid JSON"),
        (answers(prompt="q", tools={"a": 1}), "wrong_type", "tools", "list of functions"),
        (answers(prompt="q", tools=[{"a": 1}]), "wrong_type", "tools[0]", "no function"),
        (answers(prompt="q", tools=[{"name": "\ud83d"}]), "bad_text", "tools", "surrogate"),
        (answers(prompt="q", tools=[{"name": "\\\0"}]), "bad_text", "tools", "NUL"),
        (answers(prompt=[USER] * 1001), "too_many_turns", "prompt", "1,001 turns; at most 1,000"),
        (answers(prompt="q", history=[["a", "b"]] * 501), "too_many_turns", "history", "1,002 turns"),
        (
            {"chosen": "\n\nHuman: q\n\nAssistant: a" * 501, "rejected": "\n\nHuman: q\n\nAssistant: b"},
            "too_many_turns", "chosen", "1,002 turns",
        ),
        (
            answers(prompt="q") | {"chosen": [{"role": "assistant", "tool_calls": [CALL]}, TOLD] * 101 + [RIGHT]},
            "too_many_turns", "chosen", "101 times; at most 100",
        ),
        ({f"column {number}": "" for number in range(100_000)} | {"prompt": "q", "chosen": "a"}, "missing_field",
         "rejected", "Add it"),
        (
            {"prompt": [{"role": "system", "content": "x"}, USER], "chosen": [{"role": "system", "content": "y"}, USER,
             RIGHT], "rejected": [{"role": "system", "content": "y"}, USER, WRONG]},
            "prompt_in_answer", "chosen", "not the one in `prompt`",
        ),
        (answers(prompt="q", kto_tag=True, chosen=None), "missing_field", "chosen", "null"),
        ({"prompt": "q", "completion": "a", "kto_tag": True}, "unpaired", "kto_tag", "unpaired"),
        (
            {"prompt": "other", "chosen": [USER, RIGHT], "rejected": [USER, WRONG]},
            "prompt_in_answer", "chosen", "not the one in `prompt`",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_row(row: object, code: str, field: str, hint: str) -> None:
    (problem,) = read(row)
    assert isinstance(problem, RowProblem)
    assert (problem.code, problem.field) == (code, field)
    assert hint in problem.message


@pytest.mark.parametrize(
    ("calls", "field", "hint"),
    [
        ({"tool_calls": [{"function": {"name": "add", "arguments": "{"}}]}, ".tool_calls[0].arguments", "`{` is not"),
        ({"tool_calls": [{"function": {"name": "add", "arguments": "[1]"}}]}, ".tool_calls[0].arguments", "a list"),
        ({"tool_calls": [{"function": {"arguments": "{}"}}]}, ".tool_calls[0]", "a `name`"),
        ({"tool_calls": {"name": "add"}}, ".tool_calls", "a list of calls"),
        ({"function_call": "add"}, ".function_call", "a `name`"),
    ],
)
def test_calls_that_can_not_be_read(calls: dict[str, object], field: str, hint: str) -> None:
    (problem,) = read({"prompt": "q", "chosen": [RIGHT | calls], "rejected": "bad"})
    assert isinstance(problem, RowProblem)
    assert (problem.code, problem.field) == ("bad_tool_call", f"chosen[0]{field}")
    assert hint in problem.message


def test_answers_that_differ_in_calls_or_thinking_alone_are_not_equal() -> None:
    other = CALL | {"function": {"name": "add", "arguments": {}}}
    calls = [{"role": "assistant", "content": "", "tool_calls": [it]} for it in (CALL, other)]
    assert isinstance(read({"prompt": "q", "chosen": calls[:1], "rejected": calls[1:]})[0], Pair)
    thought = {"prompt": "q", "chosen": [RIGHT | {"thinking": "a"}], "rejected": [RIGHT | {"reasoning": "b"}]}
    (pair,) = read(thought)
    assert isinstance(pair, Pair)
    assert [answer[0].reasoning for answer in (pair.chosen, pair.rejected)] == ["a", "b"]


def test_problems_name_the_files_own_columns() -> None:
    options = ReadOptions("dpo", {"prompt": "frage", "chosen": "gut", "rejected": "schlecht"})
    (problem,) = read({"frage": "q", "gut": [{"role": "judge", "content": "x"}], "schlecht": "bad"}, options)
    assert isinstance(problem, RowProblem)
    assert problem.field == "gut[0].role"
    (problem,) = read({"frage": "q", "gut": "a", "schlecht": " "}, options)
    assert isinstance(problem, RowProblem)
    assert (problem.field, problem.message[:30]) == ("schlecht", "The answer in `schlecht` is em")
