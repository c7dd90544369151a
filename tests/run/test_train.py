"""A recipe carried out on the bundled base: what a run leaves, that others can open it, and what it refuses."""

from __future__ import annotations

import contextlib
import io
import json
import math
import shutil
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from stylora.errors import UserError
from stylora.model.base import fingerprint, hash_file, load_base, same_base
from stylora.model.device import Device
from stylora.model.tokenizer_file import TINY
from stylora.recipe.recipe import Recipe, load_recipe, parse_recipe
from stylora.run.folder import StageFolder, check_room, claim_stage, locked, make_stage, write_text
from stylora.run.open import open_model
from stylora.run.stages import train_stages
from stylora.run.task_data.writing import make
from stylora.run.train import Outcome, train

ROOT = Path(__file__).parents[2]
SEEDS = ROOT.parent / "shared" / "seeds"
FP32 = Device(device=torch.device("cpu"), dtype=torch.float32, why="test")
IDS = torch.arange(300, 340)[None]


def recipe(books: Path, out: Path, *overrides: str) -> Recipe:
    """Two steps in fp32 on a few windows."""
    values = {
        "output_dir": str(out),
        "stages": [{
            "data": {
                "train": str(books / "wuxia"), "general": str(books / "modern"), "general_ratio": 0.25, "validation": 0.2,
                "general_validation": 0.2, "window": 64, "min_window": 16,
            },
            "objective": {"kind": "span"}, "adapter": {"r": 4, "alpha": 8},
            "train": {"max_steps": 2, "samples_per_step": 4, "precision": "fp32", "save_steps": 1, "learning_rate": 1e-3},
            "sampling": {"max_new_tokens": 4},
        }],
    }  # fmt: skip
    return parse_recipe(values, overrides, name="test")


