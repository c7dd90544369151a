"""The comparison on tasks runs, shrunk and in one process; all contenders learn the same. No figure of speed is asserted."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from benchmarks.__main__ import main

from benchmarks import report

SYSTEM = "把名称归一为标准名称，只输出名称。[vehicle] 是车型，[pollutant] 是污染物。"


def made(task, folder):
    """A stand-in for `stylora data make`."""
    lines = []
    for number in range(40):
        user, said = f"[vehicle] 国六小轿车{number}", f"Passenger Car {number % 7}"
        if task == "columns":
            user, said = f'["时间{number}", "速度"]', f'{{"时间{number}": "time_sec", "速度": "speed_kph"}}'
        roles = zip(("system", "user", "assistant"), (SYSTEM, user, said), strict=True)
        lines.append(json.dumps({"messages": [{"role": role, "content": content} for role, content in roles]}, ensure_ascii=False))
    path = folder / f"{task}-rows.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def tasks():
    """The module, with torch on one thread (matrices this small only lose by more) and rows in the bundled base's tokens."""
    import torch

    from benchmarks import tasks, tasks_rows

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks_rows, "made", made)
        patch.setattr(tasks_rows, "qwen_file", lambda: None)
        yield tasks
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def small(tasks):
    tiny = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4)
    at_once = tasks.QUICK.at_once | {"trainer": (1, 4)}
    return replace(tasks.QUICK, model=tasks.QWEN | tiny | dict(vocab_size=6400), at_once=at_once, parity_model=tiny, parity_steps=4)


@pytest.fixture(scope="module")
def outcome(tasks, small):
    from benchmarks import tasks_contenders

    return tasks.compare(small, tasks_contenders.measure)


def test_every_contender_is_tried_and_goes_on_with_its_fastest(tasks, outcome):
    first = [each for each in outcome["rows"] if each["settings"]["task"] == "unified"]
    names = [name for name in tasks.LABELS if tasks.with_trl() or not name.startswith("trl")]
    assert list(dict.fromkeys(each["contender"] for each in first)) == names
    tried = [each for each in first if each["contender"] == "trainer"]
    assert [each["settings"]["at_once"] for each in tried] == [1, 4]
    fastest = max(tried, key=lambda each: each["samples_per_second"])
    assert [each["chosen"] for each in tried] == [each is fastest for each in tried]
    later = {each["contender"]: each for each in outcome["rows"] if each["settings"]["task"] == "columns"}
    assert later.keys() == {"trainer", "stylora"} and later["trainer"]["settings"]["at_once"] == fastest["settings"]["at_once"]


def test_forests_compute_fewer_tokens_of_the_same_rows(outcome):
    rows = {each["contender"]: each for each in outcome["rows"] if each["settings"]["task"] == "unified" and each["chosen"]}
    assert {each["samples_per_step"] for name, each in rows.items() if name != "trl packed"} == {4}, "a pack holds as many as fit it"
    told = outcome["tokens"]["unified"]
    assert rows["seed"]["tokens_per_step"] == 4 * 256 > rows["trainer"]["tokens_per_step"] >= 4 * told["whole"] * 0.9
    assert told["system"] < rows["stylora"]["tokens_per_step"] < rows["trainer"]["tokens_per_step"] / 2


def test_losses_are_the_same_step_by_step(tasks, outcome):
    losses = outcome["losses"]
    assert losses["steps"].keys() >= {"stylora", "trainer", "answers"} and {len(each) for each in losses["steps"].values()} == {4}
    assert losses["largest_difference"] < 1e-4
    ours = losses["steps"]["stylora"]
    assert ours[-1] < ours[0] - 0.01, "nothing was learned, so nothing was compared"
    assert losses["largest_difference"] == max(
        abs(a - b) for name, other in losses["steps"].items() for a, b in zip(ours, other, strict=True)
    )


def test_packed_rows_do_not_see_one_another(tasks, outcome):
    """In the precision of this device: the first loss of all that learn answers is one."""
    first = {each["contender"]: each["loss"][0] for each in outcome["rows"] if each["settings"]["task"] == "unified"}
    for name in first.keys() - {"seed"}:
        assert first[name] == pytest.approx(first["stylora"], rel=2e-3), name


def test_ratios_come_from_the_rows(tasks):
    def row(contender, speed, memory, chosen=True):
        return {"contender": contender, "samples_per_second": speed, "memory_above_model_mb": memory, "chosen": chosen}

    rows = [row("seed", 1.0, 900.0), row("trainer", 1.5, 200.0, False), row("trainer", 2.0, 800.0), row("answers", 6.0, 300.0)]
    rows += [row("trl", 0.5, 500.0), row("trl packed", 0.8, 600.0), row("stylora", 20.0, 250.0), row("stylora", 18.0, 100.0, False)]
    assert tasks._ratios(rows) == pytest.approx({
        "samples_vs_seed": 20, "samples_vs_trainer": 10, "samples_vs_answers": 20 / 6, "samples_vs_trl": 40, "samples_vs_trl_packed": 25,
        "samples_vs_best": 10, "memory_vs_best": 0.5, "memory_vs_leanest": 0.5,
    })  # fmt: skip


def test_ratios_of_the_first_setting_stand_bare_too(outcome):
    found = outcome["ratios"]
    bare = {name for name in found if not name.startswith(("unified_", "columns_"))} - {"largest_loss_difference"}
    assert {"samples_vs_trainer", "samples_vs_best", "memory_vs_best"} <= bare
    assert all(found[name] == found[f"unified_2_layers_4_{name}"] for name in bare)
    assert "columns_2_layers_4_samples_vs_trainer" in found and "columns_2_layers_4_samples_vs_seed" not in found


