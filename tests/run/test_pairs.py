"""`stylora data pairs`: the answers are the author's, the questions what a model made of them; stopped, it goes on to the same file.

The model is a fake that answers from the passage, so that what was asked can be seen; one test asks the bundled base.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from rich.console import Console

from stylora.corpus.clean import Cleaning
from stylora.corpus.read import read_documents
from stylora.errors import UserError
from stylora.generate.settings import Sampling
from stylora.model.device import Device
from stylora.run import pairs as page
from stylora.run import paraphraser
from stylora.run.pairs import INSTRUCTIONS, Asking, make_pairs
from stylora.run.paraphraser import Paraphraser, Written
from stylora.samples.conversations import Conversation, read_conversations
from stylora.train.interruption import Interrupted

ROOT = Path(__file__).parents[2]
SMALL = Asking(batch_size=4)


class Fake:
    """Says the letters of a passage as others, every fourth passage as it is. asked: every batch"""

    def __init__(self, stop_at: Callable[[int], None] = lambda batches: None) -> None:
        self.asked: list[tuple[int, list[str]]] = []
        self.stop_at = stop_at

    def __call__(self, model: str, asking: Asking) -> Fake:
        return self

    def write(self, passages: Sequence[str], first: int) -> list[Written]:
        self.asked.append((first, list(passages)))
        self.stop_at(len(self.asked))
        return [Written(text=said(text) if n % 4 else text, stopped=True) for n, text in enumerate(passages, first)]


def said(text: str) -> str:
    """Every character the next one of its table."""
    return "".join(chr(ord(letter) + 1) if "\u4e00" <= letter < "\u9fff" else letter for letter in text)


@pytest.fixture
def novels(tmp_path) -> Path:
    """Two books, one of them in GBK."""
    folder = tmp_path / "我的 novels"
    folder.mkdir()
    for file, encoding in zip(sorted((ROOT / "examples" / "wuxia").glob("*.txt"))[:2], ("utf-8", "gb18030"), strict=True):
        (folder / file.name).write_text(file.read_text(encoding="utf-8")[:3000], encoding=encoding)
    return folder


@pytest.fixture
def make(novels, tmp_path) -> Callable[..., dict[str, Any]]:
    """`make(fake, asking, count=..., limit=..., force=...)`, to out.jsonl."""

    def run(fake: Callable[..., Any], asking: Asking = SMALL, output: str = "out.jsonl", **options: Any) -> dict[str, Any]:
        console = Console(file=io.StringIO())
        return make_pairs("tiny", [str(novels)], tmp_path / output, asking=asking, console=console, load=fake, **options)

    return run


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_answers_are_the_authors(make, novels, tmp_path):
    fake = Fake()
    told = make(fake, limit=10)
    found = rows(tmp_path / "out.jsonl")
    books = {document.source: document.text for document in read_documents([novels], Cleaning())}
    asked = [text for _, batch in fake.asked for text in batch]
    assert len(asked) == len(set(asked)) == told["asked"] == 10 and told["books"] == len(books) == 2
    assert [row["messages"][1]["content"] for row in found] == [text for n, text in enumerate(asked) if n % 4]
    for row in found:
        question, answer = row["messages"]
        assert (row["kind"], question["role"], answer["role"]) == ("rewrite", "user", "assistant")
        assert answer["content"] in books[row["group"]] and 40 <= len(answer["content"]) <= 120
        assert question["content"] in [opening + said(answer["content"]) for opening in INSTRUCTIONS]
    assert (told["pairs"], told["rejected"]) == (len(found), {"copy": 3})
    assert not (tmp_path / "out.jsonl.partial").exists() and not (tmp_path / "out.jsonl.lock").exists()


def test_instructions_take_turns_whatever_is_refused(make, tmp_path):
    make(Fake(), limit=12)
    begun = [row["messages"][0]["content"][: len("请把")] for row in rows(tmp_path / "out.jsonl")]
    assert begun == [INSTRUCTIONS[n % 3][: len("请把")] for n in range(12) if n % 4]


def test_the_rows_are_chat_data(make, tmp_path):
    make(Fake(), limit=5)
    read = list(read_conversations([str(tmp_path / "out.jsonl")], reports=[]))
    assert len(read) == 3 and all(isinstance(each, Conversation) and each.group for each in read)


def test_a_longer_file_begins_with_a_shorter_one(make, tmp_path):
    make(Fake(), output="a.jsonl", limit=6)
    make(Fake(), Asking(batch_size=7), output="b.jsonl", limit=20)
    make(Fake(), output="c.jsonl", count=5)
    a, b, c = (rows(tmp_path / f"{name}.jsonl") for name in "abc")
    assert b[: len(a)] == a and len(c) == 5 and b[:5] == c
    make(Fake(), Asking(sampling=Sampling(temperature=0.0, seed=1)), output="d.jsonl", limit=6)
    assert rows(tmp_path / "d.jsonl") != a


def test_enough_pairs_end_it(make):
    fake = Fake()
    told = make(fake, count=5)
    assert (told["pairs"], told["asked"], told["rejected"]) == (5, 7, {"copy": 2}) and len(fake.asked) == 2


def stopping_at(batch: int) -> Fake:
    def stop(batches: int) -> None:
        if batches == batch:
            os.kill(os.getpid(), signal.SIGTERM)

    return Fake(stop)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
@pytest.mark.parametrize("cut", [0, 1, 25])
def test_interrupted_it_goes_on_to_the_same_file(make, tmp_path, cut):
    """cut: bytes that the end of the partial file has lost, as after a power cut"""
    make(Fake(), output="whole.jsonl", limit=14)
    with pytest.raises(Interrupted):
        make(stopping_at(3), limit=14)
    assert not (tmp_path / "out.jsonl").exists()
    partial = tmp_path / "out.jsonl.partial"
    assert len(rows(partial)) == 1 + 8
    partial.write_bytes(partial.read_bytes()[: len(partial.read_bytes()) - cut])
    fake = Fake()
    told = make(fake, limit=14)
    assert [first for first, _ in fake.asked] == ([8, 12] if not cut else [4, 8, 12])
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert told["there_already"] == (8 if not cut else 7)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such signals")
def test_another_call_does_not_go_on(make, tmp_path):
    with pytest.raises(Interrupted):
        make(stopping_at(2))
    with pytest.raises(UserError, match="an unfinished table with other settings: max_chars 120, now 90"):
        make(Fake(), Asking(longest=90), limit=6)
    with pytest.raises(UserError, match="prompt .*now"):
        make(Fake(), Asking(prompt="{text}"), limit=6)
    told = make(Fake(), Asking(longest=90), limit=6, force=True)
    assert told["there_already"] == 0 and all(len(row["messages"][1]["content"]) <= 90 for row in rows(tmp_path / "out.jsonl"))


def test_a_file_that_is_there_is_replaced_by_force_alone(make, tmp_path):
    make(Fake(), limit=2)
    before = (tmp_path / "out.jsonl").read_bytes()
    with pytest.raises(UserError, match="which is there already"):
        make(Fake(), limit=6)
    assert (tmp_path / "out.jsonl").read_bytes() == before
    make(Fake(), limit=6, force=True)
    assert len(rows(tmp_path / "out.jsonl")) == 4


def test_one_process_at_a_time(make, tmp_path):
    with FileLock(tmp_path / "out.jsonl.lock"), pytest.raises(UserError, match="another process is writing"):
        make(Fake(), limit=2)


@pytest.mark.parametrize(
    ("asking", "output", "words"),
    [
        (Asking(prompt="改写"), "o.jsonl", "--prompt: got '改写', expected {text} in it"),
        (Asking(shortest=50, longest=40), "o.jsonl", "--min-chars: got 50, expected at most --max-chars, 40"),
        (Asking(instructions=(" ",)), "o.jsonl", "--instruction: got nothing"),
        (Asking(), "o.csv", "--output: got "), (Asking(), "no/o.jsonl", "--output: got "),
        (Asking(shortest=2000, longest=3000), "o.jsonl", "NOVEL: got no whole sentences of 2000 to 3000 characters"),
    ],
)  # fmt: skip
def test_mistakes(make, tmp_path, asking, output, words):
    def never(model: str, asking: Asking) -> Fake:
        raise AssertionError("nothing is loaded for a call that is wrong")

    with pytest.raises(UserError) as caught:
        make(never, asking, output=output)
    assert words in str(caught.value)
    assert not (tmp_path / output).exists() and not (tmp_path / f"{output}.partial").exists()


# ------------------------------------------------------------------------------------------------------------------- the model


TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def chat_base(base_folder, tokenizer, tmp_path) -> Path:
    """The random base with a template."""
    folder = tmp_path / "chat base"
    shutil.copytree(base_folder, folder)
    described = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    (folder / "tokenizer_config.json").write_text(json.dumps({**described, "chat_template": TEMPLATE}), encoding="utf-8")
    return folder


def test_a_paraphrase_depends_on_its_passage_and_number_alone(chat_base, monkeypatch):
    """Not on the batch, at any temperature; and it ends after three times the passage's tokens."""
    fp32 = Device(device=torch.device("cpu"), dtype=torch.float32, why="test")
    monkeypatch.setattr(paraphraser, "choose_device", lambda: fp32)
    model = Paraphraser(str(chat_base), prompt="说：{text}", sampling=Sampling(temperature=1.0, seed=3))
    passages = ["剑。", "刀光一闪。", "他走了。"]
    together = model.write(passages, 5)
    assert together == [model.write([passage], number)[0] for number, passage in enumerate(passages, 5)]
    assert together[1] != model.write(["刀光一闪。"], 7)[0], "another number draws others"
    with pytest.raises(UserError, match="--prompt: got .* tokens with its passage"):
        model.write(["剑" * 90], 0)