@pytest.fixture(scope="module")
def books(tmp_path_factory) -> Path:
    """A few KB of each example, in two folders."""
    folder = tmp_path_factory.mktemp("几 本书")
    for part in ("wuxia", "modern"):
        (folder / part).mkdir()
        for path in sorted((ROOT / "examples" / part).glob("*.txt"))[:5]:
            (folder / part / path.name).write_text(path.read_text(encoding="utf-8")[:700], encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@dataclass(kw_only=True)
class Finished:
    recipe: Recipe
    outcome: Outcome
    printed: str
    folder: Path


@pytest.fixture(scope="module")
def finished(books, cache, tmp_path_factory) -> Finished:
    described = recipe(books, tmp_path_factory.mktemp("runs") / "我的 run")
    console = Console(file=io.StringIO(), width=200)
    outcome = train(described, name="unused", console=console, cache=cache)
    return Finished(recipe=described, outcome=outcome, printed=console.file.getvalue(), folder=outcome.folder)


def rerun(described: Recipe, cache: Path, **options) -> Outcome | None:
    return train(described, name="unused", console=Console(file=io.StringIO()), cache=cache, **options)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# --- what it leaves -----------------------------------------------------------------------------------------------------------------------


def test_artefacts(finished):
    names = {path.name for path in finished.folder.iterdir()}
    assert {"recipe.yaml", "environment.json", "metrics.jsonl", "held_out.jsonl", "samples.jsonl", "checkpoints"} <= names
    assert {"adapter", "stack.json"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert finished.folder == Path(finished.recipe.output_dir) / "style"
    assert {path.name for path in (finished.folder / "checkpoints").iterdir()} == {"checkpoint-1", "checkpoint-2"}
    assert not list(finished.folder.rglob("*.tmp"))
    adapter = {path.name for path in (finished.folder / "adapter").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json"} <= adapter


def test_the_kept_recipe_is_the_resolved_one_and_can_be_run(finished):
    assert load_recipe(finished.folder / "recipe.yaml") == finished.recipe
    kept = yaml.safe_load((finished.folder / "recipe.yaml").read_text(encoding="utf-8"))
    assert kept["stages"][0]["train"]["adam_beta2"] == 0.999, "defaults are written out"


def test_stack_describes_base_and_adapter(finished):
    stack = json.loads((finished.folder / "stack.json").read_text(encoding="utf-8"))
    (adapter,) = stack["adapters"]
    assert adapter["hash"] == hash_file(finished.folder / adapter["path"] / "adapter_model.safetensors")
    assert stack["base"]["name"] == "tiny"
    assert same_base(stack["base"]["fingerprint"], fingerprint(load_base("tiny", FP32)))


def test_metrics_and_outcome(finished):
    rows = [json.loads(line) for line in (finished.folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    measured = [row for row in rows if "eval/style" in row]
    assert [row["step"] for row in measured] == [0, 1, 2] and all("eval/general" in row for row in measured)
    assert [row["step"] for row in rows if "loss" in row] == [1, 2]
    outcome = finished.outcome
    assert outcome.steps == 2 and 0 < outcome.tokens <= 2 * 4 * 64
    assert [set(found) for found in outcome.held_out] == [{"style", "general"}] * 3
    for row, found in zip(measured, outcome.held_out, strict=True):
        assert row["eval/style"] == found["style"].loss and row["eval/general"] == found["general"].loss
    assert 2 < measured[0]["eval/style"] < math.log(6400) + 1
    assert measured[0]["eval/style"] != measured[-1]["eval/style"]
    assert [list(sample) for sample in outcome.samples] == [["剑光一闪"]] * 3
    continued = [json.loads(line) for line in (finished.folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(row["step"], row["samples"]) for row in continued] == list(zip([0, 1, 2], outcome.samples, strict=True))


def test_what_it_prints(finished):
    """The device and why, the proofs, and the trainable / total / % line, computed."""
    assert "fp32 as asked" in finished.printed and "adapters off = base" in finished.printed
    trainable = sum(tensor.numel() for tensor in load_file(finished.folder / "adapter" / "adapter_model.safetensors").values())
    total = trainable + sum(p.numel() for p in load_base("tiny", FP32).model.parameters())
    assert f"trainable {trainable:,} of {total:,} parameters ({trainable / total:.2%})" in finished.printed
    environment = json.loads((finished.folder / "environment.json").read_text(encoding="utf-8"))
    assert environment["precision"] == "fp32" and environment["packages"]["torch"] == torch.__version__


# --- others can open it -------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_plain_peft_gives_the_same_logits(finished):
    ours = open_model(str(finished.folder), FP32)
    base = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    bare = base(input_ids=IDS).logits
    theirs = PeftModel.from_pretrained(base, str(finished.folder / "adapter")).eval()
    logits = theirs(input_ids=IDS).logits
    assert torch.equal(ours.model(input_ids=IDS).logits, logits)
    assert not torch.equal(logits, bare), "two steps of training are seen"


@pytest.mark.parametrize("form", ["", "style", "style/stack.json", "style/adapter", "style/checkpoints/checkpoint-2"])
@torch.no_grad()
def test_every_form_of_naming_it(finished, form):
    opened = open_model(str(Path(finished.recipe.output_dir) / form), FP32)
    straight = open_model(str(finished.folder / "stack.json"), FP32)
    assert torch.equal(opened.model(input_ids=IDS).logits, straight.model(input_ids=IDS).logits)


SEED_001 = """
from transformers import AutoTokenizer, AutoModelForCausalLM
from peft import PeftModel

# 加载
base_model = AutoModelForCausalLM.from_pretrained("Qwen/Qwen3-8B")
model = PeftModel.from_pretrained(base_model, "./output/wuxia_lora")
tokenizer = AutoTokenizer.from_pretrained("Qwen/Qwen3-8B")

# 生成
prompt = "剑光一闪"
inputs = tokenizer(prompt, return_tensors="pt")
outputs = model.generate(**inputs, max_length=100)
print(tokenizer.decode(outputs[0]))
"""
SEED_000 = """
from transformers import AutoTokenizer, AutoModelForCausalLM
tokenizer = AutoTokenizer.from_pretrained('./output/wuxia_model/checkpoint-2000')
model = AutoModelForCausalLM.from_pretrained('./output/wuxia_model/checkpoint-2000')
inputs = tokenizer('剑光一闪', return_tensors='pt')
outputs = model.generate(**inputs, max_length=100)
print(tokenizer.decode(outputs[0]))
"""


@pytest.mark.parametrize("folder", ["adapter", "checkpoints/checkpoint-2"])
@pytest.mark.parametrize("snippet", [SEED_000, SEED_001], ids=["000", "001"])
def test_the_seeds_own_snippets_run_unchanged(finished, snippet, folder):
    """Only the names of base and folder are put in."""
    path = (finished.folder / folder).as_posix()
    for name, here in {"Qwen/Qwen3-8B": TINY.as_posix(), "./output/wuxia_lora": path, "./output/wuxia_model/checkpoint-2000": path}.items():
        snippet = snippet.replace(name, here)
    printed, names = io.StringIO(), {}
    with contextlib.redirect_stdout(printed):
        exec(compile(snippet, "snippet", "exec"), names)
    assert printed.getvalue().startswith("剑光一闪") and len(printed.getvalue()) > len("剑光一闪\n")
    assert any("lora_" in name for name, _ in names["model"].named_parameters())


@pytest.mark.skipif(not SEEDS.is_dir(), reason="the seeds are not here")
def test_the_snippets_are_the_seeds_own():
    for number, snippet in (("000", SEED_000), ("001", SEED_001)):
        assert snippet in next(SEEDS.glob(f"{number}_*.md")).read_text(encoding="utf-8")


def test_the_tokenizer_lies_beside_the_adapter(finished):
    theirs, base = (AutoTokenizer.from_pretrained(folder) for folder in (finished.folder / "adapter", TINY))
    text = "剑光一闪，<|im_start|>user\n你好<|im_end|>"
    assert theirs(text)["input_ids"] == base(text)["input_ids"] and theirs.chat_template == base.chat_template


# --- twice in one folder ------------------------------------------------------------------------------------------------------------------


def test_done_already(finished, cache):
    before = snapshot(finished.folder)
    assert rerun(finished.recipe, cache) is None
    assert snapshot(finished.folder) == before


def test_force_trains_again_to_the_same_bytes(finished, cache, books, tmp_path):
    copy = recipe(books, tmp_path / "copy")
    shutil.copytree(finished.folder, tmp_path / "copy" / "style")
    (tmp_path / "copy" / "style" / "stray.txt").write_text("old", encoding="utf-8")
    outcome = rerun(copy, cache, force=True)
    assert not (outcome.folder / "stray.txt").exists()
    for file in ("adapter_model.safetensors", "adapter_config.json"):
        assert (outcome.folder / "adapter" / file).read_bytes() == (finished.folder / "adapter" / file).read_bytes()
    assert [found["style"].loss for found in outcome.held_out] == [found["style"].loss for found in finished.outcome.held_out]


def taken(folder: Path, described: Recipe, *, force: bool = False) -> StageFolder:
    """The stage's folder, claimed as new and made."""
    claim = claim_stage(folder, described, force=force)
    assert claim.state == "new"
    with locked(claim.stage):
        make_stage(claim.stage, described)
    return claim.stage


def refused(folder: Path, described: Recipe, **options) -> str:
    """The message; and that nothing in the folder changed."""
    before = snapshot(folder)
    with pytest.raises(UserError) as caught:
        claim = claim_stage(Path(described.output_dir), described, force=options.get("force", False))
        check_room(claim.stage, options.get("need_bytes", 1))
    assert snapshot(folder) == before
    return str(caught.value)


def test_a_folder_of_another_run_is_refused(finished, books):
    other = recipe(books, Path(finished.recipe.output_dir), "train.learning_rate=0.5")
    message = refused(finished.folder, other)
    assert "got another run (stages[0].train.learning_rate 0.001 there, 0.5 here), expected an empty folder or this recipe's" in message
    assert "own run; set output_dir, or replace it with --force" in message


def test_an_unfinished_run_is_gone_on_with(books, tmp_path):
    described = recipe(books, tmp_path / "x")
    stage = taken(tmp_path / "x", described)
    assert claim_stage(tmp_path / "x", described, force=False).state == "resume"
    assert "got another run" in refused(tmp_path, recipe(books, tmp_path / "x", "train.seed=1"))
    assert taken(tmp_path / "x", described, force=True) == stage


def test_a_moved_run_is_the_same_run(finished, books, tmp_path):
    shutil.copytree(finished.folder, tmp_path / "moved" / "style")
    assert claim_stage(tmp_path / "moved", recipe(books, tmp_path / "moved"), force=False).state == "done"


@pytest.mark.parametrize("chosen", [{}, {"metric_for_best_model": "answers"}], ids=["last", "best"])
def test_a_run_that_an_earlier_version_kept_is_the_same_run(tmp_path, chosen):
    """It wrote defaults out that are others today: a direction of the metric, and prompts for conversations too."""
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "问", "completion": "答"}), encoding="utf-8")
    stage = {"name": "style", "data": {"format": "chat", "train": str(tmp_path / "rows.jsonl")}, "train": {"seed": 3, **chosen}}
    described = parse_recipe({"output_dir": str(tmp_path / "x"), "stages": [stage]}, [], name="r.yaml")
    there = taken(tmp_path / "x", described)
    kept = described.model_dump(mode="json")
    assert kept["stages"][0]["train"]["greater_is_better"] is None and kept["stages"][0]["prompts"] == []
    kept["stages"][0]["train"]["greater_is_better"] = False
    kept["stages"][0] |= {"prompts": ["剑光一闪"], "sampling": {"max_new_tokens": 9}}
    there.recipe.write_text(yaml.safe_dump(kept, allow_unicode=True), encoding="utf-8")
    assert claim_stage(tmp_path / "x", described, force=False).state == "resume"
    there.adapter.mkdir()
    (there.adapter / "adapter_model.safetensors").write_bytes(b"learned")
    write_text(there.stack, json.dumps({"num_train_epochs": described.stages[0].train.num_train_epochs}))
    assert claim_stage(tmp_path / "x", described, force=False).state == "done"
    kept["stages"][0]["train"]["greater_is_better"] = True
    there.recipe.write_text(yaml.safe_dump(kept, allow_unicode=True), encoding="utf-8")
    if chosen:  # then it was another adapter that was kept
        assert "greater_is_better True there, False here" in refused(tmp_path, described)
    else:
        assert claim_stage(tmp_path / "x", described, force=False).state == "done"


def test_two_processes_do_not_train_in_one_folder(books, tmp_path):
    stage = taken(tmp_path / "x", recipe(books, tmp_path / "x"))
    with locked(stage), pytest.raises(UserError, match="got a run that another process is training"), locked(stage):
        pass
    with locked(stage):
        pass


@pytest.mark.parametrize("layout", ["flat", "final"])
def test_older_layouts_put_files_where_they_were(books, cache, tmp_path, finished, layout):
    outcome = rerun(recipe(books, tmp_path / "x", f"layout={layout}"), cache)
    assert outcome.folder == tmp_path / "x"
    adapter = outcome.folder if layout == "flat" else outcome.folder / "final"
    for place in (adapter, outcome.folder / "checkpoint-2"):
        assert (place / "adapter_model.safetensors").read_bytes() == (finished.folder / "adapter/adapter_model.safetensors").read_bytes()
    with torch.no_grad():
        ours = open_model(str(outcome.folder), FP32).model(input_ids=IDS).logits
        assert torch.equal(ours, open_model(str(finished.folder), FP32).model(input_ids=IDS).logits)


@pytest.mark.parametrize("there", ["novel.txt", "recipe.yaml"])
def test_a_folder_of_something_else_is_refused(books, tmp_path, there):
    (tmp_path / "x" / "style").mkdir(parents=True)
    (tmp_path / "x" / "style" / there).write_text("{ a novel", encoding="utf-8")
    for force in (False, True):
        assert "got files that are no run" in refused(tmp_path, recipe(books, tmp_path / "x"), force=force)


@pytest.mark.parametrize("file", ["x", "x/style"])
def test_a_file_where_the_folder_should_be_is_refused(books, tmp_path, file):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("a file", encoding="utf-8")
    for force in (False, True):
        assert "got a file, expected a folder" in refused(tmp_path, recipe(books, tmp_path / "x"), force=force)


def test_an_empty_folder_is_taken(books, tmp_path):
    (tmp_path / "x" / "style").mkdir(parents=True)
    assert taken(tmp_path / "x", recipe(books, tmp_path / "x")).recipe.is_file()


def test_files_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    write_text(tmp_path / "a.txt", "旧")
    with monkeypatch.context() as patch:
        patch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(OSError, match="No space"):
            write_text(tmp_path / "a.txt", "新")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "旧"


# --- longer, and the best -----------------------------------------------------------------------------------------------------------------


CONSTANT = ["train.max_steps=-1", "train.lr_scheduler_type=constant", "train.warmup_steps=0", "train.eval_strategy=epoch",
            "train.save_strategy=epoch", "train.samples_per_step=16"]  # fmt: skip


def rows(stage: Path) -> list[dict]:
    lines = (stage / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if "train_runtime" not in row]


def test_an_extended_run_is_the_longer_run(books, cache, tmp_path):
    """Under a constant rate bit for bit; asked for twice it is done already; until it ends the shorter one's adapter stays in use."""
    short = recipe(books, tmp_path / "x", *CONSTANT, "train.num_train_epochs=1")
    one = rerun(short, cache)
    extended = rerun(short, cache, extend=1)
    straight = rerun(recipe(books, tmp_path / "two", *CONSTANT, "train.num_train_epochs=2"), cache)
    assert extended.steps == straight.steps == 2 * one.steps
    for file in ("adapter/adapter_model.safetensors", "held_out.jsonl", "samples.jsonl"):
        assert (extended.folder / file).read_bytes() == (straight.folder / file).read_bytes(), file
    assert rows(extended.folder) == rows(straight.folder)
    assert len(extended.held_out) == 3 and open_model(str(extended.folder), FP32).adapter == extended.folder / "adapter"
    assert rerun(short, cache, extend=1) is None
    with pytest.raises(UserError, match=r"num_train_epochs 2.0 there, 1.0 here"):
        rerun(short, cache)


def test_extending_needs_a_run_that_goes_by_epochs(finished, books, cache, tmp_path):
    with pytest.raises(UserError, match="--extend: got no run in .*, expected a finished run; train it first"):
        rerun(recipe(books, tmp_path / "x", *CONSTANT), cache, extend=1)
    with pytest.raises(UserError, match="--extend: got a recipe with train.max_steps 2, expected one that goes by epochs"):
        rerun(finished.recipe, cache, extend=1)
    assert not (tmp_path / "x").exists()


def test_the_run_ends_with_the_best_adapter(books, cache, tmp_path):
    """At a rate that spoils what it learns the best is not the last; each measurement is saved here, to compare."""
    settings = ["train.max_steps=6", "train.eval_steps=1", "train.save_steps=1", "train.save_total_limit=10", "train.learning_rate=0.03"]
    outcome = rerun(recipe(books, tmp_path / "x", *settings, "train.metric_for_best_model=eval_style"), cache)
    losses = [found["style"].loss for found in outcome.held_out]
    best = min(range(1, 7), key=lambda step: losses[step])
    assert best != 6, losses
    ours = (outcome.folder / "adapter" / "adapter_model.safetensors").read_bytes()
    kept = outcome.folder / "checkpoints"
    assert ours == (kept / f"checkpoint-{best}" / "adapter_model.safetensors").read_bytes()
    assert ours != (kept / "checkpoint-6" / "adapter_model.safetensors").read_bytes()


def test_it_can_end_early_and_a_longer_run_goes_on(books, cache, tmp_path):
    settings = [*CONSTANT, "train.num_train_epochs=6", "train.learning_rate=0.03", "train.metric_for_best_model=loss"]
    described = recipe(books, tmp_path / "x", *settings, "train.early_stopping_patience=1")
    outcome = rerun(described, cache)
    ended = outcome.steps
    assert ended < len(outcome.held_out) * 100 and ended < 6 * 6 and rerun(described, cache) is None
    longer = rerun(described, cache, extend=1)
    assert longer.steps > ended


def test_a_finished_run_without_checkpoints_is_not_lost_to_extend(books, cache, tmp_path):
    described = recipe(books, tmp_path / "x", *CONSTANT, "train.num_train_epochs=0.1", "train.save_strategy=no")
    before = snapshot(rerun(described, cache).folder)
    with pytest.raises(UserError, match="got no sound checkpoint of the finished run"):
        rerun(described, cache, extend=1)
    assert snapshot(tmp_path / "x" / "style") == before


def test_memory_settings_may_change_between_two_parts_of_a_run(finished, books):
    same = recipe(books, Path(finished.recipe.output_dir), "train.tokens_per_microbatch=100", "train.gradient_checkpointing=true")
    assert claim_stage(Path(finished.recipe.output_dir), same, force=False).state == "done"


def test_a_damaged_best_checkpoint_costs_the_best_alone(books, cache, tmp_path):
    settings = ["train.max_steps=6", "train.eval_steps=1", "train.save_steps=1", "train.save_total_limit=10", "train.learning_rate=0.03"]
    described = recipe(books, tmp_path / "x", *settings, "train.metric_for_best_model=style")
    stage = rerun(described, cache).folder
    best = json.loads((stage / "checkpoints" / "checkpoint-6" / "trainer_state.json").read_text(encoding="utf-8"))["best_global_step"]
    (stage / "stack.json").unlink()
    (stage / "checkpoints" / f"checkpoint-{best}" / "adapter_model.safetensors").write_bytes(b"")
    rerun(described, cache)
    last = (stage / "checkpoints" / "checkpoint-6" / "adapter_model.safetensors").read_bytes()
    assert (stage / "adapter" / "adapter_model.safetensors").read_bytes() == last


# --- refused before anything is written ---------------------------------------------------------------------------------------------------

Usage = namedtuple("Usage", "total used free")


@pytest.mark.parametrize("force", [False, True])
def test_a_full_disk(finished, books, tmp_path, monkeypatch, force):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2**40, 2**40, 2**20))
    message = refused(tmp_path, recipe(books, tmp_path / "x"), need_bytes=50 << 20)
    assert "got 1 MB free, expected 50 MB for adapter and checkpoints; free some space" in message
    other = recipe(books, Path(finished.recipe.output_dir), "train.learning_rate=0.5")
    own = sum(map(len, snapshot(finished.folder).values())) / 2**20  # what is to be replaced makes room; and it stays when refused
    assert f"{1 + own:,.0f} MB free" in refused(finished.folder, other, need_bytes=50 << 20, force=True)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.window=100000", "data.window: got 100000 tokens, expected at most"),
        ("adapter.targets=[q_porj]", "adapter.targets: got 'q_porj'"),
        ("base=/no/such/folder", "base: got '/no/such/folder'"),
        ("data.train=/no/such/novels", "/no/such/novels"),
        ("train.report_to=[no_such_tracker]", "train.report_to: got 'no_such_tracker', expected"),
        ("prompts=['']", "prompts[0]: got an empty prompt"),
    ],
)
def test_refused_with_nothing_written(books, cache, tmp_path, override, message):
    with pytest.raises(UserError) as caught:
        rerun(recipe(books, tmp_path / "x", override), cache)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "x").exists()


