"""The three-way test on the bundled base: variants are what they are called, figures those of their functions, wrong calls end early."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console

from stylora.errors import UserError
from stylora.evaluate.held_out import measure, precision_context
from stylora.evaluate.intervals import interval
from stylora.evaluate.passages import plain
from stylora.generate.decode import generate
from stylora.generate.settings import Sampling
from stylora.model.base import load_base
from stylora.model.device import Device, choose_device
from stylora.model.forest_model import ForestModel
from stylora.model.tokenizer_file import TINY
from stylora.recipe.recipe import parse_recipe
from stylora.run.open import find_model, open_model, put_on
from stylora.run.reported import read
from stylora.run.show_three_way import show
from stylora.run.stages import train_stages
from stylora.run.three_way import answer, three_way
from stylora.run.three_way_asked import ask_held_out, choose_yardsticks, learn_voice
from stylora.run.three_way_models import OlderFlags, Subject, Variant, find_subject, refuse_idle, switched, variants

ROOT = Path(__file__).parents[2]
KEYS = ["base", "style", "stack", "instruct"]
SAMPLING = Sampling(max_new_tokens=12, temperature=0.8, top_p=0.95)
FP32 = Device(device=torch.device("cpu"), dtype=torch.float32, why="test")
IDS = torch.arange(300, 340)[None]
pytestmark = pytest.mark.skipif(not (TINY / "tokenizer.json").is_file(), reason="the bundled base is not there yet")


@pytest.fixture(scope="module")
def material(tmp_path_factory) -> Path:
    """A few KB of each example in two folders, and sixteen rows of instructions."""
    folder = tmp_path_factory.mktemp("材料")
    for part in ("wuxia", "modern"):
        (folder / part).mkdir()
        for path in sorted((ROOT / "examples" / part).glob("*.txt"))[:5]:
            (folder / part / path.name).write_text(path.read_text(encoding="utf-8")[:700], encoding="utf-8")
    rows = (ROOT / "examples/instruct/wuxia.jsonl").read_text(encoding="utf-8").splitlines()[:16]
    (folder / "rows.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def run(material, cache, tmp_path_factory) -> Path:
    """A style of two steps, and instructions of two steps on it."""
    out = tmp_path_factory.mktemp("runs") / "我的 [run]"
    quick = {"max_steps": 2, "samples_per_step": 4, "save_strategy": "no", "eval_strategy": "no", "learning_rate": 1e-2, "report_to": []}
    style = {"train": str(material / "wuxia"), "general": str(material / "modern"), "general_ratio": 0, "window": 64, "min_window": 16}
    rows = {"format": "chat", "train": str(material / "rows.jsonl"), "validation": 0.25}
    stages = [
        {"name": "style", "data": style, "adapter": {"r": 4, "alpha": 8}, "train": quick, "prompts": []},
        {"name": "instruct", "on": ["style"], "data": rows, "adapter": {"r": 2, "alpha": 8}, "train": quick, "prompts": []},
    ]
    recipe = parse_recipe({"output_dir": str(out), "stages": stages}, [], name="test")
    train_stages(recipe, name="unused", console=Console(file=io.StringIO()), cache=cache)
    return out


@pytest.fixture
def copied(run, tmp_path) -> Path:
    shutil.copytree(run, tmp_path / "copy", ignore=shutil.ignore_patterns("three_way.json"))
    return tmp_path / "copy"


@pytest.fixture(scope="module")
def compare(cache) -> Callable[..., dict[str, Any]]:
    """`compare(run / "instruct")`, or with `older=OlderFlags(...)`: quietly, twelve tokens an answer."""

    def go(*models: object, older: OlderFlags | None = None, force: bool = False, **options: Any) -> dict[str, Any]:
        subject = find_subject([str(model) for model in models], older or OlderFlags(), force=force)
        given = {"sampling": SAMPLING, "max_new_tokens": 12, "console": Console(file=io.StringIO()), "cache": cache} | options
        return three_way(subject, **given)

    return go


@pytest.fixture(scope="module")
def result(compare, run) -> dict[str, Any]:
    return compare(run / "instruct")


def by_key(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {each["key"]: each for each in result["variants"]}


# ------------------------------------------------------------------------------------------------------------- variants


def test_the_variants(run):
    subject = find_subject([f"{run / 'instruct'}@style=0.5"], OlderFlags())
    assert variants(subject) == [
        Variant(key="base", name="base", weights=(0, 0)), Variant(key="style", name="base + style", weights=(0.5, 0)),
        Variant(key="stack", name="base + style + instruct", weights=(0.5, 1)),
        Variant(key="instruct", name="base + instruct", weights=(0, 1)),
    ]  # fmt: skip


def test_switching_leaves_what_its_name_says_and_afterwards_everything(run):
    """Base bit for bit, style only as that stage opens by itself, the stack as it was, all four different."""
    subject = find_subject([str(run / "instruct")], OlderFlags())
    base = load_base("tiny", FP32)
    with torch.no_grad():
        bare = base.model(IDS).logits
        model = put_on(base, subject.found).model
        whole = model(IDS).logits
        found = {}
        for variant in variants(subject):
            with switched(model, subject.found, variant):
                found[variant.key] = model(IDS).logits
            assert torch.equal(model(IDS).logits, whole), variant.key
        style = open_model(str(run / "style"), FP32).model(IDS).logits
        instruct = open_model(f"{run / 'instruct'}@style=0", FP32).model(IDS).logits
    assert torch.equal(found["base"], bare) and torch.equal(found["stack"], whole) and torch.equal(found["instruct"], instruct)
    torch.testing.assert_close(found["style"], style, rtol=0, atol=1e-5)
    logits = list(found.values())
    assert all((logits[i] - logits[j]).abs().max() > 1e-3 for i in range(4) for j in range(i))


# -------------------------------------------------------------------------------------------------------------- figures


def test_figures_are_those_of_their_functions(result, run, cache):
    """Of the stack, opened as every command opens it."""
    subject = find_subject([str(run / "instruct")], OlderFlags())
    yardsticks = choose_yardsticks(subject, None, None, None)
    assert yardsticks.asked and yardsticks.style and yardsticks.style.stages[0].name == "style"
    asked = ask_held_out(yardsticks, cache)
    voice, device = learn_voice(yardsticks, asked, seed=0, cache=cache), choose_device()
    opened = open_model(str(run / "instruct"), device)
    assert asked.shape and asked.held_out and voice
    with precision_context(device.device, device.dtype):
        given = answer(opened.model, opened.base, asked.questions, SAMPLING)
        samples, characters = asked.held_out.samples["answers"], asked.held_out.characters["answers"]
        forest = ForestModel(opened.base.model, words=len(opened.base.tokenizer))
        held = measure(forest, samples, characters, share_prefixes=True)
    entry = by_key(result)["stack"]
    assert [each["text"] for each in entry["answers"]] == [each.text for each in given]
    breaches = [asked.shape.breach(each.text, stopped=each.stopped, written=each.written) for each in given]
    assert [each["breach"] for each in entry["answers"]] == breaches
    assert entry["follows"] == interval([breach is None for breach in breaches], seed=0).as_json()
    assert entry["stops"] == interval([each.stopped for each in given], seed=0).as_json()
    scores = voice.style_score([plain(each.text)[: asked.typical] for each in given])
    assert entry["style_score"] == interval(scores, seed=0).as_json()
    assert entry["held_out"]["loss"] == pytest.approx(held.loss, rel=1e-3)
    assert sum(entry["breaches"].values()) == pytest.approx(1 - entry["follows"]["mean"])


def test_the_base_stands_first_and_has_not_changed(result):
    assert [each["key"] for each in result["variants"]] == KEYS
    entries = by_key(result)
    assert entries["base"]["held_out"]["change"] == 0 and entries["base"]["style_kept"] is entries["style"]["style_kept"] is None
    assert len({each["held_out"]["loss"] for each in entries.values()}) == 4
    assert all(len(each["answers"]) == result["settings"]["questions"] == 4 for each in entries.values())
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_answers_of_the_base_are_those_of_generate(result, run, cache):
    """The draws of `generate`: prompt number i from (seed, i)."""
    asked = ask_held_out(choose_yardsticks(find_subject([str(run / "instruct")], OlderFlags()), None, None, None), cache)
    device = choose_device()
    base = load_base("tiny", device)
    with precision_context(device.device, device.dtype):
        written = generate(base.model, base.tokenizer, [each.input for each in asked.questions], SAMPLING, chat=True)
    assert [each["text"] for each in by_key(result)["base"]["answers"]] == [each.text.strip() for each in written]


def test_special_tokens_that_were_drawn_are_seen(run, cache, monkeypatch):
    """Text leaves them out, so the form would not see them."""
    asked = ask_held_out(choose_yardsticks(find_subject([str(run / "instruct")], OlderFlags()), None, None, None), cache)
    base = load_base("tiny", FP32)
    token = base.tokenizer.convert_tokens_to_ids("<|im_start|>")
    monkeypatch.setattr("stylora.generate.decode.choose", lambda scores, numbers, sampling: torch.full_like(scores.argmax(-1), token))
    (given,) = answer(base.model, base, asked.questions[:1], SAMPLING)
    assert given.text == "" and given.written == "<|im_start|>" * 12 and not given.stopped and given.tokens == 12
    assert asked.shape and asked.shape.breach("字" * 60 + "。", stopped=True, written=given.written) == "template"


def test_kinds(result):
    kinds = by_key(result)["stack"]["kinds"]
    answers = by_key(result)["stack"]["answers"]
    assert {kind: told["questions"] for kind, told in kinds.items()} == {
        kind: sum(each["kind"] == kind for each in answers) for kind in {each["kind"] for each in answers}
    }
    assert {*kinds} <= {"rewrite", "continue", "describe"}
    for kind, told in kinds.items():
        assert told["stops"] == np.mean([each["stopped"] for each in answers if each["kind"] == kind])


def test_the_limit_is_twice_the_longest_answer(run, cache):
    asked = ask_held_out(choose_yardsticks(find_subject([str(run / "instruct")], OlderFlags()), None, None, None), cache)
    assert 60 <= asked.typical <= 90 and asked.max_new_tokens >= 2 * asked.tokens
    assert asked.shape and asked.shape.lines == 1 and asked.shape.endings


# ------------------------------------------------------------------------------------------------- files, report, screen


def test_two_calls_are_equal_and_the_stage_keeps_one(result, compare, run, copied):
    again = compare(copied / "instruct")
    kept = json.loads((copied / "instruct/three_way.json").read_text(encoding="utf-8"))
    assert kept == again
    assert {**again, "settings": None} == {**result, "settings": None}
    (copied / "instruct/three_way.json").unlink()
    compare(f"{copied / 'instruct'}@style=0.5", max_new_tokens=2)
    assert not (copied / "instruct/three_way.json").exists(), "other weights are not the stage's"


def test_the_report_has_it_until_the_adapter_changes(result, copied):
    (copied / "instruct/three_way.json").write_text(json.dumps(result), encoding="utf-8")
    told = {stage.name: stage.three_way for stage in read(str(copied)).stages}
    assert told["style"] is None and told["instruct"] and len(told["instruct"]["variants"]) == 4
    stack = copied / "instruct/stack.json"
    stack.write_text(stack.read_text(encoding="utf-8").replace(told["instruct"]["settings"]["adapters"][0]["hash"], "0" * 32), "utf-8")
    assert all(stage.three_way is None for stage in read(str(copied)).stages)


def test_the_table_and_the_samples(result):
    console = Console(file=io.StringIO(), width=120)
    show(result, console)
    printed = console.file.getvalue()
    for said in ("follows", "of style's", "base + style + instruct", "4 questions", "the form of the training answers", "answers cut to"):
        assert said in " ".join(printed.split()), said
    assert all(each["question"] in printed.replace("\n", "") for each in result["variants"][0]["answers"][:3])
    assert max(map(len, printed.split("4 questions")[0].splitlines())) <= 120


def test_the_command(command, run):
    told = json.loads(command("evaluate", "--three-way", run / "instruct", "--max-new-tokens", 4, "--json").out)
    assert [each["key"] for each in told["variants"]] == KEYS and told["settings"]["sampling"]["max_new_tokens"] == 4
    folders = ("--style_adapter", run / "style/adapter", "--instruct-adapter", run / "instruct/adapter")
    ran = command("evaluate", *folders, "--max-new-tokens", 4)
    assert ran.code == 0 and "base + style + instruct" in ran.out and "measure" in ran.err


# ---------------------------------------------------------------------------------------------------------- older flags


def test_the_folders_of_a_stack_are_the_stack(result, compare, run):
    found = compare(older=OlderFlags(style=str(run / "style/adapter"), instruct=str(run / "instruct/adapter")))
    assert [each["answers"] for each in found["variants"]] == [each["answers"] for each in result["variants"]]
    assert [each["held_out"] for each in found["variants"]] == [each["held_out"] for each in result["variants"]]


def plain_copy(adapter: Path, to: Path) -> Path:
    """The adapter as somebody else's: no run, no note of what it lies on."""
    to.mkdir(parents=True)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        shutil.copy(adapter / name, to / name)
    return to


