"""Rows to token ids. Preview, training and chat all use this one renderer, so they see the same ids.

A whole conversation is rendered and tokenized once. The prompt, with the opening of the assistant's turn,
is tokenized too, and the split is the longest common prefix of the two in *tokens*: a split in text would
tokenize the answer apart from what stands before it, as the model never sees it. The model's later turns in
an answer of several turns are found likewise.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import date
from functools import partial
from pathlib import Path

from dpo_core.data import tokenizer as tokenizer_files
from dpo_core.data.encoder import Encoder
from dpo_core.data.findings import FINDINGS, FindingCode, of_answer, of_prompt, writes_before
from dpo_core.data.prefix import common_prefix
from dpo_core.data.problems import Finding, Tally
from dpo_core.data.records import Example, JsonText, Message, Pair, Text, TokenExample, TokenPair
from dpo_core.data.spans import end_of_answer, silent_spans
from dpo_core.data.template import ChatTemplate, TemplateRefusal, Variable
from dpo_core.data.texts import Answered, RowTexts, opening, row_texts
from dpo_core.spec import ModelSource, TrainingSpec


class Renderer:
    """Turns canonical rows into token ids, by the tokenizer and chat template in `folder`.

    `chat_template` replaces the folder's own; `variables` go to the template, and the date it writes is `today`.

    Raises:
        RunError: the tokenizer is missing or damaged, or the template is not valid Jinja.
    """

    def __init__(
        self,
        folder: Path,
        chat_template: str | None = None,
        variables: dict[str, Variable] | None = None,
        today: date | None = None,
    ) -> None:
        self.tokenizer = tokenizer_files.load_tokenizer(folder)
        named = tokenizer_files.special_tokens(folder)
        source = chat_template or tokenizer_files.chat_template(folder)
        self.template = None if source is None else ChatTemplate(source, {**named, **(variables or {})}, today)
        self.end_tokens = tokenizer_files.end_tokens(folder, self.tokenizer)
        self._ends = frozenset(self.end_tokens)
        self._end_texts = [text for end in self.end_tokens if (text := self.tokenizer.id_to_token(end)) is not None]
        self._bos = self.tokenizer.token_to_id(named["bos_token"]) if "bos_token" in named else None
        added = self.tokenizer.encode("", add_special_tokens=True).ids
        self.plain_start = added[:1] if self.template is None and added[:1] == [self._bos] else []
        """What begins every plain text; a chat template writes its own begin-of-text token."""
        self.encoder = Encoder(self.tokenizer, self._sample_opening())
        special = [token.content for token in self.tokenizer.get_added_tokens_decoder().values() if token.special]
        self._special = re.compile("|".join(map(re.escape, special)) or "(?!)")
        unknown = tokenizer_files.unknown_token(folder, self.tokenizer)
        # what begins or ends every text stands for nothing unknown, though some files name it so
        self._unknown = None if unknown in {self._bos, *self._ends} else unknown
        self._unknown_text = None if self._unknown is None else self.tokenizer.id_to_token(self._unknown)
        self._blank: dict[int, bool] = {}
        self._seen = Tally()

    @classmethod
    def for_run(cls, model: ModelSource, training: TrainingSpec, today: date | None) -> Renderer:
        folder = tokenizer_files.tokenizer_folder(model)
        return cls(folder, training.chat_template, dict(training.chat_template_kwargs), today)

    def pairs(self, rows: Sequence[Pair]) -> list[TokenPair | TemplateRefusal]:
        """Both sequences of each pair, uncut, or why the template can't render it. Much quicker than one by one.

        Raises:
            RunError: a row has turns and there is no chat template.
        """
        return [it if isinstance(it, TemplateRefusal) else _pair(*it) for it in self._rows(rows)]

    def examples(self, rows: Sequence[Example]) -> list[TokenExample | TemplateRefusal]:
        """The sequence of each supervised example, likewise."""
        return [it if isinstance(it, TemplateRefusal) else it[0] for it in self._rows(rows)]

    def pair(self, pair: Pair) -> TokenPair:
        """Both sequences of one pair.

        Raises:
            RunError: the row has turns and there is no chat template.
            TemplateRefusal: the template can't render the row.
        """
        return _pair(*self._sequences_of(pair))

    def example(self, example: Example) -> TokenExample:
        """The sequence of one supervised example. Raises what `pair` raises."""
        (sequence,) = self._sequences_of(example)
        return sequence

    def prompt(self, prompt: Text, tools: JsonText | None = None, variables: JsonText | None = None) -> list[int]:
        """Ids after which the model writes its answer. Raises what `pair` raises."""
        return self._ids(self.encoder.encode([[opening(self.template, prompt, tools, variables)]])[0][0])

    def take_findings(self) -> list[Finding]:
        """What was noticed since the last call, with the rows."""
        found, self._seen = self._seen.findings(), Tally()
        return sorted(found, key=lambda finding: finding.code)

    def _sample_opening(self) -> str | None:
        """A prompt's end as the template writes it; None where there is no template, or it takes no such prompt."""
        try:
            return None if self.template is None else opening(self.template, "a")
        except TemplateRefusal:
            return None

    def _sequences_of(self, row: Pair | Example) -> list[TokenExample]:
        (made,) = self._rows([row])
        if isinstance(made, TemplateRefusal):
            raise made
        return made

    def _rows(self, rows: Sequence[Pair | Example]) -> Iterator[list[TokenExample] | TemplateRefusal]:
        """For each row the sequences of its answers."""
        written: list[RowTexts | TemplateRefusal] = []
        for row in rows:
            try:
                written.append(row_texts(self.template, row))
            except TemplateRefusal as refusal:
                written.append(refusal)
        ids = iter(self.encoder.encode([texts.all for texts in written if isinstance(texts, RowTexts)]))
        for texts in written:
            if isinstance(texts, TemplateRefusal):
                yield texts
                continue
            try:
                yield self._row(texts, iter(next(ids)))
            except TemplateRefusal as refusal:
                yield refusal

    def _row(self, texts: RowTexts, ids: Iterator[list[int]]) -> list[TokenExample]:
        """The sequences of a row's answers from the ids of its texts, in their order; notes what is odd."""
        start = self._ids(next(ids))
        found = set(self._of_prompt(texts))
        sequences = []
        for answer in texts.answers:
            whole = next(ids)
            gaps = [(self._ids(next(ids)), self._ids(next(ids))) for _ in answer.gaps]
            tokens = self._ids(whole)
            if len(tokens) < len(self.plain_start) + len(whole):
                found.add("doubled_bos")
            if self._has_special(answer.turns[answer.prompt :]):
                found.add("special_token_in_text")
            if self._reads_as_unknown(answer.text, tokens):
                found.add("unknown_token")
            if self.template is not None:
                self._refuse_end_inside(answer)
                found |= set(self._of_answer(texts, answer))
                found |= set(check_openings(texts, answer, tokens, [start, *(told for told, _ in gaps)]))
            sequences.append(self._sequence(texts.row.line, tokens, start, gaps, found))
        for code in sorted(found):
            self._seen.add(code, texts.row, FINDINGS[code])
        return sequences

    def _sequence(
        self,
        line: int,
        tokens: list[int],
        start: list[int],
        gaps: list[tuple[list[int], list[int]]],
        found: set[FindingCode],
    ) -> TokenExample:
        """Divides a conversation where the model's turns begin and end."""
        # The first token of all carries no loss, whatever it is: nothing stands before it that could predict it.
        prompt = max(common_prefix(tokens, start), 1)
        silent = silent_spans(tokens, prompt, gaps, self._ends)
        if self.template is None:
            tokens = tokens + self.end_tokens[:1]
        end = end_of_answer(tokens, silent[-1][1] if silent else prompt, self._ends, self._is_blank)
        if end is None:
            found.add("no_end_of_turn")
        else:
            if end[0] < end[1]:
                found.add("doubled_end_of_turn")
            tokens = tokens[: end[0]]  # nobody ever generates what stands behind it
        if prompt >= len(tokens):
            raise TemplateRefusal("its answer has no tokens once it is rendered")
        return TokenExample(line, tokens, prompt, silent)

    def _of_prompt(self, texts: RowTexts) -> Iterator[FindingCode]:
        answer = texts.answers[0]
        prompt = answer.turns[: answer.prompt]
        if texts.has_date:
            yield "date_in_template"
        if self._has_special(prompt):
            yield "special_token_in_text"
        if self.template is not None:
            yield from of_prompt(texts.opening, prompt, texts.row.tools, partial(texts.write, opens=True))

    def _of_answer(self, texts: RowTexts, answer: Answered) -> Iterator[FindingCode]:
        yield from of_answer(
            answer.text, answer.turns, answer.prompt, texts.row.tools, partial(texts.write, opens=False)
        )
        if writes_before(answer.text, texts.opening, answer.turns[answer.prompt]):
            yield "text_before_answer"

    def _reads_as_unknown(self, text: str, tokens: list[int]) -> bool:
        """Whether the unknown token stands for more than its own name in the text."""
        if self._unknown is None or self._unknown_text is None or self._unknown not in tokens:
            return False
        return tokens.count(self._unknown) > text.count(self._unknown_text)

    def _has_special(self, turns: Sequence[Message]) -> bool:
        return any(self._special.search(turn.content) or self._special.search(turn.reasoning or "") for turn in turns)

    def _refuse_end_inside(self, answer: Answered) -> None:
        """Raises TemplateRefusal if the text of an answer's turn, not the last, ends it before its end."""
        for turn in answer.turns[answer.prompt : -1]:
            for text in (turn.content, turn.reasoning or "", turn.tool_calls or ""):
                if turn.role == "assistant" and any(end in text for end in self._end_texts):
                    raise TemplateRefusal("the text of a turn of its answer holds the token that ends a turn")

    def _ids(self, encoded: list[int]) -> list[int]:
        """With what begins every plain text, and without a second begin-of-text token."""
        tokens = self.plain_start + encoded
        if self._bos is not None and tokens[:1] == [self._bos]:
            while tokens[1:2] == [self._bos]:
                tokens = tokens[1:]
        return tokens

    def _is_blank(self, token: int) -> bool:
        if token not in self._blank:
            self._blank[token] = not self.tokenizer.decode([token], skip_special_tokens=False).strip()
        return self._blank[token]


def check_openings(
    texts: RowTexts, answer: Answered, tokens: list[int], openings: Sequence[list[int]]
) -> Iterator[FindingCode]:
    """Whether the conversation goes on behind each opening of a turn of the model's.

    Raises:
        TemplateRefusal: what stands before the opening differs already, so where the turn begins can't be told.
    """
    starts = [(answer.prompt, texts.opening), *((gap.turns, gap.opening) for gap in answer.gaps)]
    for (turns, text), ids in zip(starts, openings, strict=True):
        if tokens[: len(ids)] == ids:
            continue
        before = texts.write(answer.turns[:turns], texts.row.tools, opens=False)
        # Some templates write more behind the last turn of all: what counts is what comes before the opening, too.
        if not answer.text.startswith(text[: common_prefix(before, text)]):
            raise TemplateRefusal(
                "the chat template writes earlier turns differently once an answer follows, so where the answer "
                "begins can't be told (give another `chat_template`)"
            )
        yield "generation_prompt_differs"


def _pair(chosen: TokenExample, rejected: TokenExample) -> TokenPair:
    return TokenPair(
        chosen.line,
        chosen.tokens,
        rejected.tokens,
        chosen.prompt,
        rejected.prompt,
        chosen.silent,
        rejected.silent,
    )
