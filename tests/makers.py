"""Small real things for tests: a byte-level tokenizer, a tiny Llama, and data files about sums.

`make_tokenizer` and the data files need no torch; `make_tiny_model` and `make_adapter` import it when called.
"""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def make_tokenizer(folder: Path, *, chat_template: str | None = CHAT_TEMPLATE) -> Path:
    """Writes tokenizer files: one token per byte and three special ones (259 in all); end of turn is `<|im_end|>`."""
    folder.mkdir(parents=True, exist_ok=True)
    alphabet = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 4096,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    if chat_template is not None:
        (folder / "chat_template.jinja").write_text(chat_template)
    return folder


def make_tiny_model(
    folder: Path,
    seed: int = 0,
    *,
    vocab: int = 264,
    hidden: int = 32,
    layers: int = 2,
    heads: int = 4,
    context: int = 4096,
    chat_template: str | None = CHAT_TEMPLATE,
) -> Path:
    """Writes a Llama with random weights in Hugging Face form, float32. `vocab` is at least 259."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    make_tokenizer(folder, chat_template=chat_template)
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 2),
        max_position_embeddings=context,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
        initializer_range=0.1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def make_adapter(model: Path, base: str, folder: Path) -> Path:
    """A LoRA adapter with an update that isn't 0, as a checkpoint holds it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    torch.manual_seed(0)
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(model), config)
    adapted.save_pretrained(str(folder))
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)
    written = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(written | {"base_model_name_or_path": base}))
    (folder / "README.md").unlink(missing_ok=True)
    return folder


def write_rows(path: Path, rows: list[object]) -> Path:
    """Writes a JSONL file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def sums(n: int, seed: int) -> list[tuple[str, str, str]]:
    """`n` different questions, each with its right and a wrong answer. At most 8,100 there are."""
    generator = random.Random(seed)
    operands = generator.sample([(a, b) for a in range(10, 100) for b in range(10, 100)], n)
    return [(f"What is {a}+{b}?", str(a + b), str(a + b + generator.choice([-10, -1, 1, 10]))) for a, b in operands]


def write_preference_file(path: Path, n: int, seed: int = 0) -> Path:
    """`n` pairs in the OpenAI preference format, no prompt twice."""
    return write_rows(
        path,
        [
            {
                "input": {"messages": [{"role": "user", "content": question}]},
                "preferred_output": [{"role": "assistant", "content": right}],
                "non_preferred_output": [{"role": "assistant", "content": wrong}],
            }
            for question, right, wrong in sums(n, seed)
        ],
    )


def write_supervised_file(path: Path, n: int, seed: int = 0) -> Path:
    """`n` examples in the OpenAI chat format, no prompt twice."""
    return write_rows(
        path,
        [
            {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": right}]}
            for question, right, _ in sums(n, seed)
        ],
    )


def real_data(name: str) -> Path:
    """A file or folder of the real data sets; skips the test where they are absent."""
    root = Path(os.environ.get("DPO_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not (root / name).exists():
        pytest.skip(f"{name} is not in {root}; set DPO_TEST_DATA to the folder of the real data sets")
    return root / name
