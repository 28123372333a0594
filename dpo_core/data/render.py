"""Rows to token ids. Preview, training and chat all use this one renderer, so they see the same ids.

A whole conversation is rendered and tokenized once. The prompt, with the opening of the assistant's turn,
is tokenized too, and the split is the longest common prefix of the two in *tokens*: a split in text would
tokenize the answer apart from what stands before it, as the model never sees it.
"""

from __future__ import annotations

import re
from pathlib import Path

from dpo_core.data import tokenizer as tokenizer_files
from dpo_core.data.prefix import common_prefix
from dpo_core.data.problems import Finding, Tally
from dpo_core.data.records import Example, Pair, Text, TokenExample, TokenPair
from dpo_core.data.template import ChatTemplate, TemplateRefusal, Variable
from dpo_core.data.turns import as_turns
from dpo_core.errors import user_error
from dpo_core.spec import ModelSource, TrainingSpec

FINDINGS = {
    "no_end_of_turn": "The answer doesn't end with a token that stops generation, so the model won't learn to stop. "
    "Correct the chat template, or name the template's last token in generation_config.json (`eos_token_id`).",
    "doubled_end_of_turn": "The answer ended with its end-of-turn token twice; the second was removed.",
    "doubled_bos": "The text began with the begin-of-text token twice; the second was removed.",
    "generation_prompt_differs": "What the chat template writes to open an answer is not what it writes before a given "
    "answer; the tokens that differ are learned with the answer.",
    "answer_changed": "The chat template left out or changed some of the answer's text (thinking text, often).",
    "turn_changed": "The chat template left out or changed the text of a turn of the prompt.",
    "special_token_in_text": "The row's own text holds a special token, which is read as one.",
    "date_in_template": "The chat template writes today's date, so the same row renders differently tomorrow. "
    "Give the date in `chat_template_kwargs`.",
}


