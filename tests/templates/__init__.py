"""Chat templates in the manner of five model families, each with a small tokenizer of that family's kind.

Written for these tests: the traps are the families' own, the wording is not.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

CORPUS = (
    "the user asks what the weather is and the assistant answers that it is sunny today",
    'name parameters arguments content "city" "Paris" {"name": "weather"}',
    "system user assistant model think about it, then say: 2 + 2 = 4.",
)
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
"""How the byte-level families cut text: ends of lines never go with the word behind them."""


@dataclass(frozen=True)
class Family:
    """What a model folder of the family says."""

    name: str
    special: tuple[str, ...]
    """Special tokens; their ids are their places."""

    eos: str
    kind: str
    """`bytes`: byte-level, cut into WORDS; `first`: a space before the first word; `spaces`: none."""

    bos: str | None = None
    ends: tuple[str, ...] = ()
    """What ends a turn, as generation_config.json says; the end-of-text token where it says nothing."""

    added: tuple[str, ...] = ()
    """Tokens that are never split, but aren't special."""

    system: bool = True
    """Whether system turns are written as they are."""

    tools: bool = True
    """Whether tools, calls and results are written."""

    variables: dict[str, str | bool] = field(default_factory=dict)

    @property
    def template(self) -> str:
        return (Path(__file__).parent / f"{self.name}.jinja").read_text(encoding="utf-8")


LLAMA = Family(
    "llama3",
    ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    eos="<|eot_id|>",
    bos="<|begin_of_text|>",
    ends=("<|end_of_text|>", "<|eot_id|>"),
    kind="bytes",
    variables={"date_string": "1 Jan 2026"},
)
QWEN = Family(
    "qwen3",
    ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    eos="<|im_end|>",
    added=("<think>", "</think>", "<tool_call>", "</tool_call>"),
    kind="bytes",
)
GEMMA = Family(
    "gemma",
    ("<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"),
    eos="<eos>",
    bos="<bos>",
    ends=("<eos>", "<end_of_turn>"),
    added=("\n\n", "<b>"),
    kind="spaces",
    tools=False,
)
MISTRAL = Family(
    "mistral",
    (
        "<unk>",
        "<s>",
        "</s>",
        "[INST]",
        "[/INST]",
        "[TOOL_CALLS]",
        "[AVAILABLE_TOOLS]",
        "[/AVAILABLE_TOOLS]",
        "[TOOL_RESULTS]",
        "[/TOOL_RESULTS]",
    ),
    eos="</s>",
    bos="<s>",
    kind="first",
)
PHI = Family(
    "phi",
    ("<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"),
    eos="<|endoftext|>",
    ends=("<|endoftext|>", "<|end|>"),
    kind="first",
    tools=False,
)
FAMILIES = (LLAMA, QWEN, GEMMA, MISTRAL, PHI)


def make_family(folder: Path, family: Family) -> Path:
    """Writes tokenizer, template and generation_config.json, as a model of the family has them."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _tokenizer(family)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": family.eos, "bos_token": family.bos}
    config |= {"clean_up_tokenization_spaces": False, "model_max_length": 8192}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text(family.template, encoding="utf-8")
    ends = [tokenizer.token_to_id(end) for end in family.ends or (family.eos,)]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    return folder


def _tokenizer(family: Family) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(byte_fallback=family.kind != "bytes"))
    if family.kind == "bytes":
        words = pre_tokenizers.Split(Regex(WORDS), behavior="isolated")
        letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, letters])
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        if family.kind == "first":
            tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        else:
            tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        alphabet = []
    bytes_ = [] if family.kind == "bytes" else [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=len(family.special) + 640,
        special_tokens=[*family.special, *bytes_],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    # What the trainer calls special is only kept apart in training: bytes are no tokens of their own in a text.
    plain = json.loads(tokenizer.to_str()) | {"added_tokens": []}
    made: Tokenizer = Tokenizer.from_str(json.dumps(plain))
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in family.special])
    made.add_tokens([AddedToken(token, special=False, normalized=False) for token in family.added])
    return made
