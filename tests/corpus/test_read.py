"""Files of every kind become documents, what is unusable is named with its reason, and memory stays flat."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
import time
import tracemalloc
import zipfile
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest

from stylora.corpus import formats, intake
from stylora.corpus.clean import Cleaned, Cleaning
from stylora.corpus.document import Document, FileReport
from stylora.corpus.read import find_files, read_documents
from stylora.errors import UserError

MESSY = Path(__file__).parents[3] / "shared" / "corpus" / "messy"
AS_IS = Cleaning(**dict.fromkeys(Cleaning.model_fields, False))
STORY = "话说那日天色将晚，店中走进一个青衣少年，腰间悬着一口长剑。\n"


def documents(*paths: str | Path, cleaning: Cleaning = AS_IS) -> tuple[list[Document], dict[str, FileReport]]:
    """The documents, and the reports by the last part of their path."""
    reports: list[FileReport] = []
    found = list(read_documents(paths, cleaning, reports=reports))
    return found, {report.path.rpartition("/")[2]: report for report in reports}


def write(path: Path, content: str | bytes = STORY) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def without_www(text: str, cleaning: Cleaning, seen: object) -> Cleaned:
    """A stand-in for cleaning, which has its own tests: takes out every line with "www"."""
    lines = text.split("\n")
    removed = [("adverts", n, line) for n, line in enumerate(lines, 1) if "www" in line]
    kept = "\n".join(line for line in lines if "www" not in line)
    return Cleaned(text=kept, counts={"adverts": len(removed)}, removed=removed)


def jsonl(*rows: object) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def zipped(**members: Any) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def epub(*chapters: str | bytes) -> bytes:
    items = "".join(f'<item id="c{i}" href="c{i}.xhtml"/>' for i in range(len(chapters)))
    spine = "".join(f'<itemref idref="c{i}"/>' for i in range(len(chapters)))
    members = {
        "META-INF/container.xml": '<c><rootfile full-path="b.opf"/></c>',
        "b.opf": f"<p>{items}<spine>{spine}</spine></p>",
    }
    return zipped(**members, **{f"c{i}.xhtml": chapter for i, chapter in enumerate(chapters)})


# ------------------------------------------------------------------------------------------------------- find_files


def test_find_files_in_order_with_blanks_chinese_and_capitals(tmp_path: Path) -> None:
    names = ["b.txt", "A 空格/上级 目录/书 (1).TXT", "小说.Md", "x.EPUB", "z.zip", "r.jsonl", "r.JSON", "p.parquet"]
    for name in [*names, "image.jpg", "noext", ".hidden.txt", ".git/a.txt", "__MACOSX/._a.txt"]:
        write(tmp_path / name)
    found = find_files([tmp_path])
    assert sorted(names) == [f.relative_to(tmp_path).as_posix() for f in found]


def test_find_files_keeps_the_order_of_arguments_and_names_each_file_once(tmp_path: Path) -> None:
    a, b, hidden = write(tmp_path / "a.txt"), write(tmp_path / "b.txt"), write(tmp_path / ".h.txt")
    assert find_files([b, tmp_path, str(a)]) == [b, a]
    assert find_files([hidden]) == [hidden], "named by the user"


def test_find_files_says_what_is_wrong(tmp_path: Path) -> None:
    picture = write(tmp_path / "photos" / "a.jpg")
    (tmp_path / "empty").mkdir()
    for path, words in [
        (tmp_path / "missing", "nothing there"),
        (tmp_path / "empty", "a folder of 0 files, none usable"),
        (tmp_path / "photos", "a folder of 1 files, none usable"),
        (picture, "a '.jpg' file"),
    ]:
        with pytest.raises(UserError) as error:
            read_documents([path], AS_IS)  # at once, before the first document
        assert error.value.where == str(path) and words in str(error.value)


def test_an_unreadable_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good, closed = write(tmp_path / "a.txt"), write(tmp_path / "b.txt")
    original = Path.open

    def refuse(self: Path, *args: object, **kwargs: object) -> object:
        if self == closed:
            raise PermissionError(13, "Permission denied", str(self))
        return original(self, *args, **kwargs)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", refuse)
    stream = read_documents([tmp_path], AS_IS)
    assert next(stream).origin == good.as_posix()
    with pytest.raises(UserError, match="Permission denied") as error:
        next(stream)
    assert error.value.where == str(closed)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="needs permissions that bind")
def test_a_closed_folder_is_named(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(0)
    try:
        with pytest.raises(UserError, match="closed"):
            find_files([tmp_path])
    finally:
        closed.chmod(0o700)


# ------------------------------------------------------------------------------------------------------------ texts


@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "gb18030", "utf-16", "utf-16-be"])
def test_a_text_is_one_document(tmp_path: Path, codec: str) -> None:
    raw = (STORY * 3).encode(codec)
    path = write(tmp_path / "绿 牡丹.txt", raw)
    found, reports = documents(path)
    fingerprint = blake2b(raw, digest_size=16).hexdigest()
    assert found == [Document(text=STORY * 3, source="绿 牡丹", origin=path.as_posix(), fingerprint=fingerprint)]
    report = reports["绿 牡丹.txt"]
    assert (report.n_bytes, report.documents, report.skipped, report.undecoded) == (len(raw), 1, None, [])
    assert report.encoding in ("utf-8", "gb18030", "utf-16-le", "utf-16-be") and report.confidence > 0.9 and report.why


def test_unusable_files_are_skipped_with_the_reason_and_nothing_else_changes(tmp_path: Path) -> None:
    good = write(tmp_path / "good.txt")
    alone, _ = documents(good)
    write(tmp_path / "empty.txt", b"")
    write(tmp_path / "blank.txt", "\n　　\r\n \t")
    write(tmp_path / "noise.txt", os.urandom(4096))
    write(tmp_path / "packed.txt", gzip.compress(STORY.encode()))
    write(tmp_path / "high.txt", b"\xff" * 5000)
    write(tmp_path / "korean.txt", ("그날 저녁 주막에 푸른 옷을 입은 젊은이가 들어왔다. " * 20).encode("euc-kr"))
    write(tmp_path / "bad.zip", b"PK\x03\x04 but no more")
    write(tmp_path / "bad.epub", zipped(mimetype="application/epub+zip"))
    write(tmp_path / "bad.parquet", b"PAR1 but no more")
    found, reports = documents(tmp_path)
    assert found == alone
    reasons = {name: report.skipped or "" for name, report in reports.items()}
    assert reasons.pop("good.txt") == ""
    assert reasons["empty.txt"] == "empty" and reasons["blank.txt"] == "nothing but blanks"
    assert "control bytes" in reasons["noise.txt"] and "gzip" in reasons["packed.txt"]
    assert "no known encoding" in reasons["high.txt"] and "no known encoding" in reasons["korean.txt"]
    assert "broken" in reasons["bad.zip"] and "container.xml is missing" in reasons["bad.epub"]
    assert "broken Parquet" in reasons["bad.parquet"] and len(reasons) == 9 and all(reasons.values())


def test_a_corpus_without_any_text_is_an_error_that_names_the_files(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", b"")
    write(tmp_path / "b.jsonl", jsonl({"messages": []}))
    with pytest.raises(UserError) as error:
        list(read_documents([tmp_path], AS_IS))
    message = str(error.value)
    assert "a.txt: empty" in message and "b.jsonl: no row usable of 1; row 1: no `text`" in message


def test_undecodable_bytes_are_reported(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", STORY.encode() + b"\xfe\xff" + STORY.encode())
    found, reports = documents(path)
    assert found[0].text == STORY + "\ufffd" + STORY
    assert reports["a.txt"].undecoded == [(len(STORY.encode()), b"\xfe\xff")]


def test_html_is_taken_off_before_cleaning(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", f"<html><body><p>{STORY}</p><script>x</script><p>二</p></body></html>")
    found, reports = documents(path)
    assert found[0].text == STORY + "二" and reports["a.txt"].counts == {"html": 1}


def test_cleaning_is_applied_counted_and_shown(tmp_path: Path) -> None:
    long = STORY.strip() * 2
    write(tmp_path / "a.txt", f"{long}\r\n最新章节请访问 www.example.com\r\n{long}完\r\n")
    found, reports = documents(tmp_path, cleaning=Cleaning())
    assert "www" not in found[0].text and "\r" not in found[0].text
    assert reports["a.txt"].counts["newlines"] == 3 and reports["a.txt"].counts["adverts"] == 1
    assert any(step == "adverts" and line == 2 for step, line, _ in reports["a.txt"].removed)


@pytest.mark.parametrize("codec", ["utf-8", "gb18030", "utf-16-le"])
def test_a_large_text_comes_in_parts_of_one_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str) -> None:
    monkeypatch.setattr(intake, "PART", 1000)
    lines = "".join(f"第{i}行，{STORY}" for i in range(100))
    raw = lines.encode(codec)
    path = write(tmp_path / "大.txt", raw)
    found, reports = documents(path)
    assert len(found) > 5 and "".join(d.text for d in found) == lines
    assert all(d.text.endswith("\n") and d.source == "大" for d in found)
    assert len({d.fingerprint for d in found}) == len(found) == len({d.origin for d in found})
    assert reports["大.txt"].encoding == codec and reports["大.txt"].documents == len(found)


def test_offsets_and_lines_of_later_parts_count_from_the_beginning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(intake, "PART", 1000)
    monkeypatch.setattr(intake, "clean", without_www)
    raw = STORY.encode() * 40 + b"\xff\n" + b"www.a.com\n" + STORY.encode() * 40
    _, reports = documents(write(tmp_path / "a.txt", raw))
    assert reports["a.txt"].undecoded == [(40 * len(STORY.encode()), b"\xff")]
    assert [(step, line) for step, line, _ in reports["a.txt"].removed] == [("adverts", 42)]


# --------------------------------------------------------------------------------------------------------- archives


def test_zip_members_are_documents_and_their_names_are_read_right(tmp_path: Path) -> None:
    passed_over = {"x.jpg": "x", "__MACOSX/._a.txt": "x", "d/": ""}
    raw = zipped(**{"b/二.txt": STORY, "a.TXT": STORY.encode("gb18030")}, **passed_over)
    path = write(tmp_path / "novels.zip", raw)
    found, reports = documents(path)
    assert [(d.source, d.origin) for d in found] == [
        ("a", f"{path.as_posix()}!/a.TXT"),
        ("二", f"{path.as_posix()}!/b/二.txt"),
    ]
    assert {d.text for d in found} == {STORY} and set(reports) == {"a.TXT", "二.txt"}
    assert reports["a.TXT"].encoding == "gb18030"


def test_zip_names_in_gbk(tmp_path: Path) -> None:
    raw = zipped(**{"aaaaaaaa.txt": STORY}).replace(b"aaaaaaaa", "剑侠小说".encode("gbk"))
    found, _ = documents(write(tmp_path / "a.zip", raw))
    assert found[0].source == "剑侠小说"


def test_zip_members_that_cannot_be_read_are_skipped(tmp_path: Path) -> None:
    inner = zipped(**{"a.txt": STORY})
    good = {"good.txt": STORY, "rows.jsonl": jsonl({"text": "行"})}
    raw = zipped(**good, **{"in.zip": inner, "empty.txt": "", "torn.txt": "torn" * 50})
    raw = raw.replace(b"torntorn", b"TORNtorn")  # the check sum no longer fits
    found, reports = documents(write(tmp_path / "a.zip", raw))
    assert [d.source for d in found] == ["good", "rows"]
    assert "archive in an archive" in str(reports["in.zip"].skipped) and reports["empty.txt"].skipped == "empty"
    assert "broken" in str(reports["torn.txt"].skipped)


def test_a_zip_without_text_and_a_zip_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "BOMB_BYTES", 1000)
    write(tmp_path / "good.txt")
    write(tmp_path / "none.zip", zipped(**{"a.jpg": "x"}))
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("b.txt", "一" * 500_000)
    found, reports = documents(tmp_path)
    assert len(found) == 1 and reports["none.zip"].skipped == "no usable file in it"
    assert "times its size" in str(reports["b.txt"].skipped)


def test_an_epub_is_one_document_in_reading_order(tmp_path: Path) -> None:
    one, two = f"<html><body><p>{STORY}</p></body></html>", f"<p>二，{STORY}</p>".encode("gb18030")
    write(tmp_path / "书.epub", epub(one, two))
    write(tmp_path / "in.zip", zipped(**{"书2.epub": epub(one)}))
    found, reports = documents(tmp_path)
    assert [(d.source, d.text) for d in found] == [("书2", STORY.strip()), ("书", f"{STORY}\n二，{STORY}".strip())]
    assert reports["书.epub"].encoding == "utf-8+gb18030" and reports["书.epub"].documents == 1


def test_an_epub_of_pictures_or_noise_is_skipped(tmp_path: Path) -> None:
    write(tmp_path / "good.txt")
    write(tmp_path / "pictures.epub", epub("<img src='a.jpg'/>"))
    write(tmp_path / "noise.epub", epub(os.urandom(2000)))
    found, reports = documents(tmp_path)
    assert len(found) == 1 and reports["pictures.epub"].skipped == "no text in it"
    assert "c0.xhtml is no text" in str(reports["noise.epub"].skipped)


# ------------------------------------------------------------------------------------------------------------- rows


def test_jsonl_rows_and_every_kind_of_bad_row(tmp_path: Path) -> None:
    bad = ["{broken", '{"messages": []}', '{"text": 3}', '{"text": " "}', '{"text": "a", "source": 7}', "[1]", "null"]
    bad += ["[" * 99999]
    lines = ['{"text": "一", "source": "甲"}', "", '{"text": "二"}', *bad, '{"text": "三\u2028四", "source": null}']
    path = write(tmp_path / "rows.jsonl", "\ufeff" + "\r\n".join(lines))
    found, reports = documents(path)
    assert [(d.text, d.source) for d in found] == [("一", "甲"), ("二", "rows"), ("三\u2028四", "rows")]
    assert [d.origin for d in found] == [f"{path.as_posix()}:{n}" for n in (1, 3, 12)]
    assert found[0].fingerprint == blake2b("一".encode(), digest_size=16).hexdigest()
    report = reports["rows.jsonl"]
    assert [n for n, _ in report.bad_rows] == list(range(4, 12)) and report.counts["bad rows"] == 8
    words = ["not valid JSON", "messages", "a number", "empty", "`source`", "expected an object", "null", "JSON"]
    assert all(word in reason for word, (_, reason) in zip(words, report.bad_rows, strict=True))
    assert report.documents == 3 and report.skipped is None


@pytest.mark.parametrize("codec", ["gb18030", "utf-16"])
def test_jsonl_in_other_encodings_and_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str) -> None:
    monkeypatch.setattr(intake, "PART", 500)
    rows = [{"text": f"{i}，{STORY}"} for i in range(50)]
    path = write(tmp_path / "rows.jsonl", jsonl(*rows).encode(codec))
    found, _ = documents(path)
    assert [d.text for d in found] == [row["text"] for row in rows]
    assert [int(d.origin.rpartition(":")[2]) for d in found] == list(range(1, 51))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("codec", ["utf-8", "gb18030", "utf-16"])
def test_lines_are_documents_where_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str, end: str) -> None:
    """In every encoding, with every line end and over the borders of parts; blank lines count, and give nothing."""
    if (codec, end) != ("utf-16", "\r"):  # whose parts are cut at LF only
        monkeypatch.setattr(intake, "PART", 500)
    lines = [f"{i}，{STORY.strip()}" if i % 5 else " \u3000" * (i % 2) for i in range(1, 51)]
    path = write(tmp_path / "general.txt", end.join(lines).encode(codec))
    reports: list[FileReport] = []
    found = list(read_documents([path], AS_IS, lines=True, reports=reports))
    kept = [i for i in range(1, 51) if i % 5]
    assert [(d.text, d.origin) for d in found] == [(lines[i - 1], f"{path.as_posix()}:{i}") for i in kept]
    assert {d.source for d in found} == {"general"}
    assert [d.fingerprint for d in found] == [blake2b(d.text.encode(), digest_size=16).hexdigest() for d in found]
    (report,) = reports
    assert (report.documents, report.bad_rows, report.skipped) == (40, [], None)
    assert report.encoding == {"utf-16": "utf-16-le"}.get(codec, codec)


def test_lines_of_other_files_stay_together(tmp_path: Path) -> None:
    """The complement: not told so, or in other files, lines are paragraphs; in an archive a .txt is a .txt."""
    text = "第一段。\n\n第二段。\n"
    write(tmp_path / "a.txt", text), write(tmp_path / "b.md", text), write(tmp_path / "c.jsonl", jsonl({"text": text}))
    write(tmp_path / "d.zip", zipped(**{"e.TXT": text}))
    found = {lines: list(read_documents([tmp_path], AS_IS, lines=lines)) for lines in (False, True)}
    assert [d.text for d in found[False]] == [text] * 4
    assert [d.origin.rpartition("/")[2] for d in found[True]] == ["a.txt:1", "a.txt:3", "b.md", "c.jsonl:1", "e.TXT:1", "e.TXT:3"]
    assert [d.text for d in found[True]][2:4] == [text] * 2


def test_cleaning_never_joins_lines_that_are_documents(tmp_path: Path) -> None:
    """Lines of one width without an end, which `unwrap` joins in a book; what cleaning takes is named by its line."""
    wrapped = [STORY.strip("。\n")[i : i + 20] + f"{i}甲" for i in range(9)] * 3
    wrapped = [f"{line}{chr(0x4E00 + 37 * i)}" for i, line in enumerate(wrapped)]
    site = "最新章节请访问 www.example.com 手机阅读"
    path = write(tmp_path / "general.txt", "\n".join([*wrapped, site]))
    (whole,) = read_documents([path], Cleaning())
    assert whole.text.count("\n") < len(wrapped) // 2, "no wrapped text"
    reports: list[FileReport] = []
    assert [d.text for d in read_documents([path], Cleaning(), lines=True, reports=reports)] == wrapped
    assert reports[0].counts["unwrap"] == 0 and reports[0].bad_rows == [(28, "nothing left after cleaning")]
    assert {line for _, line, _ in reports[0].removed} == {28}


@pytest.mark.parametrize(("content", "reason"), [("", "empty"), (" \n\n", "no rows")])
def test_a_file_without_a_line_is_skipped(tmp_path: Path, content: str, reason: str) -> None:
    path = write(tmp_path / "general.txt", content)
    with pytest.raises(UserError, match=rf"general\.txt: {reason}"):
        list(read_documents([path], AS_IS, lines=True))


@pytest.mark.parametrize("part", [100, 500, 1 << 20])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_json_array_is_streamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: int, indent: int | None
) -> None:
    monkeypatch.setattr(intake, "PART", part)
    rows: list[object] = [{"text": f"{i}，[{STORY}]", "source": "乙"} for i in range(9)]
    raw = "\n " + json.dumps([*rows, 7], ensure_ascii=False, indent=indent)
    path = write(tmp_path / "rows.json", raw)
    found, reports = documents(path)
    assert [d.text for d in found] == [f"{i}，[{STORY}]" for i in range(9)] and found[0].source == "乙"
    first = 2 if indent is None else 3
    assert found[0].origin == f"{path.as_posix()}:{first}"
    line = raw.count("\n", 0, raw.rindex("7")) + 1
    assert reports["rows.json"].bad_rows == [(line, "a number, expected an object with `text`")]


@pytest.mark.parametrize(
    ("tail", "reason"), [("", "not valid JSON"), (', {"te', "not valid JSON"), ("] [1]", "after the end")]
)
def test_a_broken_array_gives_the_rows_before_the_break(tmp_path: Path, tail: str, reason: str) -> None:
    path = write(tmp_path / "rows.json", '[{"text": "一"},\n{"text": "二"}' + tail)
    found, reports = documents(path)
    assert [d.text for d in found] == ["一", "二"]
    assert [(n, reason in words) for n, words in reports["rows.json"].bad_rows] == [(2, True)]


def test_lone_surrogates_of_json_escapes_become_marks(tmp_path: Path) -> None:
    found, reports = documents(write(tmp_path / "r.jsonl", '{"text": "a\\ud800\\udbffb"}'))
    assert found[0].text == "a\ufffdb" and reports["r.jsonl"].counts["lone surrogates"] == 1
    found[0].text.encode("utf-8")


def test_removed_lines_of_rows_name_the_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "clean", without_www)
    path = write(tmp_path / "r.jsonl", jsonl({"text": STORY}, {"text": STORY + "www.a.com\n"}, {"text": STORY}))
    _, reports = documents(path)
    assert [(step, row) for step, row, _ in reports["r.jsonl"].removed] == [("adverts", 2)]


def test_parquet(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    texts, sources = [f"第{i}行" for i in range(200)] + [None], ["甲"] * 200 + ["乙"]
    pq.write_table(pa.table({"n": range(201), "text": texts, "source": sources}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"content": ["x"]}), tmp_path / "b.parquet")
    write(tmp_path / "c.zip", zipped(**{"a.parquet": (tmp_path / "a.parquet").read_bytes()}))
    found, reports = documents(tmp_path / "a.parquet", tmp_path / "b.parquet")
    assert [d.text for d in found] == texts[:200] and {d.source for d in found} == {"甲"}
    assert found[199].origin.endswith("a.parquet:200")
    assert reports["a.parquet"].bad_rows == [(201, "`text` is null, expected a string")]
    assert reports["b.parquet"].skipped == "no `text` among its columns content"
    assert [d.text for d in documents(tmp_path / "c.zip")[0]] == texts[:200]


def test_a_dataset_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip("datasets")
    folder = tmp_path / "数据"
    write(folder / "train.jsonl", jsonl({"text": "一", "source": "甲"}, {"text": "二", "source": None}))
    write(folder / "test.jsonl", jsonl({"text": "三", "source": "乙"}))
    found, reports = documents(f"hf:{folder.as_posix()}", f"hf:{folder.as_posix()}:test")
    assert [(d.text, d.source) for d in found] == [("一", "甲"), ("二", "数据"), ("三", "乙")]
    assert found[2].origin == f"hf:{folder.as_posix()}:test:1" and reports["数据:test"].documents == 1
    for spec in (f"hf:{folder.as_posix()}:nosuch", f"hf:{(tmp_path / 'missing').as_posix()}"):
        with pytest.raises(UserError) as error:
            list(read_documents([spec], AS_IS))
        assert error.value.where == spec


# ------------------------------------------------------------------------------------------------- speed and memory


def test_importing_loads_nothing_heavy() -> None:
    heavy = "('torch', 'transformers', 'datasets', 'pyarrow')"
    code = f"import sys, stylora.corpus.read; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_reading_is_streamed_and_fast(tmp_path: Path) -> None:
    for i in range(8):
        write(tmp_path / f"{i}.txt", (f"{i}，" + STORY) * 10_000)  # about 1 MB each
    start = time.perf_counter()
    n_bytes = sum(len(d.text.encode()) for d in read_documents([tmp_path], AS_IS))
    seconds = time.perf_counter() - start
    assert n_bytes > 7_000_000 and seconds / (n_bytes / 1e6) < 0.03, "10 ms per MB, with a margin for a busy machine"
    tracemalloc.start()
    try:
        for document in read_documents([tmp_path], AS_IS):
            assert document.text
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # a file's bytes and text, the document before it, and the read buffer of one part
    assert peak < intake.PART + 6_000_000, "all eight together are 16 MB of text and 8 MB of bytes"


# --------------------------------------------------------------------------------------------------- the real files


def test_messy_folder() -> None:
    if not MESSY.is_dir():
        pytest.skip("the corpus of awkward files is not here")
    found, reports = documents(MESSY)
    skipped = {name[:2]: report.skipped for name, report in reports.items() if report.skipped}
    assert set(skipped) == {"07", "09", "20", "22"}
    assert skipped["07"] == "empty" and skipped["09"] == "nothing but blanks"
    encodings = {name[:2]: report.encoding for name, report in reports.items()}
    assert encodings["02"] == encodings["15"] == "utf-16-le" and encodings["16"] == "utf-8+gb18030"
    assert encodings["01"] == "gb18030" and encodings["12"] == "big5"
    texts = {d.source[:2]: d.text for d in found}
    assert "带空" in texts and texts["17"].count("<") == 0 and len(texts["08"]) > 600_000
    six = next(report for name, report in reports.items() if name.startswith("06"))
    assert len(six.undecoded) == 14 == texts["06"].count("\ufffd")
