from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from dpo_core.data.formats import read_rows
from dpo_core.data.options import ReadOptions
from dpo_core.data.records import Example, Message, Pair, TokenExample, TokenPair
from dpo_core.data.render import Renderer
from dpo_core.data.template import TemplateRefusal
from dpo_core.data.truncate import fit, least_length, prompt_from, starts
from dpo_core.errors import RunError
from tests.makers import CHAT_TEMPLATE, make_tokenizer, real_data

PAIR = Pair(1, (Message("user", "2+2?"),), (Message("assistant", "4"),), (Message("assistant", "5"),))
STRINGS = Pair(1, "2+2?", "4", "5")
WITH_BOS = "{{ bos_token }}" + CHAT_TEMPLATE
HEADER = "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tokenizer(tmp_path_factory.mktemp("chat"))


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A tokenizer without a chat template that puts a begin-of-text token in front."""
    make_tokenizer(tmp_path, chat_template=None)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    configure(tmp_path, bos_token="<|im_start|>")
    return tmp_path


def configure(folder: Path, **entries: object) -> None:
    file = folder / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


def text(renderer: Renderer, tokens: list[int]) -> str:
    return renderer.tokenizer.decode(tokens, skip_special_tokens=False)


def codes(renderer: Renderer) -> dict[str, int]:
    return {finding.code: finding.count for finding in renderer.take_findings()}


def test_a_pair_is_split_where_the_answers_begin(folder: Path) -> None:
    renderer = Renderer(folder)
    item = renderer.pair(PAIR)
    assert text(renderer, item.chosen[: item.chosen_prompt]) == HEADER
    # the newline behind the end of the turn is the template's, nobody generates it
    assert text(renderer, item.chosen[item.chosen_prompt :]) == "4<|im_end|>"
    assert text(renderer, item.rejected[item.rejected_prompt :]) == "5<|im_end|>"
    assert renderer.prompt(PAIR.prompt) == item.chosen[: item.chosen_prompt]
    assert renderer.pair(STRINGS) == item
    assert renderer.take_findings() == []


def test_an_example_is_split_likewise(folder: Path) -> None:
    renderer = Renderer(folder)
    item = renderer.example(Example(3, PAIR.prompt, PAIR.chosen))
    assert (item.line, item.tokens, item.prompt) == (3, renderer.pair(PAIR).chosen, renderer.pair(PAIR).chosen_prompt)


def test_plain_text_gets_what_the_tokenizer_adds_and_an_end(plain: Path) -> None:
    renderer = Renderer(plain)
    item = renderer.pair(STRINGS)
    assert text(renderer, item.chosen) == "<|im_start|>2+2?4<|im_end|>"
    assert item.chosen_prompt == item.rejected_prompt == 5
    assert renderer.prompt("2+2?") == item.chosen[:5]


def test_turns_without_a_chat_template_are_refused(plain: Path) -> None:
    with pytest.raises(RunError, match=r"training\.chat_template") as caught:
        Renderer(plain).pair(PAIR)
    assert caught.value.failure.param == "training.chat_template"
    assert Renderer(plain, CHAT_TEMPLATE).pair(PAIR).chosen_prompt > 0


@pytest.mark.parametrize(
    ("template", "code"),
    [
        (CHAT_TEMPLATE.replace("<|im_end|>", ""), "no_end_of_turn"),
        (CHAT_TEMPLATE.replace("'<|im_end|>\\n'", "'<|im_end|>\\n' + 'bye'"), "no_end_of_turn"),
        (CHAT_TEMPLATE.replace("<|im_end|>", "<|im_end|><|im_end|>"), "doubled_end_of_turn"),
        (
            CHAT_TEMPLATE.replace("assistant\\n' }}{% endif %}", "assistant\\n<think>' }}{% endif %}"),
            "generation_prompt_differs",
        ),
        (CHAT_TEMPLATE.replace("message.content +", "message.content | upper +"), None),
        ("{{ strftime_now('%Y') }}" + CHAT_TEMPLATE, "date_in_template"),
    ],
)
def test_odd_templates_are_reported(folder: Path, template: str, code: str | None) -> None:
    renderer = Renderer(folder, template)
    renderer.pair(PAIR)
    assert codes(renderer) == ({} if code is None else {code: 1})
    assert codes(renderer) == {}


def test_text_that_the_template_leaves_out_is_reported(folder: Path) -> None:
    renderer = Renderer(folder, CHAT_TEMPLATE.replace("message.content", "message.content.split('</think>')[-1]"))
    renderer.example(Example(1, "q", "<think>hm</think>4"))
    renderer.example(Example(2, "<think>hm</think>q", "4"))
    assert codes(renderer) == {"thinking_stripped": 1, "turn_changed": 1}


def test_special_tokens_in_text_are_reported_once_a_row(folder: Path) -> None:
    renderer = Renderer(folder)
    renderer.pair(Pair(7, "q<|im_start|>", "a<|im_start|>", "b"))
    assert codes(renderer) == {"special_token_in_text": 1}


WORDS = {"<unk>": 0, "</s>": 1, "two": 2, "four": 3}
SCORES = [(word, -float(place)) for word, place in WORDS.items()]


@pytest.mark.parametrize(
    ("model", "named", "lines"),
    [
        (models.WordLevel(WORDS, unk_token="<unk>"), {}, [2, 3]),
        (models.WordPiece(WORDS, unk_token="<unk>"), {}, [2, 3]),
        (models.Unigram(SCORES, unk_id=0), {}, [2, 3]),
        # what ends a text stands for nothing unknown, though some files call it so
        (models.WordLevel(WORDS, unk_token="</s>"), {}, []),
        (models.WordLevel(WORDS, unk_token="<unk>"), {"bos_token": "<unk>"}, []),
    ],
)
def test_text_that_the_tokenizer_does_not_know_is_reported(
    tmp_path: Path, model: models.Model, named: dict[str, str], lines: list[int]
) -> None:
    make_tokenizer(tmp_path, chat_template=None)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    configure(tmp_path, eos_token="</s>", pad_token="</s>", **named)
    renderer = Renderer(tmp_path)
    rows = [
        ("two", " four", " two"),
        ("two", " four", " vier"),
        ("zwei", " four", " two"),
        ("two <unk>", " four", " two"),
    ]
    renderer.pairs([Pair(line, *texts, row=line) for line, texts in enumerate(rows, 1)])
    found = {finding.code: finding.lines for finding in renderer.take_findings()}
    assert found.get("unknown_token", []) == lines


def test_a_doubled_begin_of_text_is_removed(folder: Path, tmp_path: Path) -> None:
    configure(make_tokenizer(tmp_path), bos_token="<|endoftext|>")
    once, twice = Renderer(tmp_path, WITH_BOS), Renderer(tmp_path, "{{ bos_token }}" + WITH_BOS)
    assert once.pair(PAIR) == twice.pair(PAIR)
    assert text(once, once.prompt("2+2?")) == "<|endoftext|>" + HEADER
    assert codes(once) == {}
    assert codes(twice) == {"doubled_bos": 1}


def test_a_row_that_the_template_refuses(folder: Path) -> None:
    renderer = Renderer(folder, "{{ raise_exception('roles must alternate') }}")
    with pytest.raises(TemplateRefusal, match="roles must alternate"):
        renderer.pair(PAIR)
    with pytest.raises(TemplateRefusal, match="no tokens"):
        Renderer(folder, "{% if add_generation_prompt or true %}same{% endif %}").pair(PAIR)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.__class__ }}",
        "{{ strftime_now.__globals__ }}",
        "{{ dict.__init__.__globals__ }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ namespace(_a=1) }}",
        "{% set _ = messages.append(1) %}",
    ],
)
def test_templates_stay_in_the_sandbox(folder: Path, template: str) -> None:
    with pytest.raises(TemplateRefusal):
        Renderer(folder, template).pair(PAIR)


def test_what_the_sandbox_refused_once_it_refuses_again(folder: Path) -> None:
    """The decision about a plain type's attribute is kept, and kept as it was."""
    renderer = Renderer(folder, "{{ ''.__class__.__mro__ if messages[0].content == 'in' }}" + CHAT_TEMPLATE)
    for row in 2 * [Pair(1, "in", "4", "5")]:
        with pytest.raises(TemplateRefusal, match="unsafe"):
            renderer.pair(row)
        renderer.pair(Pair(2, "out", "4", "5"))


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ 'a' * 10**7 }}", "characters"),
        ("{% set a = [0] * 10**9 %}", "characters"),
        ("{{ 2**100000 }}", "bits"),
        ("{% set a = ('a' * 999) | replace('a', 'a' * 999) %}", "characters"),
        ("{% set a = ('a' * 999).replace('a', 'a' * 999) %}", "characters"),
        ("{% set a = 'a' | center(10**7) | length %}", "characters"),
        ("{% set a = '{:9999999}'.format(1) | length %}", "characters"),
        ("{% filter replace('a', 'a' * 999) %}{{ 'a' * 999 }}{% endfilter %}", "characters"),
        ("{% for i in range(999) %}{{ 'a' * 1000 }}{% endfor %}", "characters"),
        ("{% set x %}{% for i in range(999) %}{{ 'a' * 1000 }}{% endfor %}{% endset %}", "characters"),
        ("{% set n = namespace(s='a') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}", "characters"),
        ("{% set n = namespace(s='a') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}", "characters"),
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "steps"),
        ("{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}", "steps"),
        ("{% for m in messages recursive %}{{ loop(range(99999)) if loop.depth < 9 }}{% endfor %}", "steps"),
    ],
)
def test_a_template_that_takes_without_end_is_refused(folder: Path, template: str, reason: str) -> None:
    with pytest.raises(TemplateRefusal, match=f"more than [\\d,]+ {reason}"):
        Renderer(folder, template).pair(PAIR)