def test_folders_without_recipes(result, compare, run, tmp_path):
    style, instruct = plain_copy(run / "style/adapter", tmp_path / "a"), plain_copy(run / "instruct/adapter", tmp_path / "b")
    older = OlderFlags(base="tiny", style=str(style), instruct=str(instruct))
    found = compare(older=older, max_new_tokens=2)
    assert found["settings"]["source"] == "30 built-in instructions" and found["settings"]["questions"] == 30
    assert [each["name"] for each in found["variants"]] == ["base", "base + a", "base + a + b", "base + b"]
    assert all(each["follows"] is each["held_out"] is each["style_score"] is None for each in found["variants"])
    assert {*found["variants"][0]["kinds"]} == {"rewrite", "continue", "describe"}
    said = " ".join(found["warnings"])
    assert "does not say what it was trained on" in said and "no style score" in said and "no form and no loss" in said
    recipe = tmp_path / "recipe.yaml"  # which says both
    text = [(run / stage / "recipe.yaml").read_text(encoding="utf-8") for stage in ("style", "instruct")]
    whole = yaml.safe_load(text[0])
    last = yaml.safe_load(text[1])["stages"][0]
    del last["adapter"]
    whole["stages"].append(last)
    recipe.write_text(yaml.safe_dump(whole, allow_unicode=True), encoding="utf-8")
    found = compare(older=older, data=recipe)
    assert [each["answers"] for each in found["variants"]] == [each["answers"] for each in result["variants"]]