def test_the_command(command, novels, tmp_path):
    """The bundled base is too small to paraphrase: what is refused is counted, and the command still ends well."""
    call = ["data", "pairs", novels, "--model", "tiny", "--output", tmp_path / "o.jsonl", "--limit", 3, "--max-chars", 60]
    ran = command(*call, "--json")
    assert ran.code == 0, ran
    told = json.loads(ran.out)
    assert told["asked"] == 3 == told["pairs"] + sum(told["rejected"].values()) and len(rows(tmp_path / "o.jsonl")) == told["pairs"]
    ran = command(*call, "--force")
    assert ran.code == 0 and "passages" in ran.out and "3\n" in ran.out and str(tmp_path / "o.jsonl") in ran.out


def test_its_options(command, novels, tmp_path, monkeypatch):
    opened: list[Asking] = []
    monkeypatch.setattr(page, "_paraphraser", lambda model, asking: opened.append(asking) or Fake())
    ran = command(
        "data", "pairs", novels, "--model", "tiny", "--output", tmp_path / "o.jsonl", "--count", 2, "--min-chars", 20, "--max-chars", 50,
        "--instruction", "改：", "--instruction", "写：", "--prompt", "说{text}", "--temperature", 0.5, "--top-p", 0.9, "--seed", 3,
        "--batch-size", 5,
    )  # fmt: skip
    assert ran.code == 0, ran
    assert opened == [Asking(shortest=20, longest=50, instructions=("改：", "写："), prompt="说{text}", batch_size=5,
                             sampling=Sampling(temperature=0.5, top_p=0.9, seed=3))]  # fmt: skip
    assert len(rows(tmp_path / "o.jsonl")) == 2 and "1 copy" in ran.out and "warning" not in ran.out


def test_it_warns_where_most_are_refused(command, novels, tmp_path, monkeypatch):
    monkeypatch.setattr(page, "_paraphraser", lambda model, asking: Fake())
    call = ["data", "pairs", novels, "--model", "tiny", "--output", tmp_path / "o.jsonl", "--force", "--limit"]
    assert "most paraphrases were refused" in command(*call, 1).out and "warning" not in command(*call, 2).out


def test_a_base_without_a_template(base_folder, novels, tmp_path, refused):
    told = refused("data", "pairs", novels, "--model", base_folder, "--output", tmp_path / "o.jsonl", "--limit", 2)
    assert "template" in told
