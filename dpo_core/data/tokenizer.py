"""Tokenizer and chat template of a model folder, from every place where transformers 5 looks for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import Unigram

from dpo_core.errors import user_error
from dpo_core.model_folder import read_json
from dpo_core.spec import ModelSource

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


def tokenizer_folder(model: ModelSource) -> Path:
    """Where all files of a model's tokenizer are read: an adapter without a tokenizer of its own has its base's."""
    if model.base_path is None or (model.path / "tokenizer.json").exists():
        return model.path
    return model.base_path


def load_tokenizer(folder: Path) -> Tokenizer:
    """tokenizer.json, with the added and special tokens that the config files name; it neither cuts nor pads.

    Raises:
        RunError: the file is missing or damaged.
    """
    file = folder / "tokenizer.json"
    if not file.exists():
        message = "The model has no tokenizer.json. Load it with AutoTokenizer and save it with `save_pretrained`."
        raise user_error("invalid_model", message, param="model")
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the tokenizers library raises bare Exception
        raise user_error(
            "invalid_model", f"tokenizer.json of the model can't be read: {error}.", param="model"
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    tokenizer.add_tokens([token for token in _added_tokens(folder) if token.content not in known])
    return tokenizer


def _added_tokens(folder: Path) -> list[AddedToken]:
    """Tokens that must never be split: those listed with their id, in order, then the named special ones."""
    listed = read_json(folder / "tokenizer_config.json").get("added_tokens_decoder", {})
    tokens = [AddedToken(**listed[index]) for index in sorted(listed, key=int)]
    named = [text for text in special_tokens(folder).values() if text not in {token.content for token in tokens}]
    return tokens + [AddedToken(text, special=True, normalized=False) for text in dict.fromkeys(named)]


def special_tokens(folder: Path) -> dict[str, str]:
    """The named special tokens (`bos_token`, `eos_token`, …), as chat templates get them."""
    config = read_json(folder / "tokenizer_config.json")
    if "added_tokens_decoder" not in config:
        config = {**config, **read_json(folder / "special_tokens_map.json")}
    named = {name: _token_text(config.get(name)) for name in NAMED_TOKENS}
    return {name: text for name, text in named.items() if text is not None}


def _token_text(token: Any) -> str | None:
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def chat_template(folder: Path) -> str | None:
    """The default chat template, or None. Files of their own come before entries of tokenizer_config.json."""
    file = folder / "chat_template.jinja"
    if file.exists():
        return file.read_text(encoding="utf-8")
    default = folder / "additional_chat_templates" / "default.jinja"
    if default.exists():
        return default.read_text(encoding="utf-8")
    entry = read_json(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(entry, list):
        entry = next((named["template"] for named in entry if named.get("name") == "default"), None)
    return entry if isinstance(entry, str) else None


def end_tokens(folder: Path, tokenizer: Tokenizer) -> list[int]:
    """Ids that end a generated answer, the tokenizer's own first, then those of generation_config and config."""
    ends: list[int | None] = [tokenizer.token_to_id(special_tokens(folder).get("eos_token", ""))]
    for name in ("generation_config.json", "config.json"):
        given = read_json(folder / name).get("eos_token_id")
        ends.extend(given if isinstance(given, list) else [given])
    return list(dict.fromkeys(end for end in ends if end is not None))


def unknown_token(folder: Path, tokenizer: Tokenizer) -> int | None:
    """Id of what stands for text that the tokenizer doesn't know; None where it knows all, as byte-level ones do."""
    if isinstance(tokenizer.model, Unigram):  # which doesn't tell
        found: int | None = read_json(folder / "tokenizer.json")["model"].get("unk_id")
        return found
    named = getattr(tokenizer.model, "unk_token", None)
    return None if named is None else tokenizer.token_to_id(named)