def test_bounds_change_nothing_that_a_template_writes(folder: Path) -> None:
    template = (
        "{% for message in messages if message.role %}{{ loop.index ~ '/' ~ loop.length }}{{ ', ' if not loop.last }}"
        "{% else %}none{% endfor %}{% for i in [1, 2] %}{{ i * 2 + 1 }}{{ '-' * i }}{% endfor %}"
        "{{ '%s' % 7 }}{{ 2**3 }}{{ ' B ' | trim | lower }}"
        "{% filter upper %}c{% endfilter %}{{ [2, 1] | sort | first }}"
    )
    renderer = Renderer(folder, template)
    assert text(renderer, renderer.prompt((Message("user", "a"), Message("user", "b")))) == "1/2, 2/23-5--78bC1"


def test_a_template_with_a_syntax_error(folder: Path) -> None:
    with pytest.raises(RunError, match=r"not valid Jinja.*line 1") as caught:
        Renderer(folder, "{% for %}")
    assert caught.value.failure.code == "invalid_chat_template"


def test_every_place_of_a_chat_template(tmp_path: Path) -> None:
    make_tokenizer(tmp_path, chat_template=None)
    assert Renderer(tmp_path).template is None
    configure(tmp_path, chat_template=[{"name": "tool_use", "template": "x"}, {"name": "default", "template": "list"}])
    assert rendering(tmp_path) == "list"
    configure(tmp_path, chat_template="config")
    assert rendering(tmp_path) == "config"
    (tmp_path / "chat_template.jinja").write_text("file {{ eos_token }} {{ extra }}")
    assert rendering(tmp_path) == "file <|im_end|> 1"
    assert Renderer(tmp_path, "given").prompt("q") == Renderer(tmp_path, "given").tokenizer.encode("given").ids


