"""The rows of the `tasks` comparison: what `stylora data make` writes, in Qwen2.5's tokens, once and for all contenders.

No pretrained tokenizer can be downloaded offline, but the package `dashscope` carries Qwen's: `qwen.tiktoken`, the 151 643 words that
Qwen2.5 has too. Without that package the bundled base's 6 400 words are used, which make rows longer, and the result says so.

Knows no contender and no model.
"""

from __future__ import annotations

import base64
import json
from importlib.util import find_spec
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from stylora.model.tokenizer_file import tokenizer_file
from stylora.run.plan import chat_format
from stylora.run.task_data.writing import make
from stylora.samples.chat import ChatFormat
from stylora.samples.conversations import Conversation, Reject, read_conversations

Row = dict[str, list[int]]
"""ids: of the whole conversation; targets: places of the answer's tokens and its stop token"""

QWEN, TINY = "Qwen2.5 (of dashscope)", "the bundled base's"


def made(task: str, folder: Path) -> Path:
    """What `stylora data make TASK` writes to a fresh folder; its training rows."""
    make(task, folder / task)
    return folder / task / "train.jsonl"


def qwen_file() -> Path | None:
    """Qwen's words, where `dashscope` is installed; it is not imported."""
    package = find_spec("dashscope")
    if package is None or not package.submodule_search_locations:
        return None
    return Path(package.submodule_search_locations[0]) / "resources/qwen.tiktoken"


def chat_tokens() -> tuple[ChatFormat, str]:
    """ChatML in Qwen's tokens, or else in the bundled base's; whose they are."""
    words = qwen_file()
    tokenizer = Tokenizer.from_file(str(tokenizer_file("tiny"))) if words is None else qwen_tokenizer(words)
    return chat_format("tiny", tokenizer, {}), TINY if words is None else QWEN


def qwen_tokenizer(path: Path) -> Tokenizer:
    """Qwen2.5's from its words in order of rank: whatever two words make a third is a merge, of that one's rank."""
    from transformers import AddedToken, Qwen2Tokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = bytes_to_unicode()
    ranks = {base64.b64decode(word): int(rank) for word, rank in (line.split() for line in path.read_bytes().splitlines())}
    written = {word: "".join(letters[byte] for byte in word) for word in ranks}
    merges: list[tuple[str, str]] = []
    for word in ranks:
        parts = [(word[:i], word[i:]) for i in range(1, len(word)) if word[:i] in ranks and word[i:] in ranks]
        merges += [(written[a], written[b]) for a, b in sorted(parts, key=lambda part: (ranks[part[0]], ranks[part[1]]))]
    vocabulary: Any = {written[word]: rank for word, rank in ranks.items()}
    wrapped = Qwen2Tokenizer(vocab=vocabulary, merges=merges)  # type: ignore[arg-type]  # pairs are what its BPE takes
    wrapped.add_tokens([AddedToken(name, special=True) for name in ("<|im_start|>", "<|im_end|>")])
    return wrapped.backend_tokenizer


def encoded(path: Path, form: ChatFormat, count: int, seed: int) -> list[Row]:
    """`count` conversations of a file, drawn by the seed."""
    conversations: list[Conversation | Reject] = list(read_conversations([str(path)], reports=[]))
    order = np.random.default_rng(seed).permutation(len(conversations))[:count].tolist()
    assert len(order) == count, f"{len(conversations)} rows, {count} needed"
    rows = []
    for number in order:
        conversation = conversations[number]
        assert isinstance(conversation, Conversation), conversation
        (chat,) = form.paths(conversation)
        (answer,) = chat.answers
        rows.append({"ids": chat.ids.tolist(), "targets": answer.targets.tolist()})
    return rows


def figures(rows: list[Row]) -> dict[str, float]:
    """Tokens of the rows, means over them; system: that all of them begin with."""
    shared = 0
    while all(len(row["ids"]) > shared for row in rows) and len({row["ids"][shared] for row in rows}) == 1:
        shared += 1
    tokens, answers = mean(len(row["ids"]) for row in rows), mean(len(row["targets"]) for row in rows)
    return {
        "system": shared, "user": round(mean(row["targets"][0] for row in rows) - shared, 1), "answer": round(answers, 1),
        "whole": round(tokens, 1), "longest": max(len(row["ids"]) for row in rows),
    }  # fmt: skip


def renumbered(rows: list[Row]) -> tuple[list[Row], int]:
    """The same rows over a vocabulary of only the words in them, and its size."""
    words = sorted({word for row in rows for word in row["ids"]})
    place = {word: number for number, word in enumerate(words)}
    return [{"ids": [place[word] for word in row["ids"]], "targets": row["targets"]} for row in rows], len(words)


def write(rows: list[Row], path: Path) -> str:
    """For the contenders' processes; its path."""
    path.write_text(json.dumps(rows), encoding="utf-8")
    return str(path)


def read(path: str) -> list[Row]:
    """What `write` wrote."""
    return json.loads(Path(path).read_text(encoding="utf-8"))
