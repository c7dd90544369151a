"""Fixtures of the sample tests: a small BPE with Qwen's pre-tokenizer, trained on the spot, and books to read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

# The pre-tokenizer of Qwen2/2.5/3 (tokenizer.json of Qwen/Qwen3-8B).
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
EXAMPLES = Path(__file__).parents[2] / "examples"
SENTENCES = ("他提剑走进酒店。", "“你是谁？”她问。", "霁月当空，一夜无话！", "次日，众人下山去了……", "那人踅进后院，")


def _book(number: int, paragraphs: int, chapters: int = 0) -> str:
    """A text of its own for every number: paragraphs that occur in no other, under chapter headings if asked for."""
    lines = []
    for at in range(paragraphs):
        if chapters and at % max(1, paragraphs // chapters) == 0:
            lines.append(f"第{at // max(1, paragraphs // chapters) + 1}章 书{number}")
        mark = "".join(chr(0x4E00 + (number * 7919 + at * 131 + k * 17 + at * k * k) % 20000) for k in range(12))
        lines.append(mark + SENTENCES[at % 5] + mark[::-1] + SENTENCES[(at + number) % 5] + mark[::2] + "。")
    return "\n".join(lines) + "\n"


@pytest.fixture(scope="session")
def a_book() -> Callable[..., str]:
    """`a_book(number, paragraphs, chapters=0)`: a text of its own for every number."""
    return _book


@pytest.fixture(scope="session")
def bpe() -> Tokenizer:
    """2 500 tokens, byte-level, learned from the examples: rare characters are several tokens, frequent words one."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(QWEN_PATTERN), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()
    files = [str(path) for path in sorted(EXAMPLES.glob("*/*.txt"))]
    trainer = trainers.BpeTrainer(vocab_size=2500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train(files, trainer)
    return tokenizer


@pytest.fixture
def books(tmp_path: Path) -> Path:
    """A folder with a blank in its name, of ten books of different lengths."""
    folder = tmp_path / "十 本书"
    folder.mkdir()
    for number in range(10):
        (folder / f"书{number}.txt").write_text(_book(number, 12 + 3 * number), encoding="utf-8")
    return folder
