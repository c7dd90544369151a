"""The comparisons run, shrunk and in one process; what they report is what was measured. No figure of speed is asserted."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace
from statistics import median

import numpy as np
import pytest
from benchmarks.__main__ import main

from benchmarks import data, report
from stylora.corpus.decode import decode


@pytest.fixture(scope="module")
def small_data(tmp_path_factory, tokenizer):
    """The quick `data` comparison on a few hundred KB."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.backend_tokenizer.save(str(path))
    return replace(data.QUICK, megabytes=1, files=4, rounds=2, small=1, large=2, tokenizer=str(path))


@pytest.fixture(scope="module")
def data_outcome(small_data):
    return data.compare(small_data, data.measure)


@pytest.fixture(scope="module")
def style_outcome():
    """The quick `style` comparison with a model of width 32; two micro-batches to choose from."""
    import torch

    from benchmarks import style

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # matrices this small only lose by more
    model = style.QWEN | dict(vocab_size=512, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4)
    settings = replace(style.QUICK, model=model, words=500, window=64, microbatches=(2, 4), rounds=2)
    yield style.compare(settings, style.measure)
    torch.set_num_threads(threads)


# ------------------------------------------------------------------------------------------------------------- report


def test_contenders_take_turns_and_a_row_keeps_the_median():
    asked = []
    speeds = iter([3.0, 30.0, 1.0, 10.0, 2.0, 50.0])

    def measure(task):
        asked.append(task["contender"])
        return {"speed": next(speeds), "loss": [1.0], "peak_was_reset": True}

    tasks = [{"contender": name, "variant": {}} for name in "AB"]
    measured = report.take_turns(tasks, 3, measure)
    assert "".join(asked) == "ABABAB"
    rows = [report.row(task, results, speed="speed") for task, results in zip(tasks, measured, strict=True)]
    assert rows[0] == {"contender": "A", "settings": {}, "speed": 2.0, "loss": [1.0], "peak_was_reset": True, "rounds": [3.0, 1.0, 2.0]}
    assert rows[1]["speed"] == 30.0


def test_peak_memory_sees_what_was_freed_again():
    memory = report.PeakMemory()
    block = np.ones(64_000_000, np.uint8)
    del block
    assert 60 < memory.above() < 100
    assert memory.peak() == pytest.approx(memory.before + memory.above(), abs=5)


def test_a_process_apart_measures_the_same_work(small_data, tmp_path):
    size = data.write_corpus(tmp_path, 1, 2, seed=0)
    task = {"contender": "stylora", "variant": {}, "folder": str(tmp_path), "bytes": size, "tokenizer": small_data.tokenizer}
    there, here = report.apart("benchmarks.data")(task), data.measure(task)
    assert there.keys() == here.keys() and there["tokens"] == here["tokens"]
    assert there["peak_memory_mb"] < here["peak_memory_mb"]  # this process carries pytest and more


# -------------------------------------------------------------------------------------------------------------- style


def test_style_reports_rows_of_both_sides_and_ratios_of_the_chosen(style_outcome):
    rows = style_outcome["rows"]
    assert [(each["contender"], each["settings"]["windows_at_once"]) for each in rows] == [
        ("trainer", 2), ("trainer", 4), ("stylora", 2), ("stylora", 4)
    ]  # fmt: skip
    chosen = {each["contender"]: each for each in rows if each["chosen"]}
    assert chosen.keys() == {"trainer", "stylora"}
    for each in rows:
        assert len(each["rounds"]) == (2 if each["chosen"] else 1)
        assert each["tokens_per_second"] == pytest.approx(median(each["rounds"]))
        assert each["memory_above_model_mb"] >= 0
        others = [other["rounds"][0] for other in rows if other["contender"] == each["contender"]]
        assert not each["chosen"] or each["rounds"][0] == max(others)
    ours, theirs = chosen["stylora"], chosen["trainer"]
    ratios = style_outcome["ratios"]
    assert ratios["tokens_per_second_vs_trainer"] == ours["tokens_per_second"] / theirs["tokens_per_second"]
    assert ratios.keys() == {"tokens_per_second_vs_trainer", "memory_vs_trainer", "memory_vs_leanest_trainer"}


def test_style_ratios_come_from_the_rows():
    from benchmarks.style import ratios

    def row(contender, speed, memory, chosen):
        return {"contender": contender, "tokens_per_second": speed, "memory_above_model_mb": memory, "chosen": chosen}

    rows = [row("trainer", 5.0, 100.0, False), row("trainer", 8.0, 400.0, True), row("stylora", 20.0, 80.0, True)]
    assert ratios(rows) == {"tokens_per_second_vs_trainer": 2.5, "memory_vs_trainer": 0.2, "memory_vs_leanest_trainer": 0.8}


def test_both_sides_learn_the_same_thing(style_outcome):
    for each in style_outcome["rows"]:
        assert len(each["loss"]) == 2  # a step of warm-up, one under the clock
        assert each["loss"] == pytest.approx([math.log(512)] * 2, abs=0.2)