def test_one_adapter_and_a_base(result, compare, run):
    found = compare(older=OlderFlags(lora=str(run / "style")), max_new_tokens=2)
    assert [each["key"] for each in found["variants"]] == ["base", "style"] and found["variants"][1]["style_score"] is not None
    found = compare(older=OlderFlags(base="tiny"), max_new_tokens=2)
    assert [each["key"] for each in found["variants"]] == ["base"] and found["settings"]["questions"] == 30


# ----------------------------------------------------------------------------------------------------------- wrong calls


def subject_of(run: Path, *models: str, force: bool = False, **flags: str) -> Subject:
    older = OlderFlags(**{name: str(run / folder) for name, folder in flags.items()})
    return find_subject([str(run / model) for model in models], older, force=force)


@pytest.mark.parametrize(
    ("models", "flags", "message"),
    [
        (["style"], {}, "got one adapter, expected a stack of at least two"),
        (["style", "instruct"], {}, "--three-way: got 2 MODELs, expected one"),
        ([], {}, "--three-way: got 0 MODELs, expected one"),
        (["instruct"], {"lora": "style"}, "expected either a MODEL or the older flags"),
        ([], {"style": "style"}, "--style_adapter: got no --instruct_adapter with it, expected both"),
        ([], {"instruct": "style"}, "--instruct_adapter: got no --style_adapter with it, expected both"),
        ([], {"lora": "style", "style": "style", "instruct": "instruct"}, "--lora_model: got a value beside --style_adapter"),
        ([], {"style": "instruct", "instruct": "instruct"}, "got an adapter that was trained on another style, expected one that was"),
        (["nowhere"], {}, "nowhere"),
    ],
)
def test_wrong_models(run, models, flags, message):
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        subject_of(run, *models, **flags)