def rendering(folder: Path) -> str:
    renderer = Renderer(folder, variables={"extra": 1})
    return text(renderer, renderer.prompt("q"))


def test_a_folder_without_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no tokenizer\.json"):
        Renderer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(RunError, match="can't be read"):
        Renderer(tmp_path)


def long_pair() -> Pair:
    turns = [Message("system", "s"), Message("user", "one"), Message("assistant", "1"), Message("user", "two")]
    return Pair(1, tuple(turns), PAIR.chosen, PAIR.rejected)


def test_long_prompts_lose_their_oldest_turns(folder: Path) -> None:
    renderer = Renderer(folder)
    whole = renderer.pair(long_pair())
    turns = long_pair().prompt
    assert fit(renderer, long_pair(), whole.length) == (whole, turns)
    cut, left = fit(renderer, long_pair(), whole.length - 1)
    assert left == (turns[0], turns[3])
    assert isinstance(cut, TokenPair)
    turn = "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\ntwo<|im_end|>\n<|im_start|>assistant\n4<|im_end|>"
    assert text(renderer, cut.chosen) == turn
    assert cut.chosen[: cut.chosen_prompt] == cut.rejected[: cut.rejected_prompt]
    assert fit(renderer, long_pair(), cut.length - 1) == (None, turns)
    assert least_length(renderer, long_pair()) == cut.length
    example = Example(1, long_pair().prompt, PAIR.chosen)
    assert fit(renderer, example, whole.length - 1)[0] == renderer.example(
        Example(1, (Message("system", "s"), Message("user", "two")), PAIR.chosen)
    )