# --- what changed since is not opened -----------------------------------------------------------------------------------------------------


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    shutil.copytree(finished.folder, tmp_path / "copy")
    return tmp_path / "copy"


def not_opened(name: Path | str) -> str:
    with pytest.raises(UserError) as caught:
        open_model(str(name), FP32)
    return str(caught.value)


def test_another_base_is_not_opened(copied, base_folder):
    with pytest.raises(UserError, match="which is not the base it was trained on"):
        open_model(str(copied), FP32, base=str(base_folder))


def test_a_changed_adapter_is_not_opened(copied):
    weights = copied / "adapter" / "adapter_model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    assert "got an adapter that was changed after training" in not_opened(copied)
    weights.unlink()
    assert "got no adapter_model.safetensors" in not_opened(copied)


def test_a_copied_run_opens_where_it_lies_now(copied):
    assert open_model(str(copied), FP32).adapter == copied / "adapter"


def test_an_unfinished_run_is_not_opened(copied):
    (copied / "stack.json").unlink()
    assert "got a folder without a finished run or model" in not_opened(copied)


def test_an_adapter_of_another_base_is_not_opened(finished, random_model, tokenizer, tmp_path):
    random_model("Qwen3").save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match="does not fit this base"):
        open_model(str(finished.folder / "adapter"), FP32, base=str(tmp_path / "other"))