def test_a_changed_style_is_refused_and_forced(compare, copied):
    config = copied / "style/adapter/adapter_config.json"
    config.write_text(config.read_text(encoding="utf-8").replace('"lora_alpha": 8', '"lora_alpha": 9'), encoding="utf-8")
    with pytest.raises(UserError, match="changed after training"):
        subject_of(copied, "instruct")
    found = compare(copied / "instruct", force=True, max_new_tokens=2)
    assert any(line.startswith("forced: ") for line in found["warnings"]) and not (copied / "instruct/three_way.json").exists()


def test_a_style_of_its_own_may_be_forced_below(run):
    assert subject_of(run, style="instruct", instruct="instruct", force=True).style == 2


def test_wrong_data(run, copied, tmp_path):
    subject = subject_of(run, "instruct")
    rows = tmp_path / "r.jsonl"
    with pytest.raises(UserError, match="--stage: got 'style', expected a stage of conversations in the recipe of --data"):
        choose_yardsticks(subject, run / "style/recipe.yaml", "style", None)
    bare = Subject(found=find_model("tiny"), style=0)
    with pytest.raises(UserError, match="--held-out: got no recipe"):
        choose_yardsticks(bare, None, None, rows)
    recipe = copied / "instruct/recipe.yaml"
    recipe.write_text(recipe.read_text(encoding="utf-8").replace("validation: 0.25", "validation: 0"), encoding="utf-8")
    with pytest.raises(UserError, match="data.validation: got 0 questions held out"):
        ask_held_out(choose_yardsticks(subject_of(copied, "instruct"), None, None, None), None)


