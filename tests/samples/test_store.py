"""The token cache: ids are those of the whole text, the key is the content, a half-written store is never seen."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from pathlib import Path

import jieba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from stylora.corpus.chapters import find_chapters
from stylora.corpus.clean import Cleaning
from stylora.corpus.read import read_documents
from stylora.errors import UserError
from stylora.samples import store as module
from stylora.samples.store import open_store, part_ends, report_row, word_starts

BUNDLED = Path(module.__file__).parents[1] / "model" / "tiny" / "tokenizer.json"


def opened(bpe, cache, *inputs, **changes):
    options = dict(cleaning=Cleaning(), tokenizer=bpe, tokenizer_hash="t", chapters=False, words=False, cache=Path(cache))
    return open_store([str(path) for path in inputs], **{**options, **changes})


def test_ids_are_those_of_the_whole_text(bpe, books, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "PART", 50)
    monkeypatch.setattr(module, "BATCH", 200)
    store = opened(bpe, tmp_path / "cache", books)
    documents = list(read_documents([books], Cleaning()))
    assert [piece.source for piece in store.pieces] == [document.source for document in documents]
    position = 0
    for piece, document in zip(store.pieces, documents, strict=True):
        assert (piece.start, piece.characters) == (position, len(document.text))
        assert (piece.origin, piece.fingerprint) == (document.origin, document.fingerprint)
        whole = bpe.encode(document.text, add_special_tokens=False).ids
        assert store.ids[piece.start : piece.end].tolist() == whole
        position = piece.end
    assert position == len(store.ids) and store.ids.dtype == np.int32 and store.words is None


def test_parts_end_only_at_borders():
    text = "第一段。\n\n第二段，\n 空格开头\n第三段"
    assert part_ends(text, 1) == [6, 17, len(text)]
    assert [text[end] for end in part_ends(text, 1)[:-1]] == ["第", "第"]
    assert part_ends(text, 7) == [17, len(text)]
    assert part_ends("一行", 1) == [2] and part_ends("", 1) == [0]


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.sampled_from(list("他说走a1B ,.。！“”…\n\n\n\r\t\u3000'é\u0301踅😀")), max_size=80), size=st.integers(1, 9))
@pytest.mark.parametrize("name", ["trained here", "bundled"])
def test_a_border_never_changes_the_ids(bpe, name, text, size):
    if name == "bundled" and not BUNDLED.exists():
        pytest.skip("the bundled tokenizer is not built")
    tokenizer = bpe if name == "trained here" else _bundled()
    cuts = part_ends(text, size)
    parts = [text[a:b] for a, b in zip([0, *cuts], cuts, strict=False)]
    assert "".join(parts) == text
    encoded = tokenizer.encode_batch(parts, add_special_tokens=False)
    assert [i for e in encoded for i in e.ids] == tokenizer.encode(text, add_special_tokens=False).ids


def _bundled(cache: list[Tokenizer] = []) -> Tokenizer:  # noqa: B006 - read once in a test run
    if not cache:
        cache.append(Tokenizer.from_file(str(BUNDLED)))
    return cache[0]


def test_a_tokenizer_without_the_border_encodes_whole_texts(books, tmp_path, monkeypatch):
    """Metaspace puts a blank before every text, so parts would each begin with one."""
    monkeypatch.setattr(module, "PART", 20)
    letters = sorted({letter for path in books.iterdir() for letter in path.read_text(encoding="utf-8")} | {"▁", "?"})
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, [], unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    store = opened(tokenizer, tmp_path / "cache", books)
    for piece, document in zip(store.pieces, read_documents([books], Cleaning()), strict=True):
        assert store.ids[piece.start : piece.end].tolist() == tokenizer.encode(document.text).ids


def test_truncation_and_padding_of_the_tokenizer_lose_nothing(bpe, books, tmp_path):
    short = Tokenizer.from_str(bpe.to_str())
    short.enable_truncation(8)
    short.enable_padding(length=16)
    assert (opened(short, tmp_path / "a", books).ids == opened(bpe, tmp_path / "b", books).ids).all()
    assert short.truncation["max_length"] == 8, "the caller's tokenizer was changed"


def test_chapters_are_pieces(bpe, tmp_path, books, a_book):
    book = tmp_path / "回目.txt"
    book.write_text("楔子前的话。\n" + a_book(3, 30, chapters=5), encoding="utf-8")
    store = opened(bpe, tmp_path / "cache", book, chapters=True)
    (document,) = read_documents([book], Cleaning())
    chapters = find_chapters(document.text)
    assert len(chapters) == 6
    assert [(p.chapter, p.characters) for p in store.pieces] == [(c.title, c.end - c.start) for c in chapters]
    for piece, chapter in zip(store.pieces, chapters, strict=True):
        text = document.text[chapter.start : chapter.end]
        assert store.ids[piece.start : piece.end].tolist() == bpe.encode(text, add_special_tokens=False).ids


def test_words_begin_where_jieba_says(bpe):
    text = "次日霁月当空，苏蘅踅进酒店。\n无话"
    encoding = bpe.encode(text, add_special_tokens=False)
    starts = word_starts(text, encoding)
    words = list(jieba.cut(text))
    begins = {sum(map(len, words[:i])) for i in range(len(words))}
    seen = set()
    for offset, start in zip([a for a, _ in encoding.offsets], starts.tolist(), strict=True):
        assert start == (offset in begins and offset not in seen)
        seen.add(offset)
    assert len(encoding.ids) > len({a for a, _ in encoding.offsets}), "no character of several tokens in the example"


def test_words_do_not_change_the_ids(bpe, books, tmp_path):
    with_words, without = opened(bpe, tmp_path, books, words=True), opened(bpe, tmp_path, books)
    assert with_words.folder != without.folder
    assert (with_words.ids == without.ids).all() and len(with_words.words) == len(without.ids)
    assert set(np.unique(with_words.words)) == {0, 1}


def test_the_key_is_the_content_not_the_path_or_the_date(bpe, books, tmp_path):
    first = opened(bpe, tmp_path / "cache", books)
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(books, elsewhere)
    os.utime(elsewhere / "书1.txt", (1, 1))
    assert opened(bpe, tmp_path / "cache", elsewhere).folder == first.folder
    book = elsewhere / "书1.txt"
    content = book.read_text(encoding="utf-8")
    status = book.stat()
    book.write_text(content.replace("他", "她"), encoding="utf-8")
    os.utime(book, (status.st_atime, status.st_mtime))
    changed = opened(bpe, tmp_path / "cache", elsewhere)
    assert changed.folder != first.folder and (changed.ids != first.ids).any()
    book.write_text(content, encoding="utf-8")
    book.rename(elsewhere / "又名.txt")
    assert "又名" in {piece.source for piece in opened(bpe, tmp_path / "cache", elsewhere).pieces}


def test_a_store_opened_from_another_folder_names_the_files_there(bpe, books, tmp_path):
    (books / "行.jsonl").write_text('{"text": "一行。"}\n{"text": 2}\n{"text": "二行。"}\n', encoding="utf-8")
    with zipfile.ZipFile(books / "包.zip", "w") as archive:
        archive.writestr("内/书#1.txt", "他提剑走进酒店。\n" * 3)
        archive.writestr("空.txt", "")
    first = opened(bpe, tmp_path / "cache", books)
    elsewhere = tmp_path / "别处"
    shutil.copytree(books, elsewhere)
    second = opened(bpe, tmp_path / "cache", *sorted(elsewhere.iterdir()))
    assert second.folder == first.folder
    for folder, store in ((books, first), (elsewhere, second)):
        reports: list = []
        documents = list(read_documents([folder], Cleaning(), reports=reports))
        assert [piece.origin for piece in store.pieces] == [document.origin for document in documents]
        assert store.reports == reports
    assert {f"{elsewhere.as_posix()}/行.jsonl:3", f"{elsewhere.as_posix()}/包.zip!/内/书#1.txt"} <= {p.origin for p in second.pieces}


@pytest.mark.parametrize("change", [{"cleaning": Cleaning(adverts=False)}, {"tokenizer_hash": "u"}, {"chapters": True}, {"lines": True}])
def test_the_key_is_the_settings_too(bpe, books, tmp_path, change):
    assert opened(bpe, tmp_path, books).folder != opened(bpe, tmp_path, books, **change).folder


def test_a_second_opening_reads_no_text(bpe, books, tmp_path, monkeypatch):
    (books / "空.txt").write_bytes(b"")
    (books / "坏.txt").write_bytes("他说走进来。".encode() * 20 + b"\n\xff\n")
    first = opened(bpe, tmp_path / "cache", books)
    monkeypatch.setattr(module, "_write", None)
    second = opened(bpe, tmp_path / "cache", books)
    assert (second.ids == first.ids).all() and second.pieces == first.pieces and second.reports == first.reports
    reports = {Path(report.path).name: report for report in second.reports}
    assert reports["空.txt"].skipped and reports["坏.txt"].undecoded[0][1] == b"\xff"
    assert json.loads(json.dumps([report_row(r) for r in second.reports]))[0]["path"] == second.reports[0].path


def test_progress_ends_at_all_bytes(bpe, books, tmp_path):
    calls = []
    opened(bpe, tmp_path / "cache", books, progress=lambda done, total: calls.append((done, total)))
    size = sum(path.stat().st_size for path in books.iterdir())
    assert calls[-1] == (size, size) and [d for d, _ in calls] == sorted(d for d, _ in calls)


def test_a_full_disk_leaves_nothing_behind(bpe, books, tmp_path):
    resource = pytest.importorskip("resource")
    cache = tmp_path / "cache"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        with pytest.raises(UserError, match="no space left") as caught:
            opened(bpe, cache, books)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.where == str(cache) and list(cache.iterdir()) == []
    assert len(opened(bpe, cache, books).pieces) == 10


def test_an_interrupted_writing_is_never_opened(bpe, books, tmp_path):
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        opened(bpe, tmp_path / "cache", books, progress=stop)
    assert list((tmp_path / "cache").iterdir()) == []


def test_only_blank_files_are_an_error(bpe, tmp_path):
    (tmp_path / "a.txt").write_text(" \n", encoding="utf-8")
    with pytest.raises(UserError, match="no usable text"):
        opened(bpe, tmp_path / "cache", tmp_path / "a.txt")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_local_dataset_folder_is_known_by_its_content(tmp_path):
    folder = tmp_path / "rows"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"text": "一"}\n', encoding="utf-8")
    before = module._hub_revision(f"hf:{folder}:train")
    assert before == module._hub_revision(f"hf:{folder}:train")
    (folder / "train.jsonl").write_text('{"text": "二"}\n', encoding="utf-8")
    assert before != module._hub_revision(f"hf:{folder}:train")
