"""Where a base lies, its tokenizer, context and chat template: all that reading data needs of a base. Imports no torch, no transformers."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from stylora.errors import UserError

TINY = Path(__file__).with_name("tiny")


def base_path(name: str) -> str:
    """The folder of `tiny`, an existing folder as it is, anything else as a hub id."""
    return str(TINY) if name == "tiny" else name


def tokenizer_file(name: str, where: str = "base") -> Path:
    """Path of the base's `tokenizer.json`; fetched from the hub if need be. Raises UserError where there is none."""
    return base_file(name, "tokenizer.json", expected="a fast tokenizer", do="save the tokenizer there", where=where)


def context_length(name: str, where: str = "base") -> int | None:
    """The longest row the base was made for, in tokens, by its `config.json`; None where that leaves it to the model's code."""
    path = base_file(name, "config.json", expected="a causal language model", do="name its folder", where=where)
    config = json.loads(path.read_text(encoding="utf-8"))
    text = config.get("text_config", config)
    return text.get("max_position_embeddings", text.get("n_positions"))


def chat_template(name: str, where: str = "base") -> str:
    """The base's chat template, in Jinja: of `chat_template.jinja`, else of `tokenizer_config.json`. Raises UserError where it has none."""
    template = _chat_template(name)
    if template is None:
        raise UserError(
            where, got=f"{name!r}, which has no chat template", expected="a base that was made for chat",
            do="use its instruct version, or put a chat_template.jinja beside its tokenizer.json",
        )  # fmt: skip
    return template


def has_chat_template(name: str) -> bool:
    """Was the base made for chat?"""
    return _chat_template(name) is not None


def _chat_template(name: str) -> str | None:
    path = optional_file(name, "chat_template.jinja")
    if path is not None:
        return path.read_text(encoding="utf-8")
    template = _tokenizer_config(name).get("chat_template")
    if isinstance(template, list):  # several, each with a name
        template = {each["name"]: each["template"] for each in template}.get("default")
    return template if isinstance(template, str) else None


def special_tokens(name: str) -> dict[str, str]:
    """`bos_token`, `eos_token` and whatever else the base's `tokenizer_config.json` names so -> the token as text."""
    config = _tokenizer_config(name)
    found = {key: value["content"] if isinstance(value, dict) else value for key, value in config.items() if key.endswith("_token")}
    return {key: value for key, value in found.items() if isinstance(value, str)}


def _tokenizer_config(name: str) -> dict[str, Any]:
    path = optional_file(name, "tokenizer_config.json")
    return {} if path is None else json.loads(path.read_text(encoding="utf-8"))


def optional_file(name: str, file: str) -> Path | None:
    """A file of a base that not every base has; None where this one has not."""
    folder = Path(base_path(name))
    if folder.is_dir():
        return folder / file if (folder / file).is_file() else None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(hf_hub_download(name, file))
    except EntryNotFoundError:
        return None


def base_file(name: str, file: str, *, expected: str, do: str, where: str) -> Path:
    """A file of a base: in its folder, or fetched from the hub. Raises UserError naming `where`; expected, do: for a folder without it."""
    folder = Path(base_path(name))
    if folder.is_dir():
        if (folder / file).is_file():
            return folder / file
        raise UserError(where, got=f"no {file} in {folder}", expected=expected, do=do)
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(name, file))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(
            where, got=repr(name), expected="`tiny`, a folder, or a hub id that can be reached", do="check the name and the connection"
        ) from error


def hash_file(path: Path) -> str:
    """Hex BLAKE2b-128 of a file's bytes."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