def test_shorter_prompts_begin_with_a_user_turn() -> None:
    turns = tuple(Message(role, role) for role in ("user", "assistant", "tool", "user", "user"))
    assert [prompt_from(turns, start) for start in starts(turns)] == [turns[3:], turns[4:]]
    system = (Message("system", "s"), *turns)
    assert [prompt_from(system, start) for start in starts(system)] == [(system[0], *turns[at:]) for at in (3, 4)]
    assert starts("text") == []


class Counting(Renderer):
    """Counts the rows that it renders one by one."""

    rendered = 0

    def pair(self, pair: Pair) -> TokenPair:
        self.rendered += 1
        return super().pair(pair)


def test_the_longest_prompt_that_fits_is_found_in_few_steps(folder: Path) -> None:
    turns = tuple(Message(role, f"{n} word") for n in range(200) for role in ("user", "assistant"))[:-1]
    row, renderer = Pair(1, turns, PAIR.chosen, PAIR.rejected), Counting(folder)
    lengths = [renderer.pair(replace(row, prompt=prompt_from(turns, start))).length for start in starts(turns)]
    for place in (0, 1, 70, 198):
        renderer.rendered = 0
        for limit in (lengths[place], lengths[place] + 1):
            assert fit(renderer, row, limit)[1] == turns[starts(turns)[place] :]
        assert renderer.rendered <= 2 * 10
    assert fit(renderer, row, lengths[-1] - 1)[0] is None


@pytest.mark.parametrize("refused", [(1,), (3,), (1, 3), (5,), (7, 9), (1, 3, 5, 7, 9)])
def test_a_shorter_prompt_that_the_template_refuses_is_passed_over(folder: Path, refused: tuple[int, ...]) -> None:
    """A prompt of 11 turns; the shorter ones have an odd number of them."""
    counts = [count + extra for count in refused for extra in (0, 1)]  # with an answer behind it, too
    refuses = f"{{% if messages | length in {counts} %}}{{{{ raise_exception('no') }}}}{{% endif %}}"
    turns = tuple(Message("assistant" if n % 2 else "user", f"{n}") for n in range(11))
    row, renderer = Pair(1, turns, PAIR.chosen, PAIR.rejected), Renderer(folder, refuses + CHAT_TEMPLATE)
    kept = [start for start in starts(turns) if len(turns) - start not in refused]
    lengths = {start: Renderer(folder).pair(replace(row, prompt=turns[start:])).length for start in kept}
    assert least_length(renderer, row) == min([*lengths.values(), renderer.pair(row).length])
    for start, length in lengths.items():
        assert fit(renderer, row, length)[1] == turns[start:]
    assert fit(renderer, row, 1) == (None, turns)