SHIPPED = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
TASKS = ("unified", "columns")  # whose data are made first
BRANCHES = ("branches", "branches-0.5b", "branches-1.5b", "branches-7b")
EVALUATED = [f"train.{key}" for key in ("eval_strategy=steps", "eval_steps=2", "save_steps=2")]


@pytest.mark.parametrize("path", [path for path in SHIPPED if path.stem not in (*TASKS, *BRANCHES)], ids=lambda path: path.stem)
def test_every_shipped_recipe_trains(path, cache, tmp_path, monkeypatch):
    """Two steps of every stage on the bundled base, everything else as shipped."""
    monkeypatch.chdir(path.parents[1])
    outcomes = two_steps(path, cache, tmp_path)
    for name, outcome in outcomes.items():
        held_out, prompt = ({"answers"}, "用武侠小说的笔法描写：雨夜的渡口") if name == "instruct" else ({"style", "general"}, "剑光一闪")
        assert outcome.steps == 2 and set(outcome.held_out[-1]) == held_out and prompt in outcome.samples[-1]


@pytest.mark.parametrize("path", [
    pytest.param(path, id=path.stem, marks=[pytest.mark.slow] * (path.stem in BRANCHES[2:])) for path in SHIPPED if path.stem in BRANCHES
])  # fmt: skip
def test_every_shipped_recipe_of_branches_trains(path, cache, tmp_path, monkeypatch):
    """Likewise; nothing is continued while they are learned."""
    monkeypatch.chdir(path.parents[1])
    (outcome,) = two_steps(path, cache, tmp_path).values()
    assert outcome.steps == 2 and set(outcome.held_out[-1]) == {"branches"} and outcome.samples == []
    assert outcome.held_out[-1]["branches"].loss < outcome.held_out[0]["branches"].loss


