"""`data` against what the files are known to hold; bad input is one sentence; no torch anywhere in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from stylora.corpus.document import FileReport
from stylora.model.tokenizer_file import TINY
from stylora.run.data import SHOWN, doubts, file_rows
from stylora.samples.store import Piece

ROOT = Path(__file__).parents[2]
WUXIA, MODERN = ROOT / "examples" / "wuxia", ROOT / "examples" / "modern"
MESSY = ROOT.parent / "shared" / "corpus" / "messy"
ADVERT = "天才一秒记住本站地址：www.biquge.com，更多精彩小说请访问"


def book(number: int) -> str:
    """Two chapters that no other number has."""
    lines = ["他在山道上走了半日，只见前面一座破庙，庙门半掩，里面隐隐有火光透出来。", "那人抬起头来，冷冷说道：此路不通，阁下请回罢。"]
    mark = "".join(chr(0x5200 + number * 97 + i * 31) for i in range(20))
    body = [f"{line}{mark[i:]}{i * number}。" for i, line in enumerate(lines * 6)]
    return "\n".join(["第一章 破庙", *body[:6], "第二章 夜雨", *body[6:]]) + "\n"


@pytest.fixture
def novels(tmp_path) -> Path:
    """Three books, one of them in GBK, one with a broken byte and an advert; an empty file."""
    folder = tmp_path / "我的 小说"
    folder.mkdir()
    (folder / "甲.txt").write_bytes(book(1).encode("utf-8"))
    (folder / "乙.txt").write_bytes(book(2).encode("gb18030"))
    lines = book(3).splitlines(keepends=True)
    head = "".join([*lines[:2], ADVERT + "\n"]).encode("utf-8")
    (folder / "丙.txt").write_bytes(head + b"\xff\n" + "".join(lines[2:]).encode("utf-8"))
    (folder / "空.txt").write_bytes(b"")
    return folder


def test_scan_tells_what_is_known_of_the_files(command, novels):
    ran = command("data", novels, "data.window=64", "data.min_window=8", "--json")
    assert ran.code == 0 and ran.err == ""
    found = json.loads(ran.out)
    files = {Path(file["path"]).stem: file for file in found["files"]}
    assert {name: file["encoding"] for name, file in files.items()} == {"甲": "utf-8", "乙": "gb18030", "丙": "utf-8", "空": ""}
    assert files["空"]["skipped"] == "empty" and files["甲"]["skipped"] is None
    broken = (novels / "丙.txt").read_bytes()
    assert files["丙"]["undecoded"] == [[broken.index(b"\xff"), "ff"]]
    assert not files["甲"]["undecoded"] and not files["乙"]["undecoded"]
    (advert,) = [(step, line, text) for step, line, text in files["丙"]["removed"] if step == "adverts"]
    assert advert == ("adverts", 3, ADVERT)
    assert [files[name]["chapters"] for name in "甲乙丙空"] == [2, 2, 2, 0]
    # a clean book is not changed but for the newline at its end, so its characters and tokens are those of the text
    tokenizer = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    assert abs(files["甲"]["characters"] - len(book(1))) <= 1
    assert abs(files["甲"]["tokens"] - len(tokenizer.encode(book(1)).ids)) <= 4  # chapters are encoded apart
    held = [side for side in found["sides"] if side["held"]]
    assert len(held) == 1 and len(held[0]["books"]) == 1 and set(held[0]["books"]) < set("甲乙丙")
    assert sum(side["tokens"] for side in found["sides"]) == sum(file["tokens"] for file in found["files"])
    assert found["data"]["window"] == 64 and found["base"] == "tiny"
    assert found["leak"]["style"] < 1 and any("held out" in warning for warning in found["warnings"])


def test_the_terminal_shows_the_same_and_the_removed_only_when_asked(command, novels):
    plain = command("data", novels, "data.window=64", "data.min_window=8")
    assert plain.code == 0
    for word in ("甲.txt", "gb18030", "skipped: empty", "1 bytes", "ff at byte", "1 adverts", "held out", "leak", "epoch"):
        assert word in plain.out, word
    assert ADVERT not in plain.out
    shown = command("data", "scan", novels, "data.window=64", "data.min_window=8", "--show-removed")
    assert f"{(novels / '丙.txt').as_posix()}:3  adverts  {ADVERT}" in shown.out


def test_a_recipe_and_its_paths_are_the_same_data(command, recipe_file):
    recipe = command("data", recipe_file(), "--json")
    paths = command("data", WUXIA, "data.window=128", "data.min_window=16", "--json")
    assert json.loads(recipe.out) == json.loads(paths.out)
    other = command("data", recipe_file(), "data.validation=[寒江断雁录]", "--json")
    (held,) = [side for side in json.loads(other.out)["sides"] if side["held"]]
    assert held["books"] == ["寒江断雁录"]


def test_the_base_decides_the_tokens(command, tmp_path):
    from tokenizers import decoders, models, pre_tokenizers

    alphabet = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=alphabet, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    base = tmp_path / "base"
    base.mkdir()
    tokenizer.save(str(base / "tokenizer.json"))
    (base / "config.json").write_text('{"max_position_embeddings": 100}', encoding="utf-8")
    found = json.loads(command("data", WUXIA / "寒江断雁录.txt", "--base", base, "--json").out)
    assert found["data"]["window"] == 100, "no longer than the context"
    size = len((WUXIA / "寒江断雁录.txt").read_bytes())
    assert abs(found["files"][0]["tokens"] - size) < 0.01 * size, "a byte a token"


def test_rows_of_jsonl_are_texts_and_bad_ones_are_named(command, tmp_path):
    rows = tmp_path / "rows.jsonl"
    good = [json.dumps({"text": book(number)}, ensure_ascii=False) for number in range(4)]
    rows.write_text("\n".join([good[0], "{broken", *good[1:]]) + "\n", encoding="utf-8")
    found = json.loads(command("data", rows, "data.window=64", "data.min_window=8", "--json").out)
    assert found["data"]["format"] == "text"
    assert [number for number, _ in found["files"][0]["bad_rows"]] == [2]
    assert "row 2 passed over: not valid JSON" in command("data", rows, "data.window=64", "data.min_window=8").out


def test_parts_of_files_add_up_to_their_file():
    def piece(origin: str, start: int, end: int, chapter: str = "") -> Piece:
        return Piece(source="s", origin=origin, fingerprint="", chapter=chapter, start=start, end=end, characters=2 * (end - start))

    pieces = [piece("a#1.txt", 0, 3, "第一章"), piece("a#1.txt#2", 3, 7), piece("r.jsonl:1", 7, 8), piece("r.jsonl:12", 8, 10)]
    rows = file_rows([FileReport(path="a#1.txt"), FileReport(path="r.jsonl"), FileReport(path="none.txt")], pieces)
    assert [(row.tokens, row.characters, row.chapters) for row in rows] == [(7, 14, 1), (3, 6, 0), (0, 0, 0)]


def test_long_lists_are_cut_in_the_terminal():
    report = FileReport(path="a", encoding="utf-8", undecoded=[(i, b"\xff") for i in range(SHOWN + 3)])
    (line,) = doubts(report)
    assert line.count(" at byte ") == SHOWN and line.endswith(", ... and 3 more")


# ------------------------------------------------------------------------------------------------------------- data mix


UNDERSCORES = ("--data_dir", "--general_file", "--general_ratio")


@pytest.mark.parametrize("flags", [UNDERSCORES, tuple(flag.replace("_", "-") for flag in UNDERSCORES)])
def test_mix_writes_the_jsonl_of_old(command, tmp_path, flags):
    general, output = tmp_path / "general.txt", tmp_path / "processed_wuxia.jsonl"
    general.write_text("\n".join(path.read_text(encoding="utf-8") for path in sorted(MODERN.glob("*.txt"))), encoding="utf-8")
    ran = command("data", "mix", flags[0], WUXIA, flags[1], general, "--output", output, flags[2], "0.1")
    assert ran.code == 0
    rows = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert all(set(row) == {"text", "source", "file"} for row in rows)
    size = {kind: sum(len(row["text"]) for row in rows if (row["source"] == "general") is kind) for kind in (True, False)}
    assert abs(size[True] / (size[True] + size[False]) - 0.1) < 0.01
    assert f"{sum(row['source'] != 'general' for row in rows)} rows of style" in ran.out


def test_mix_depends_on_the_seed_alone(command, tmp_path):
    written = []
    for number, seed in enumerate((0, 0, 1)):
        output = tmp_path / f"{number}.jsonl"
        told = command("data", "mix", "--data_dir", WUXIA, "--general_file", MODERN / "旅行随笔.txt", "--output", output, "--general_ratio",
                       "0.02", "--seed", seed, "--json")  # fmt: skip
        assert json.loads(told.out)["output"] == str(output)
        written.append(output.read_bytes())
    assert written[0] == written[1] != written[2]


def test_mix_refuses_and_writes_nothing(refused, tmp_path):
    output = tmp_path / "mix.jsonl"
    arguments = ("data", "mix", "--data_dir", WUXIA, "--general_file", MODERN / "旅行随笔.txt", "--output", output)
    assert refused(*arguments, "--general_ratio", "1").startswith("--general_ratio: got 1.0")
    assert "nothing there" in refused("data", "mix", "--data_dir", tmp_path / "没有", "--output", output, "--general_ratio", "0")
    assert not output.exists()


# ------------------------------------------------------------------------------------------------------------ bad input


def test_bad_paths(refused, tmp_path):
    missing, empty, binary = tmp_path / "没有", tmp_path / "空", tmp_path / "程序.txt"
    empty.mkdir()
    binary.write_bytes(bytes(range(256)) * 40)
    assert refused("data", missing).startswith(f"{missing}: got nothing there")
    assert refused("data", empty).startswith(f"{empty}: got a folder of 0 files, none usable")
    told = refused("data", binary)
    assert str(binary) in told and "no usable text" in told and "binary" in told
    image = tmp_path / "图.png"
    image.write_bytes(b"\x89PNG")
    assert refused("data", image).startswith(f"{image}: got a '.png' file")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission(refused, tmp_path):
    secret = tmp_path / "密.txt"
    secret.write_text(book(1), encoding="utf-8")
    secret.chmod(0)
    assert refused("data", secret).startswith(f"{secret}: got ")


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("data.windw=64", "did you mean 'window'?"),
        ("objective.mask_ration=0.1", "did you mean 'mask_ratio'?"),
        ("data.window=long", "stages[0].data.window: got 'long'"),
        ("train.samples_per_step=[1]", "stages[0].train.samples_per_step: got [1]"),
        ("data.general_ratio=1", "data.general_ratio: got 1"),
        ("data.general_ratio=0.1", "data.general: got nothing"),
        ("data.window=100000", "data.window: got 100000 tokens, expected at most"),
        ("data.overlap=128", "data.overlap: got 128"),
        ("data.validation=[没有这本]", "data.validation: got '没有这本'"),
        ("data.window", "got no `=`"),
        ("base=no/such/base/here", "base: got 'no/such/base/here'"),
    ],
)
def test_bad_recipes(refused, recipe_file, override, told):
    assert told in refused("data", recipe_file(), override)


@pytest.mark.parametrize(
    ("objective", "told"),
    [("{kind: span, mask_ratio: 0}", "stages[0].objective.mask_ratio: got 0"), ("{kind: spam}", "objective.kind: got 'spam'")],
)
def test_bad_objectives(refused, recipe_file, objective, told):
    assert told in refused("data", recipe_file(objective=objective))


def test_overrides_alone_are_no_input(refused):
    assert refused("data", "data.window=64").startswith("data.window=64: got only overrides")


def test_broken_recipes_name_file_and_line(refused, tmp_path):
    path = tmp_path / "r.yaml"
    assert refused("data", path).startswith(f"{path}: got no such file")
    path.write_text("base: tiny\nstages: [\n", encoding="utf-8")
    assert refused("data", path).startswith(f"{path}:3: ")
    path.write_text("just words", encoding="utf-8")
    assert refused("data", path).startswith(f"{path}: got str")


# ------------------------------------------------------------------------------------------------------------- the rest


def test_no_torch(command, recipe_file, cache, tmp_path):
    """`command` skips without the base; the commands run in one fresh process."""
    recipe = recipe_file(objective="{kind: span, whole_words: true}")
    lines = [
        ["data", str(WUXIA)], ["data", str(recipe), "--json"], ["inspect", str(recipe), "--html", str(tmp_path / "i.html")],
        ["init", str(WUXIA), "--out", str(tmp_path / "o.yaml")],
        ["data", "mix", "--data_dir", str(WUXIA), "--output", str(tmp_path / "m.jsonl"), "--general_ratio", "0"],
    ]  # fmt: skip
    program = (
        "import json, sys\nfrom stylora.cli import main\n"
        "for sys.argv[1:] in json.loads(sys.argv[1]):\n"
        "    try:\n        main()\n    except SystemExit as stopped:\n        assert not stopped.code, sys.argv\n"
        "    heavy = {'torch', 'transformers', 'peft', 'accelerate', 'datasets'} & set(sys.modules)\n"
        "    assert not heavy, (sys.argv, heavy)\n"
    )
    environment = {**os.environ, "STYLORA_CACHE": str(cache), "PYTHONIOENCODING": "utf-8"}
    subprocess.run([sys.executable, "-c", program, json.dumps(lines)], check=True, env=environment, capture_output=True)
    assert (tmp_path / "o.yaml").is_file() and (tmp_path / "m.jsonl").is_file() and (tmp_path / "i.html").is_file()


@pytest.mark.parametrize("command_line", [("data", "--help"), ("data", "scan", "--help"), ("data", "mix", "--help"), ("data",)])
def test_help(command, command_line):
    ran = command(*command_line)
    told = ran.out + ran.err
    assert "Usage:" in told and " ".join(part for part in command_line if part != "--help") in told and "Traceback" not in told


@pytest.mark.skipif(not MESSY.is_dir(), reason="the shared corpus is not here")
def test_messy_files_are_all_accounted_for(command):
    ran = command("data", MESSY, "--json")
    found = json.loads(ran.out)
    files = {Path(file["path"]).name: file for file in found["files"]}
    on_disk = {path.name for path in MESSY.rglob("*") if path.is_file()}
    assert set(files) == on_disk
    assert files["07_empty.txt"]["skipped"] and files["09_whitespace_only.txt"]["skipped"]
    assert len(files["06_非法字节_五鼠闹东京.txt"]["undecoded"]) >= 14
    raw = next(MESSY.glob("06*")).read_bytes()
    assert all(raw[at : at + len(bad) // 2].hex() == bad for at, bad in files["06_非法字节_五鼠闹东京.txt"]["undecoded"])