def test_plain_prompts_lose_tokens_from_the_left(plain: Path) -> None:
    renderer = Renderer(plain)
    cut, _ = fit(renderer, STRINGS, 5)
    assert isinstance(cut, TokenPair)
    assert text(renderer, cut.chosen) == "<|im_start|>2?4<|im_end|>"
    assert (cut.chosen_prompt, cut.rejected_prompt) == (3, 3)
    assert fit(renderer, STRINGS, 3) == (None, STRINGS.prompt)
    assert (least_length(renderer, STRINGS), least_length(renderer, Example(1, "2+2?", "4"))) == (4, 4)
    example, _ = fit(renderer, Example(1, "2+2?", "4"), 4)
    assert isinstance(example, TokenExample)
    assert text(renderer, example.tokens) == "<|im_start|>?4<|im_end|>"


def as_dicts(turns: Iterable[Message]) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.content} for turn in turns]


def test_ids_equal_those_of_transformers() -> None:
    from transformers import AutoTokenizer

    folder = real_data("tokenizers/minimind")
    theirs, ours = AutoTokenizer.from_pretrained(folder), Renderer(folder)
    newline = theirs.encode("\n", add_special_tokens=False)
    for row in read_rows(real_data("orca/validation.jsonl"), ReadOptions("dpo")):
        assert isinstance(row, Pair)
        assert not isinstance(row.prompt, str)
        item = ours.pair(row)
        opening = theirs.apply_chat_template(as_dicts(row.prompt), add_generation_prompt=True, return_dict=False)
        assert ours.prompt(row.prompt) == opening == item.chosen[: item.chosen_prompt]
        for answer, tokens in ((row.chosen, item.chosen), (row.rejected, item.rejected)):
            assert not isinstance(answer, str)
            whole = theirs.apply_chat_template(as_dicts((*row.prompt, *answer)), return_dict=False)
            assert tokens + newline == whole
    assert ours.take_findings() == []


FEATURES = """{%- set ns = namespace(n=0) -%}
{% for message in messages %}
    {% if message.role == 'system' %}{% continue %}{% endif %}
    {% set ns.n = ns.n + 1 %}
    {% generation %}{{ message | tojson }}{% endgeneration %}
    {{ dict(a='<ü>') | tojson(indent=1) }}{{ ns.n }}{{ eos_token }}{{ flag }}
{% endfor %}
{% if add_generation_prompt %}>{% endif %}
"""


def test_template_features_equal_those_of_transformers(folder: Path) -> None:
    from transformers import AutoTokenizer

    turns = (Message("system", "s"), Message("user", "<b>ü 'q'</b>"), Message("assistant", "a"), Message("user", "x"))
    theirs = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        as_dicts(turns), chat_template=FEATURES, add_generation_prompt=True, return_dict=False, flag=True
    )
    assert Renderer(folder, FEATURES, {"flag": True}).prompt(turns) == theirs


def test_the_first_token_of_all_carries_no_loss(folder: Path) -> None:
    """Nothing stands before it that could predict it, even where prompt and answer melt into one token."""
    template = "{% if messages|length > 1 %}{{ messages[-1].content }}{% endif %}"
    item = Renderer(folder, template).example(Example(1, "q", "a b"))
    assert item.prompt == 1
    with pytest.raises(TemplateRefusal, match="no tokens"):
        Renderer(folder, template).example(Example(1, "q", "a"))
