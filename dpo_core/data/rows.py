"""The shapes a row of a data file may have, recognised by its fields, and what is wrong with one that has none.

dpo          {"input": {"messages": [...], "tools"?}, "preferred_output": [...], "non_preferred_output": [...]}
             a prompt (`prompts.py`) with {"chosen", "rejected"}: text, a message, or messages
             {"chosen", "rejected"}: two whole conversations that begin with one prompt, as message lists or as
             transcripts "\\n\\nHuman: … \\n\\nAssistant: …"
             a prompt with {"answers": [...]} and their scores
supervised   {"messages": [...]} or {"conversations": [...]}, whose last message is the assistant's
             a prompt with {"completion"} (or `output`, `answer`, `response`)

docs/data.md has them all. Only the answer is learned; assistant turns inside a prompt carry no loss. Other fields
of a row are ignored, unless ignoring them would change what is learned (images): then the row is refused.
"""

from __future__ import annotations

from collections.abc import Sequence

from dpo_core.data.fields import BadRow, Row, first_of, names_in_words
from dpo_core.data.options import ReadOptions
from dpo_core.data.preference import BETTER, WORSE, chosen_rejected, openai_pair
from dpo_core.data.prompts import CONVERSATIONS, PROMPTS, QUESTIONS
from dpo_core.data.records import Example, Pair, RowProblem, Shape
from dpo_core.data.scored import is_scored, scored_pairs
from dpo_core.data.supervised import COMPLETIONS, completion_example, conversation_example
from dpo_core.data.turns import refuse_media
from dpo_core.spec import Method

EXPLICIT = '{"prompt": ..., "chosen": ..., "rejected": ...}'
USUAL: dict[Method, str] = {
    "dpo": '{"input": {"messages": [...]}, "preferred_output": [...], "non_preferred_output": [...]} '
    f"or {EXPLICIT} or "
    '{"chosen": "\\n\\nHuman: ... \\n\\nAssistant: ...", "rejected": ...}',
    "supervised": '{"messages": [..., {"role": "assistant", "content": ...}]} or {"prompt": ..., "completion": ...}',
}
"""What to write, for a row that is none of the shapes."""

LABELS = ("label", "kto_tag")


def parse_row(row: Row, options: ReadOptions, line: int) -> Sequence[Pair | Example | RowProblem]:
    """The canonical records of one row: one, or the pairs of its scored answers and what is wrong with some of them.

    Raises:
        BadRow: the row has no shape that the method can learn from, or something in it is empty or unsupported.
    """
    openai = "preferred_output" in row or "non_preferred_output" in row or isinstance(row.get("input"), dict)
    preference = openai or first_of(row, BETTER + WORSE) is not None or is_scored(row)
    if not preference:
        _refuse_label(row)
    completion = first_of(row, COMPLETIONS)
    conversation = first_of(row, CONVERSATIONS)
    if not preference and completion is None and conversation is None and first_of(row, PROMPTS) is None:
        message = (
            f"No known format has these fields: {names_in_words(row)}. Write {USUAL[options.method]}, "
            "or say in `columns` what the file calls `prompt` and the others."
        )
        raise BadRow("unknown_format", None, message)
    _refuse_other_method(options.method, preference, completion is not None or conversation is not None)
    refuse_media(row)
    if options.method == "supervised":
        if completion is None and conversation is not None:
            return [conversation_example(row, line, conversation)]
        return [completion_example(row, line, completion or "completion")]
    if openai:
        return [openai_pair(row, line)]
    if first_of(row, BETTER + WORSE) is None and is_scored(row):
        return scored_pairs(row, line, options.scored)
    return [chosen_rejected(row, line)]


def shape_of(row: Row) -> Shape:
    """Which of the shapes a row has that `parse_row` takes."""
    if "preferred_output" in row:
        return "openai_preference"
    prompt, better = first_of(row, PROMPTS), first_of(row, BETTER)
    if better is None and is_scored(row):
        return "scored_answers"
    if better is None:
        return "prompt_completion" if prompt not in CONVERSATIONS or first_of(row, COMPLETIONS) else "conversation"
    if prompt is None:
        return "two_transcripts" if isinstance(row[better], str) else "two_conversations"
    if prompt in CONVERSATIONS:
        return "conversation_answers"
    return "question_answers" if prompt in QUESTIONS else "prompt_answers"


def _refuse_label(row: Row) -> None:
    name = next((name for name in LABELS if row.get(name) is not None), None)
    if name is not None:
        message = (
            f"This row is unpaired (one answer with a `{name}`), which is not supported. "
            f"Join a good and a bad answer to the same prompt into one row: {EXPLICIT}."
        )
        raise BadRow("unpaired", name, message)


def _refuse_other_method(method: Method, preference: bool, supervised: bool) -> None:
    if method == "dpo" and not preference and supervised:
        kind, other = "supervised", "supervised"
    elif method == "supervised" and preference:
        kind, other = "preference", "dpo"
    else:
        return
    message = f"This is a {kind} row in a {method} job. Use method `{other}`, or write {USUAL[method]}."
    raise BadRow("wrong_method", None, message)