def test_the_fastest_peer_is_the_one_of_that_task(tasks):
    def row(task, contender, speed):
        return {"contender": contender, "samples_per_second": speed, "chosen": True, "settings": {"task": task, "at_once": 4}}

    rows = [row("unified", "trainer", 3.0), row("unified", "answers", 9.0), row("unified", "stylora", 30.0), row("columns", "seed", 8.0)]
    setting = tasks.Setting(task="unified", layers=4, samples_per_step=64, contenders=("fastest", "stylora"))
    assert tasks.to_run(tasks.FULL, setting, rows, first=False) == [("trainer", 4), ("stylora", 1024), ("stylora", 8192)]


def test_without_trl_its_rows_are_left_out(tasks, monkeypatch):
    monkeypatch.setattr(tasks, "with_trl", lambda: False)
    names = [name for name, _ in tasks.to_run(tasks.FULL, tasks.FULL.settings[0], [], first=True)]
    assert set(names) == {"seed", "trainer", "answers", "stylora"}


def test_padding_is_masked_and_an_older_script_learns_the_prompt():
    from benchmarks.tasks_contenders import IGNORED, labelled, padded, sorted_in_steps

    rows = [{"ids": [5, 6, 7, 8], "targets": [2, 3]}, {"ids": [5, 9], "targets": [1]}]
    assert labelled(rows[0])["labels"] == [IGNORED, IGNORED, 7, 8] and labelled(rows[0], everything=True)["labels"] == [5, 6, 7, 8]
    batch = {name: tensor.tolist() for name, tensor in padded([labelled(row) for row in rows]).items()}
    assert batch["attention_mask"] == [[1, 1, 1, 1], [1, 1, 0, 0]] and batch["labels"][1] == [IGNORED, 9, IGNORED, IGNORED]
    assert padded([labelled(row) for row in rows], 3)["input_ids"].tolist() == [[5, 6, 7], [5, 9, 0]]
    assert sorted_in_steps([rows[1], rows[0], rows[1]], 2) == [rows[0], rows[1], rows[1]]


def test_rows_are_drawn_by_the_seed_and_renumbered_without_loss(tasks, tmp_path):
    from benchmarks import tasks_rows

    form, whose = tasks_rows.chat_tokens()
    rows = tasks_rows.encoded(made("columns", tmp_path), form, 12, 3)
    assert whose == tasks_rows.TINY and rows == tasks_rows.encoded(tmp_path / "columns-rows.jsonl", form, 12, 3)
    same, words = tasks_rows.renumbered(rows)
    assert words == len({word for row in rows for word in row["ids"]}) == 1 + max(word for row in same for word in row["ids"])
    assert [row["targets"] for row in same] == [row["targets"] for row in rows]
    told = tasks_rows.figures(rows)
    assert told["whole"] > told["system"] + told["user"] + told["answer"] - 1 and told["system"] > 10


def test_qwen_words_are_cut_as_qwen_cuts_them():
    from benchmarks import tasks_rows

    package = find_spec("dashscope")
    if package is None:
        pytest.skip("dashscope is not installed")
    tokenizer = tasks_rows.qwen_tokenizer(Path(package.submodule_search_locations[0]) / "resources/qwen.tiktoken")
    assert tokenizer.encode("Hello world!").ids == [9707, 1879, 0] and tokenizer.token_to_id("<|im_end|>") == 151_645
    assert tokenizer.decode(tokenizer.encode("国六小轿车（柴油）").ids) == "国六小轿车（柴油）"


# ---------------------------------------------------------------------------------------------------------------- pages


def told(outcome):
    return outcome | {"hardware": {"cores": 2, "cpu": "a processor"}, "versions": {"torch": "9.9"}, "quick": True}


def test_what_the_page_quotes_is_made_of_the_rows(tasks, outcome):
    table = tasks.tables(told(outcome))["TASKS"].splitlines()
    rows = [line for line in table if re.match(r"\| (unified|columns)", line)]
    assert len(rows) == sum(each["chosen"] for each in outcome["rows"])
    assert f"{outcome['ratios']['samples_vs_best']:.1f} and {outcome['ratios']['memory_vs_best']:.2f}" in table[-1]
    assert "`--quick`" in table[-1] and "the bundled base" in table[-1]


def test_a_stored_result_is_written_into_the_page(tasks, outcome, tmp_path, monkeypatch, capsys):
    page, result = tmp_path / "page.md", tmp_path / "tasks.json"
    page.write_text("before\n<!-- TASKS -->\nold\n<!-- /TASKS -->\nafter\n", encoding="utf-8")
    whole = told(outcome) | {"hardware": report.hardware()}
    result.write_text(json.dumps(whole), encoding="utf-8")
    monkeypatch.setattr(tasks, "PAGE", page)
    assert main(["tasks", "--tables", str(result), "--json"]) == 0
    table = tasks.tables(whole)["TASKS"]
    assert page.read_text(encoding="utf-8") == f"before\n<!-- TASKS -->\n{table}\n<!-- /TASKS -->\nafter\n"
    assert main(["tasks", "--tables", str(tmp_path / "missing.json")]) == 2
    assert "missing.json" in capsys.readouterr().err


def test_the_page_quotes_the_stored_result(tasks):
    stored = report.ROOT / "benchmarks/results/tasks.json"
    if not stored.is_file():
        pytest.skip("nothing was measured yet")
    text = (report.ROOT / "docs/benchmarks.md").read_text(encoding="utf-8")
    assert report.with_tables(text, tasks.tables(json.loads(stored.read_text(encoding="utf-8")))) == text