def test_questions_that_were_trained_on_are_said(compare, run, copied, material, tmp_path):
    """Those of another split, or another file, may be."""
    rows = (material / "rows.jsonl").read_text(encoding="utf-8").splitlines()
    own = ask_held_out(choose_yardsticks(subject_of(run, "instruct"), None, None, None), None)
    held = {each.expected for each in own.questions}
    learned = [row for row in rows if json.loads(row)["messages"][-1]["content"] not in held]
    assert own.learned == 0 and 0 < len(learned) < len(rows)
    other = tmp_path / "other.jsonl"
    fresh = {"messages": [{"role": "user", "content": "问"}, {"role": "assistant", "content": "新的回答。"}]}
    other.write_text("\n".join([*learned[:2], json.dumps(fresh)]), encoding="utf-8")
    found = compare(run / "instruct", held_out=other, max_new_tokens=2)
    assert any(line.startswith("2 of 3 questions stand, with their answers, in rows") for line in found["warnings"])
    assert found["settings"]["source"] == f"conversations of {other}"
    unlike = tmp_path / "unlike.yaml"
    recipe = (run / "instruct/recipe.yaml").read_text(encoding="utf-8")
    unlike.write_text(recipe.replace("validation: 0.25", "validation: 0.5"), encoding="utf-8")
    asked = ask_held_out(choose_yardsticks(subject_of(run, "instruct"), unlike, None, None), None)
    assert asked.learned == sum(each.expected not in held for each in asked.questions) > 0
    changed = copied / "instruct/recipe.yaml"
    changed.write_text(recipe.replace("rows.jsonl", "gone.jsonl"), encoding="utf-8")
    assert ask_held_out(choose_yardsticks(subject_of(copied, "instruct"), unlike, None, None), None).learned is None


def test_dora_is_refused_before_anything_is_measured(compare, copied):
    """Its part can't be switched off by a weight. Told by the configuration, so no base is loaded."""
    file = copied / "instruct/adapter/adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | {"use_dora": True}), encoding="utf-8")
    shutil.rmtree(copied / "instruct/checkpoints", ignore_errors=True)
    with pytest.raises(UserError, match="got a DoRA adapter.*its parts can't be switched off one by one"):
        compare(copied / "instruct", force=True)


def test_one_adapter_alone_leaves_the_figures_of_the_stack(compare, run, copied):
    kept = copied / "instruct/three_way.json"
    kept.write_text("{}", encoding="utf-8")
    compare(older=OlderFlags(lora=str(copied / "style")), data=run / "instruct/recipe.yaml")
    assert kept.read_text(encoding="utf-8") == "{}" and not (copied / "style/three_way.json").exists()


def test_a_top_that_was_not_trained_on_conversations(run):
    subject = subject_of(run, "instruct")
    upside_down = Subject(found=find_model(str(run / "style")), style=0)
    with pytest.raises(UserError, match="got data.format novels at its top, expected chat"):
        choose_yardsticks(upside_down, None, None, None)
    assert choose_yardsticks(subject, None, None, None).asked is not None


def test_flags_that_it_does_not_read(refused, run):
    for flag, value in (("--samples", 2), ("--weight", "0.5"), ("--checkpoints", "all"), ("--prompts", "x.txt")):
        assert refused("evaluate", "--three-way", run / "instruct", flag, value).startswith(f"{flag}: got a value, with --three-way")
    refuse_idle({"--samples": False})
    assert refused("evaluate").startswith("MODEL: got none")