def test_windows_are_seeded_and_hold_no_special_token():
    from benchmarks import style

    settings = replace(style.QUICK, words=500)
    windows = style.draw_windows(settings)
    assert windows.shape == ((settings.warm_up + settings.steps) * settings.samples_per_step, settings.window) and windows.max() < 478
    assert np.array_equal(windows, style.draw_windows(settings))
    counts = np.sort(np.bincount(windows.ravel(), minlength=478))[::-1]
    assert counts[0] > 10 * counts[100] > 0  # Zipf: few words make most of it


def test_the_collator_masks_as_the_seed_describes():
    from benchmarks.style import IGNORED, SpanMaskingCollator

    collator = SpanMaskingCollator(mask_token=999, pad_token=998, words=900)
    rows = [{"input_ids": np.arange(length, dtype=np.int32)} for length in (800, 500)]
    batch = {name: tensor.numpy() for name, tensor in collator(rows).items()}
    assert batch["attention_mask"].sum(axis=1).tolist() == [800, 500]
    assert (batch["input_ids"][1, 500:] == 998).all() and (batch["labels"][1, 500:] == IGNORED).all()
    for ids, labels, length in zip(batch["input_ids"], batch["labels"], (800, 500), strict=True):
        chosen = labels != IGNORED
        assert chosen.sum() == int(0.15 * length)
        assert (labels[chosen] == np.flatnonzero(chosen)).all()
        kept = ids[:length] == np.arange(length)
        assert kept[~chosen[:length]].all()  # nothing else changed
        assert 0.65 < (ids[chosen] == 999).mean() < 0.95
    runs = np.diff(np.flatnonzero(np.diff(np.concatenate([[0], batch["labels"][0] != IGNORED, [0]]))))[::2]
    assert 0.3 < runs[runs >= 3].sum() / runs.sum() < 0.8  # about half of them stand in spans


# --------------------------------------------------------------------------------------------------------------- data


def test_data_reports_four_rows_and_keeps_nearly_all_text(data_outcome):
    bare, whole, small, large = data_outcome["rows"]
    assert [each["settings"]["corpus_mb"] for each in data_outcome["rows"]] == [1, 1, 1, 2]
    assert [len(each["rounds"]) for each in data_outcome["rows"]] == [2, 2, 1, 1]
    assert bare["text_mb"] == whole["text_mb"] >= 1 and large["text_mb"] >= 2
    assert whole["tokens"] == pytest.approx(bare["tokens"], rel=0.01)  # cleaning found next to nothing
    assert data_outcome["ratios"]["throughput_vs_tokenizer"] == whole[data.SPEED] / bare[data.SPEED]
    assert data_outcome["ratios"]["memory_2mb_vs_1mb"] == large["peak_memory_mb"] / small["peak_memory_mb"]


def test_the_corpus_is_fresh_text_in_two_encodings(tmp_path):
    size = data.write_corpus(tmp_path, 1, 4, seed=3)
    files = sorted(tmp_path.iterdir())
    texts = [path.read_text(encoding=data.encoding_of(number)) for number, path in enumerate(files)]
    assert size == sum(len(text.encode("utf-8")) for text in texts) and 1_000_000 <= size < 1_100_000
    assert [decode(path.read_bytes()).encoding for path in files] == ["utf-8"] * 3 + ["gb18030"]
    paragraphs = [line for text in texts for line in text.split("\n") if len(line) > 20]
    assert len(set(paragraphs)) == len(paragraphs) > 2000
    again = tmp_path / "again"
    again.mkdir()
    data.write_corpus(again, 1, 4, seed=3)
    assert [path.read_bytes() for path in sorted(again.iterdir())] == [path.read_bytes() for path in files]


def test_the_data_contenders_import_no_torch():
    code = "import sys, benchmarks.data; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=report.ROOT)


# ------------------------------------------------------------------------------------------------------------ command


def test_the_command_prints_and_writes_one_json_object(data_outcome, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(data, "compare", lambda settings, measure: data_outcome | {"settings": settings.megabytes})
    out = tmp_path / "data.json"
    assert main(["data", "--quick", "--json", "--out", str(out)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(out.read_text(encoding="utf-8"))
    assert printed["benchmark"] == "data" and printed["quick"] and printed["settings"] == data.QUICK.megabytes
    assert printed["rows"] == json.loads(json.dumps(data_outcome["rows"])) and printed["ratios"] == data_outcome["ratios"]
    assert printed["hardware"]["cores"] >= 1 and printed["hardware"]["ram_gb"] > 0 and printed["versions"]["torch"]
    assert [path.name for path in tmp_path.iterdir()] == ["data.json"]
    text = report.as_text(printed)
    for word in ("throughput_vs_tokenizer", "memory_2mb_vs_1mb", "tokenizer", printed["hardware"]["cpu"]):
        assert word in text


def test_mistakes_on_the_command_line_exit_with_2(tmp_path, capsys):
    assert main(["data", "--out", str(tmp_path / "missing" / "a.json")]) == 2
    assert "--out" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main(["stile"])
    assert stopped.value.code == 2
