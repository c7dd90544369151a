"""The mixed JSONL: bounded passages, a true share, nothing of the general file counted as style."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stylora.corpus.clean import Cleaning
from stylora.corpus.read import read_documents
from stylora.errors import UserError
from stylora.samples.jsonl_mix import passages, write_mix


@pytest.fixture
def general(books: Path, a_book) -> Path:
    """Where the seed puts it: among the novels."""
    file = books / "general.txt"
    file.write_text(a_book(40, 200), encoding="utf-8")
    return file


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@given(st.text(st.sampled_from(list("甲乙丙。！”\n\n")), max_size=120), st.integers(1, 20))
def test_passages_lose_only_newlines(text, size):
    cut = list(passages(text, size))
    assert "".join(cut).replace("\n", "") == text.replace("\n", "")
    assert all(0 < len(passage) <= size for passage in cut)


def test_passages_prefer_paragraphs_then_sentences():
    assert list(passages("甲乙。\n丙丁。\n戊己庚辛", 9)) == ["甲乙。\n丙丁。", "戊己庚辛"]
    assert list(passages("甲乙丙丁。”戊己庚辛壬癸", 8)) == ["甲乙丙丁。”", "戊己庚辛壬癸"]
    assert list(passages("甲乙丙丁戊己", 4)) == ["甲乙丙丁", "戊己"]


@pytest.mark.parametrize("ratio", [0.0, 0.1, 0.3])
def test_the_share_is_of_characters(books, general, tmp_path, ratio):
    output = tmp_path / "out" / "混合.jsonl"
    mix = write_mix(books, general, output, ratio, passage=100)
    written = rows(output)
    size = {part: sum(len(r["text"]) for r in written if (r["source"] == "general") == part) for part in (True, False)}
    assert abs(size[True] - ratio / (1 - ratio) * size[False]) <= 50
    assert mix.general_share == pytest.approx(size[True] / sum(size.values())) and mix.unit == "characters"
    assert (mix.style_rows, mix.general_rows) == tuple(sum((r["source"] == "general") == p for r in written) for p in (False, True))
    assert all(set(row) == {"text", "source", "file"} and 0 < len(row["text"]) <= 100 for row in written)
    assert mix.warnings == () and [p.name for p in output.parent.iterdir()] == ["混合.jsonl"]


def test_with_a_tokenizer_the_share_is_of_tokens(books, general, tmp_path, bpe):
    mix = write_mix(books, general, tmp_path / "a.jsonl", 0.2, passage=100, tokenizer=bpe)
    tokens = {True: 0, False: 0}
    for row in rows(tmp_path / "a.jsonl"):
        tokens[row["source"] == "general"] += len(bpe.encode(row["text"]).ids)
    assert mix.unit == "tokens" and mix.general_share == pytest.approx(tokens[True] / sum(tokens.values()))
    assert mix.general_share == pytest.approx(0.2, abs=0.01)


def test_all_of_the_novels_and_nothing_else(books, general, tmp_path):
    output = tmp_path / "a.jsonl"
    write_mix(books, general, output, 0.1, passage=100)
    style = [row for row in rows(output) if row["source"] != "general"]
    documents = [d for d in read_documents([books], Cleaning()) if d.source != "general"]
    assert {row["source"] for row in style} == {d.source for d in documents} and len(documents) == 10
    for document in documents:
        mine = {row["text"] for row in style if row["source"] == document.source}
        assert mine == set(passages(document.text, 100))
    origin = {row["source"]: row["file"] for row in rows(output)}
    assert re.sub(r":\d+$", "", origin["general"]) == general.as_posix() and Path(origin["书1"]) == books / "书1.txt"


def test_shuffled_by_seed_and_again_the_same(books, general, tmp_path):
    output = books / "processed.jsonl"  # in the data folder, as the seed has it
    write_mix(books, general, output, 0.1, passage=100)
    first = output.read_bytes()
    write_mix(books, general, output, 0.1, passage=100)
    assert output.read_bytes() == first, "the output of the last time was read as style"
    write_mix(books, general, tmp_path / "b.jsonl", 0.1, seed=1, passage=100)
    assert (tmp_path / "b.jsonl").read_bytes() != first
    sources = [row["source"] for row in rows(output)]
    assert sources != sorted(sources)


def test_each_general_line_is_a_passage(books, general, tmp_path):
    """As the `general.txt` of `mix_data.py` has it: no row runs across lines, and none is joined to the next. The novels' still do."""
    lines = [f"第{i}行，今天天气很好，我们去散步" for i in range(200)]
    general.write_text("\r\n\r\n".join(lines), encoding="gb18030", newline="")
    write_mix(books, general, tmp_path / "a.jsonl", 0.3, passage=100)
    mine = [row for row in rows(tmp_path / "a.jsonl") if row["source"] == "general"]
    assert len(mine) > 50 and all(lines[(int(row["file"].rpartition(":")[2]) - 1) // 2] == row["text"] for row in mine)
    write_mix(books, general, tmp_path / "b.jsonl", 0.3, passage=10)
    assert {len(row["text"]) for row in rows(tmp_path / "b.jsonl") if row["source"] == "general"} > {10}
    assert any("\n" in row["text"] for row in rows(tmp_path / "a.jsonl") if row["source"] != "general")


def test_short_general_text_repeats_only_when_told(books, general, tmp_path, a_book):
    general.write_text(a_book(40, 5), encoding="utf-8")
    once = write_mix(books, general, tmp_path / "a.jsonl", 0.3, passage=100)
    texts = [row["text"] for row in rows(tmp_path / "a.jsonl") if row["source"] == "general"]
    assert len(set(texts)) == len(texts) and once.general_share < 0.3 and "short" in once.warnings[0]
    again = write_mix(books, general, tmp_path / "b.jsonl", 0.3, passage=100, general_repeat=True)
    assert again.general_share == pytest.approx(0.3, abs=0.02) and again.warnings == ()


@pytest.mark.parametrize("ratio", [1, 1.5, -0.1])
def test_a_ratio_that_is_none(books, general, tmp_path, ratio):
    with pytest.raises(UserError, match="below 1") as caught:
        write_mix(books, general, tmp_path / "a.jsonl", ratio)
    assert caught.value.where == "--general_ratio" and not (tmp_path / "a.jsonl").exists()


def test_missing_inputs(books, general, tmp_path):
    with pytest.raises(UserError, match="nothing there"):
        write_mix(tmp_path / "none", general, tmp_path / "a.jsonl", 0.1)
    with pytest.raises(UserError, match="nothing there"):
        write_mix(books, tmp_path / "none.txt", tmp_path / "a.jsonl", 0.1)
    with pytest.raises(UserError) as caught:
        write_mix(books, None, tmp_path / "a.jsonl", 0.1)
    assert caught.value.where == "--general_file"
    for path in books.glob("书*.txt"):
        path.unlink()
    with pytest.raises(UserError, match="nothing but the general file"):
        write_mix(books, general, tmp_path / "a.jsonl", 0.1)
    assert not (tmp_path / "a.jsonl").exists()


def test_a_full_disk_keeps_the_old_file(books, general, tmp_path):
    resource = pytest.importorskip("resource")
    output = tmp_path / "out" / "a.jsonl"
    output.parent.mkdir()
    output.write_text("old\n", encoding="utf-8")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        with pytest.raises(UserError, match="no space left"):
            write_mix(books, general, output, 0.1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert output.read_text(encoding="utf-8") == "old\n" and len(list(output.parent.iterdir())) == 1