@pytest.mark.parametrize("task", TASKS)
def test_every_shipped_task_trains(task, cache, tmp_path, monkeypatch):
    """Likewise, on the first rows of the data that `stylora data make` writes; the best adapter is chosen by the recipe's metric."""
    path = next(path for path in SHIPPED if path.stem == task)
    monkeypatch.chdir(tmp_path)
    for written in make(task, Path("data", task)).files:
        lines = Path(written).read_text(encoding="utf-8").splitlines(keepends=True)
        Path(written).write_text("".join(lines[:12]), encoding="utf-8")
    (outcome,) = two_steps(path, cache, tmp_path / "run", "task.rows=4", *EVALUATED).values()
    assert outcome.steps == 2 and set(outcome.held_out[-1]) == {"answers"}


def two_steps(path: Path, cache: Path, folder: Path, *overrides: str) -> dict[str, Outcome]:
    """Of every stage of a shipped recipe."""
    names = [stage.name for stage in load_recipe(path).stages]
    each = ("train.max_steps=2", "train.samples_per_step=2", "train.eval_strategy=no", *overrides)
    recipe = load_recipe(path, ["base=tiny", f"output_dir={folder}", *(f"{name}.{key}" for name in names for key in each)])
    outcomes = train_stages(recipe, name="unused", console=Console(quiet=True), cache=cache)
    assert list(outcomes) == names
    return outcomes