class Renderer:
    """Turns canonical rows into token ids, by the tokenizer and chat template in `folder`.

    `chat_template` replaces the folder's own; `variables` go to the template.

    Raises:
        RunError: the tokenizer is missing or damaged, or the template is not valid Jinja.
    """

    def __init__(
        self, folder: Path, chat_template: str | None = None, variables: dict[str, Variable] | None = None
    ) -> None:
        self.tokenizer = tokenizer_files.load_tokenizer(folder)
        named = tokenizer_files.special_tokens(folder)
        source = chat_template or tokenizer_files.chat_template(folder)
        self.template = None if source is None else ChatTemplate(source, {**named, **(variables or {})})
        self.end_tokens = tokenizer_files.end_tokens(folder, self.tokenizer)
        self._bos = self.tokenizer.token_to_id(named["bos_token"]) if "bos_token" in named else None
        added = self.tokenizer.encode("", add_special_tokens=True).ids
        self.plain_start = added[:1] if self.template is None and added[:1] == [self._bos] else []
        """What begins every plain text; a chat template writes its own begin-of-text token."""
        special = [token.content for token in self.tokenizer.get_added_tokens_decoder().values() if token.special]
        self._special = re.compile("|".join(map(re.escape, special)) or "(?!)")
        self._seen = Tally()

    @classmethod
    def for_run(cls, model: ModelSource, training: TrainingSpec) -> Renderer:
        """An adapter folder without a tokenizer of its own has its base's."""
        own = model.base_path is None or (model.path / "tokenizer.json").exists()
        folder = model.path if own else model.base_path
        return cls(folder or model.path, training.chat_template, dict(training.chat_template_kwargs))

    def pair(self, pair: Pair) -> TokenPair:
        """Both sequences of a pair, uncut, from one rendering of the prompt.

        Raises:
            RunError: the row has turns and there is no chat template.
            TemplateRefusal: the template can't render the row.
        """
        opening = self.prompt(pair.prompt)
        chosen, chosen_prompt = self._sequence(pair.line, pair.prompt, pair.chosen, opening)
        rejected, rejected_prompt = self._sequence(pair.line, pair.prompt, pair.rejected, opening)
        return TokenPair(pair.line, chosen, rejected, chosen_prompt, rejected_prompt)

    def example(self, example: Example) -> TokenExample:
        """The sequence of a supervised example, uncut. Raises what `pair` raises."""
        opening = self.prompt(example.prompt)
        return TokenExample(example.line, *self._sequence(example.line, example.prompt, example.completion, opening))

    def prompt(self, prompt: Text) -> list[int]:
        """Ids after which the model writes its answer. Raises what `pair` raises."""
        if self.template is None:
            return self._encode(_plain(prompt))[0]
        return self._encode(self.template.render(as_turns(prompt, "user"), add_generation_prompt=True))[0]

    def take_findings(self) -> list[Finding]:
        """What was noticed since the last call, with the rows."""
        found, self._seen = self._seen.findings(), Tally()
        return sorted(found, key=lambda finding: finding.code)

    def _note(self, code: str, line: int) -> None:
        self._seen.add(code, line, FINDINGS[code])

    def _sequence(self, line: int, prompt: Text, answer: Text, opening: list[int]) -> tuple[list[int], int]:
        """Ids of prompt and answer, and how many of them are the prompt's."""
        text = self._conversation(line, prompt, answer)
        tokens, doubled = self._encode(text)
        cut = common_prefix(tokens, opening)
        if doubled:
            self._note("doubled_bos", line)
        if cut < len(opening) and self.template is not None:
            self._note("generation_prompt_differs", line)
        # The first token of all carries no loss, whatever it is: nothing stands before it that could predict it.
        cut = max(cut, 1)
        tokens = self._end_answer(line, tokens, cut)
        if cut >= len(tokens):
            raise TemplateRefusal("its answer has no tokens once it is rendered")
        return tokens, cut

    def _conversation(self, line: int, prompt: Text, answer: Text) -> str:
        """The text of prompt and answer, with what may be odd about it noted."""
        turns = (*as_turns(prompt, "user"), *as_turns(answer, "assistant"))
        if any(self._special.search(turn.content) for turn in turns):
            self._note("special_token_in_text", line)
        if self.template is None:
            return _plain(prompt) + _plain(answer)
        text = self.template.render(turns, add_generation_prompt=False)
        if self.template.wrote_date:
            self._note("date_in_template", line)
        if turns[-1].content.strip() not in text:
            self._note("answer_changed", line)
        if any(turn.content.strip() not in text for turn in turns[:-1]):
            self._note("turn_changed", line)
        return text

    def _encode(self, text: str) -> tuple[list[int], bool]:
        """Ids of a rendered text, and whether a second begin-of-text token was removed."""
        tokens = self.plain_start + self.tokenizer.encode(text, add_special_tokens=False).ids
        if self._bos is None or tokens[:2] != [self._bos, self._bos]:
            return tokens, False
        while tokens[1:2] == [self._bos]:
            tokens = tokens[1:]
        return tokens, True

    def _end_answer(self, line: int, tokens: list[int], cut: int) -> list[int]:
        """Cuts what stands after the end of the answer's turn: nobody ever generates it."""
        if self.template is None:
            tokens = tokens + self.end_tokens[:1]
        ends = [index for index in range(cut, len(tokens)) if tokens[index] in self.end_tokens]
        after = tokens[ends[-1] + 1 :] if ends else tokens
        if not ends or self.tokenizer.decode(after, skip_special_tokens=False).strip():
            self._note("no_end_of_turn", line)
            return tokens
        last = ends[-1]
        while last > cut and tokens[last - 1] == tokens[last]:
            self._note("doubled_end_of_turn", line)
            last -= 1
        return tokens[: last + 1]


def _plain(text: Text) -> str:
    """The text of a string row, for a model without a chat template.

    Raises:
        RunError: the row has turns.
    """
    if isinstance(text, str):
        return text
    message = (
        "The rows are conversations, but the model has no chat template to render them with. "
        "Give one in `training.chat_template`, or start from a chat model, or use plain `prompt` and answer strings."
    )
    raise user_error("no_chat_template", message, param="training.chat_template")
