"""`dpo validate`: what a model will see of a file, and what is wrong with its rows. Needs no server."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.text import Text

from cli.errors import CommandFailed
from dpo_core.data.dataset import load
from dpo_core.data.facts import FileFacts
from dpo_core.data.options import ReadOptions
from dpo_core.data.preview import Preview, PreviewRow, PreviewSequence, PreviewToken, places, preview
from dpo_core.data.problems import lines_in_words, problem_in_words, rows_in_words
from dpo_core.data.render import Renderer
from dpo_core.errors import RunError
from dpo_core.prepare_report import Lengths

STYLES: Mapping[str, str] = {
    "shared": "dim",
    "prompt": "",
    "learned of chosen": "green",
    "learned of rejected": "red",
    "silent": "yellow",
}
LEGEND = (
    ("shared", "shared by both answers, computed once"),
    ("prompt", "prompt, carries no loss"),
    ("learned of chosen", "learned: more of this"),
    ("learned of rejected", "learned: less of this"),
    ("silent", "told in between (results of tools), carries no loss"),
)
LEFT_OUT = "italic"
LEARNED = "bold"
"""On top of `shared`: tokens that carry loss in both answers."""


def validate(
    file: Path,
    folder: Path,
    options: ReadOptions,
    *,
    chat_template: str | None = None,
    max_length: int | None,
    lines: Sequence[int],
    console: Console,
) -> bool:
    """Prints some rows as the model sees them, then what is to say of all. Whether every row can be used.

    `chat_template` replaces that of the model in `folder`.

    Raises:
        CommandFailed: the file or the model can't be used at all.
    """
    if not folder.is_dir():
        raise CommandFailed(
            f"--model {folder}: there is no such folder. Give the path of a model's folder. An id, as `base/NAME`, is "
            "for `dpo report FILE_ID --model ID`, which asks the service."
        )
    try:
        renderer = partial(Renderer, folder, chat_template)
        shown = preview(file, renderer(), options, lines=lines, max_length=max_length)
        with TemporaryDirectory(prefix="dpo-validate-") as scratch:
            table = load([file], options, renderer, max_length, Path(scratch) / "tokens.safetensors")
            facts, longest = table.facts.files[0], Lengths.of(table.facts.lengths)
    except RunError as error:
        raise CommandFailed(error.failure.message) from error
    except OSError as error:
        raise CommandFailed(f"{file} can't be read: {error.strerror}.") from error
    show_preview(shown, console)
    for line in in_words(facts, longest, max_length):
        console.print(Text(line))
    return facts.damage is None and not facts.problems.count


def template_of(file: Path | None) -> str | None:
    """The text of a chat template's file."""
    try:
        return None if file is None else file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise CommandFailed(f"--chat-template {file} can't be read: {reason}.") from error


def lines_of(given: str | None) -> list[int]:
    """Numbers with commas between them."""
    lines = [] if given is None else [part.strip() for part in given.split(",")]
    if wrong := [part for part in lines if not part.isdecimal() or int(part) < 1]:
        raise CommandFailed(f"--lines {given}: `{wrong[0]}` is no line number. Write numbers from 1 on, such as 3,17.")
    return [int(part) for part in lines]


def show_preview(shown: Preview, console: Console) -> None:
    if any(row.sequences for row in shown.rows):
        console.print(Text.assemble(*(part for name, words in LEGEND for part in ((words, STYLES[name]), ("\n")))))
    for row in shown.rows:
        console.print(Text(f"line {row.line}", style="bold underline"))
        for sequence in row.sequences:
            console.print(Text(f"{sequence.answer}, {sequence.length:,} tokens, {sequence.learned:,} learned:"))
            console.print(coloured(sequence, row.shared))
        for remark in remarks(row):
            console.print(Text(remark))
        console.print()
    if shown.rows_left_out:
        console.print(Text(f"{rows_in_words(shown.rows_left_out)} more are not shown: ask for fewer at once\n"))
    if shown.missing_lines:
        console.print(Text(f"no row: {lines_in_words(shown.missing_lines, len(shown.missing_lines))}\n"))


def coloured(sequence: PreviewSequence, shared: int) -> Text:
    """The sequence's text; each token in the style of what it is for."""
    text, ends = Text(), dict(sequence.left_out)
    for place, token in zip(places(sequence), sequence.tokens, strict=True):
        text.append(token.text, style=_style(token, sequence.answer, is_shared=place < shared))
        if place + 1 in ends:
            text.append(f"\n… {ends[place + 1] - place - 1:,} tokens not shown …\n", style=LEFT_OUT)
    return text


def _style(token: PreviewToken, answer: str, *, is_shared: bool) -> str:
    if token.role == "silent":
        return STYLES["silent"]
    if is_shared:
        return f"{STYLES['shared']} {LEARNED}" if token.role == "learned" else STYLES["shared"]
    if token.role == "prompt":
        return STYLES["prompt"]
    return STYLES["learned of rejected" if answer == "rejected" else "learned of chosen"]


def remarks(row: PreviewRow) -> Iterator[str]:
    if row.cut is not None:
        turns = f" (its turns {', '.join(str(turn + 1) for turn in row.cut.turns)})" if row.cut.turns else ""
        yield f"cut: {row.cut.tokens:,} tokens of the prompt{turns}"
    for problem in row.problems:
        yield f"can't be used: {problem.message}"
    for finding in row.findings:
        yield f"note: {finding.message}"


def in_words(facts: FileFacts, lengths: Lengths, max_length: int | None) -> Iterator[str]:
    """What became of all rows."""
    yield f"{rows_in_words(facts.rows)}: {facts.pairs:,} can be used, {facts.problems.count:,} bad"
    if facts.damage is not None:
        yield f"The file can't be used: {facts.damage.message} Reading ended at line {facts.damage.line}."
    for problem in facts.problems.findings():
        yield problem_in_words(problem.code, problem.message, problem.count, problem.lines)
    for found in facts.findings.findings():
        yield f"{rows_in_words(found.count)} ({lines_in_words(found.lines, found.count)}): {found.message}"
    if not lengths.longest:  # nothing could be rendered
        return
    yield (
        f"tokens of the longer sequence: median {lengths.p50:,}, 90 % {lengths.p90:,}, 99 % {lengths.p99:,}, "
        f"longest {lengths.longest:,}"
    )
    if max_length is not None:
        cut, share = facts.cut("truncated").count, facts.cut("truncated").count / max(facts.pairs, 1)
        yield f"max_length {max_length:,}: the prompt's beginning is cut in {rows_in_words(cut)} ({share:.1%})"
    if (dropped := facts.cut("dropped")).count:
        yield (
            f"{rows_in_words(dropped.count)} ({lines_in_words(dropped.lines, dropped.count)}) "
            "don't fit even with the shortest prompt, and are left out"
        )
