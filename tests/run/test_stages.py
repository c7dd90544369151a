"""A recipe of several stages on the bundled base: two stages are two runs; what is done is left alone; what changed is noticed."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from rich.console import Console
from safetensors.torch import load_file, save_file
from tests.run.children import write_recipe
from transformers import AutoModelForCausalLM

from stylora.errors import UserError
from stylora.model.adapter import Adapter
from stylora.model.device import Device
from stylora.model.tokenizer_file import TINY, hash_file
from stylora.recipe.recipe import load_recipe, parse_recipe
from stylora.run.folder import comparable, config_hash
from stylora.run.measuring import Outcome
from stylora.run.open import find_model, open_model
from stylora.run.stages import alone, rate_warnings, train_stages
from stylora.run.train import train
from stylora.train.trainer import TrainingStopped

FP32 = Device(device=torch.device("cpu"), dtype=torch.float32, why="test")
IDS = torch.arange(300, 340)[None]
QUICK = {"max_steps": 2, "samples_per_step": 4, "save_steps": 1, "eval_strategy": "no", "report_to": []}
ALIGN = {"name": "align", "continue": "style", "objective": {"kl": {"beta": 0.1}}, "train": {"learning_rate": 1e-4}}


def instruct(recipe: Path) -> dict[str, Any]:
    """A stage on `align`, held to what lies below it."""
    data = yaml.safe_load(recipe.read_text(encoding="utf-8"))["stages"][0]["data"]
    return {
        "name": "instruct", "on": ["align"], "data": {**data, "window": 64}, "objective": {"kl": {"reference": "frozen"}},
        "adapter": {"r": 2, "targets": ["q_proj", "down_proj"], "dropout": 0.3}, "prompts": [],
        "train": {**QUICK, "precision": "fp32", "learning_rate": 1e-2},
    }  # fmt: skip


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory) -> Path:
    """Three stages of two steps: `style` with dropout; `align` goes on with it; `instruct` stands on it."""
    path = write_recipe(tmp_path_factory.mktemp("三 stages"), dropout=0.2, more=[ALIGN], **QUICK)
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    values["stages"] += [instruct(path)]
    path.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def token_cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@dataclass(kw_only=True)
class Ran:
    """outcomes: by stage, None for one that was done; printed: everything"""

    folder: Path
    outcomes: dict[str, Outcome | None]
    printed: str


@pytest.fixture(scope="module")
def run(recipe_file, token_cache) -> Callable[..., Ran]:
    """`run(folder, *overrides, only=..., start=..., force=..., extend=..., file=...)`: what `stylora train` does."""

    def go(folder: Path, *overrides: str, file: Path | None = None, **options: Any) -> Ran:
        console = Console(file=io.StringIO(), width=400)
        recipe = load_recipe(file or recipe_file, [f"output_dir={folder}", *overrides])
        outcomes = train_stages(recipe, name="unused", console=console, cache=token_cache, **options)
        return Ran(folder=folder, outcomes=outcomes, printed=console.file.getvalue())

    return go


@pytest.fixture(scope="module")
def finished(run, tmp_path_factory) -> Ran:
    """All three, in one go."""
    return run(tmp_path_factory.mktemp("runs") / "我的 run")


@pytest.fixture
def copied(finished, tmp_path) -> Path:
    """The finished run, elsewhere."""
    shutil.copytree(finished.folder, tmp_path / "copy")
    return tmp_path / "copy"


def trained(ran: Ran) -> list[str]:
    """The stages that were not done already."""
    return [name for name, outcome in ran.outcomes.items() if outcome is not None]


def weights(folder: Path, stage: str) -> bytes:
    return (folder / stage / "adapter" / "adapter_model.safetensors").read_bytes()


def everything(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def rows(stage: Path) -> list[dict]:
    lines = (stage / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if "train_runtime" not in row]


def same_end(stage: Path, other: Path) -> None:
    files = ["adapter/adapter_model.safetensors", "adapter/adapter_config.json", "held_out.jsonl"]
    for file in files + ["samples.jsonl"] * (other / "samples.jsonl").is_file():
        assert (stage / file).read_bytes() == (other / file).read_bytes(), file
    assert rows(stage) == rows(other) and len(rows(stage)) >= 4


def spoil(file: Path) -> None:
    """Another weight, in a file that is whole."""
    tensors = load_file(file)
    next(iter(tensors.values())).view(-1)[0] += 1
    save_file(tensors, file, metadata={"format": "pt"})


def refusal(act: Callable[[], object], folder: Path) -> str:
    """The one sentence with which `act` refuses, having changed nothing there."""
    before = everything(folder)
    with pytest.raises(UserError) as caught:
        act()
    assert everything(folder) == before and "\n" not in str(caught.value)
    return str(caught.value)


# --- stages are runs ----------------------------------------------------------------------------------------------------------------------


def test_stages_are_runs_one_after_the_other(finished, recipe_file, token_cache, tmp_path):
    """Each as a recipe of its own, with `adapter.path` and `adapter.frozen` written by hand: the same bytes, and the same curves."""
    values = yaml.safe_load(recipe_file.read_text(encoding="utf-8"))["stages"]
    style = values[0] | {"name": "one"}
    align = style | {"name": "two", "adapter": {"path": str(tmp_path / "one/adapter")}}
    align |= {"objective": {**style["objective"], **ALIGN["objective"]}, "train": {**style["train"], **ALIGN["train"]}}
    on = {key: value for key, value in values[2].items() if key != "on"} | {"name": "three"}
    on["adapter"] = {**on["adapter"], "frozen": [str(tmp_path / "two/adapter")]}
    for name, stage, theirs in (("one", style, "style"), ("two", align, "align"), ("three", on, "instruct")):
        recipe = parse_recipe({"output_dir": str(tmp_path), "stages": [stage]}, [], name="r")
        train(recipe, name="r", console=Console(quiet=True), cache=token_cache)
        same_end(tmp_path / name, finished.folder / theirs)


def test_each_goes_on_where_its_parent_ended(finished):
    style, align, top = (rows(finished.folder / stage) for stage in ("style", "align", "instruct"))
    assert align[0]["eval/style"] == style[-1]["eval/style"], "before its first step it is its parent"
    assert align[-1]["eval/style"] != align[0]["eval/style"]
    assert all("kl" in row for row in align + top if "loss" in row) and not any("kl" in row for row in style)
    assert all(row["kl"] > 0 for row in align if "loss" in row), "held to the base, from which style has moved"
    assert [row["kl"] for row in top if "loss" in row][0] == 0, "held to what is below it, a fresh adapter is where it should be"
    assert [row["kl"] for row in top if "loss" in row][1] > 0


def test_what_it_prints(finished):
    heads = [line for line in finished.printed.splitlines() if line.startswith("stage ")]
    assert heads == ["stage      style, 1 of 3", "stage      align, 2 of 3", "stage      instruct, 3 of 3"]
    proofs = [line for line in finished.printed.splitlines() if "KL sees the adapter" in line]
    assert len(proofs) == 2 and " 0 now" in proofs[1] and " 0 now" not in proofs[0]
    assert "warning" not in finished.printed
    assert finished.outcomes.keys() == {"style", "align", "instruct"} and trained(finished) == list(finished.outcomes)


def test_the_kept_recipe_of_a_stage_is_a_run_of_its_own(finished, run, tmp_path):
    """It names its parents' adapters, can be run again without them, and is this very run where it lies."""
    kept = {stage: load_recipe(finished.folder / stage / "recipe.yaml") for stage in ("style", "align", "instruct")}
    assert all(len(recipe.stages) == 1 for recipe in kept.values())
    places = {stage: (finished.folder / stage / "adapter").as_posix() for stage in kept}
    assert kept["align"].stages[0].adapter == Adapter(path=places["style"])
    assert kept["instruct"].stages[0].adapter.frozen == (places["align"],) and kept["instruct"].stages[0].adapter.r == 2
    assert (kept["align"].stages[0].continues, kept["instruct"].stages[0].on) == (None, ())
    assert trained(run(finished.folder, file=finished.folder / "align" / "recipe.yaml")) == []
    assert trained(run(tmp_path, file=finished.folder / "align" / "recipe.yaml")) == ["align"]
    same_end(tmp_path / "align", finished.folder / "align")


def test_stack_describes_every_adapter(finished):
    stacks = {stage: json.loads((finished.folder / stage / "stack.json").read_text(encoding="utf-8")) for stage in finished.outcomes}
    hashes = {stage: hash_file(finished.folder / stage / "adapter" / "adapter_model.safetensors") for stage in stacks}
    assert len(set(hashes.values())) == 3
    configs = {stage: config_hash(finished.folder / stage / "adapter") for stage in stacks}

    def entry(stage: str, **told) -> dict:
        return {"name": stage, "weight": 1.0, "hash": hashes[stage], "config_hash": configs[stage], **told}

    own = {"path": "adapter", "role": "trained"}
    assert stacks["style"]["adapters"] == [entry("style", **own)]
    assert stacks["align"]["adapters"] == [entry("align", **own)]
    below = entry("align", path="../align/adapter", role="frozen")
    assert stacks["instruct"]["adapters"] == [below, entry("instruct", **own)]
    made = {stage: (stack["made_from"]["start"], stack["made_from"]["frozen"]) for stage, stack in stacks.items()}
    assert made == {"style": (None, []), "align": (hashes["style"], []), "instruct": (None, [hashes["align"]])}


# --- what a stage begins with -------------------------------------------------------------------------------------------------------------


def plan(*stages: dict[str, Any], number: int, **recipe: Any) -> Adapter:
    """The adapter of stage `number`, as it is carried out in `out`."""
    stages = tuple({"data": {"train": "x"}, **stage} for stage in stages)
    return alone(parse_recipe({"stages": list(stages), **recipe}, [], name="r"), number, Path("out")).stages[0].adapter


A, B = {"name": "a"}, {"name": "b", "continue": "a"}


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        ([A], Adapter()),
        ([{"name": "a", "adapter": {"r": 4, "path": None}}], Adapter(r=4)),
        ([A, B], Adapter(path="out/a/adapter")),
        ([{**A, "adapter": {"path": "old"}}, B], Adapter(path="out/a/adapter")),
        ([A, B, {"name": "c", "continue": "b"}], Adapter(path="out/b/adapter")),
        ([A, {"name": "c", "on": ["a"], "adapter": {"r": 4}}], Adapter(r=4, frozen=("out/a/adapter",))),
        ([A, B, {"name": "c", "on": ["b"]}], Adapter(frozen=("out/b/adapter",))),
        ([A, {"name": "x"}, {"name": "c", "on": ["x", "a"]}], Adapter(frozen=("out/x/adapter", "out/a/adapter"))),
        ([A, {"name": "b", "on": ["a"]}, {"name": "c", "on": ["b"]}], Adapter(frozen=("out/a/adapter", "out/b/adapter"))),
        ([A, {"name": "b", "on": ["a"]}, {"name": "c", "on": ["a", "b"]}], Adapter(frozen=("out/a/adapter", "out/b/adapter"))),
        ([A, {"name": "b", "on": ["a"]}, {"name": "c", "continue": "b"}], Adapter(path="out/b/adapter", frozen=("out/a/adapter",))),
        ([{**A, "adapter": {"frozen": ["z"]}}, B], Adapter(path="out/a/adapter", frozen=("z",))),
        ([{**A, "adapter": {"frozen": ["z"]}}, {"name": "c", "on": ["a"]}], Adapter(frozen=("z", "out/a/adapter"))),
        ([A, {"name": "c", "on": ["a"], "adapter": {"frozen": ["z"], "path": "p"}}], Adapter(path="p", frozen=("z", "out/a/adapter"))),
    ],
)  # fmt: skip
def test_what_a_stage_begins_with(stages, expected):
    assert plan(*stages, number=len(stages) - 1) == expected


# --- done ---------------------------------------------------------------------------------------------------------------------------------


def test_what_is_done_is_left_alone(finished, run):
    before = everything(finished.folder)
    again = run(finished.folder)
    assert trained(again) == [] and everything(finished.folder) == before
    assert [line for line in again.printed.splitlines() if line.startswith("done already: ")] == [
        f"done already: {finished.folder / stage} (--force trains again, --extend N goes on for N epochs)" for stage in finished.outcomes
    ]  # fmt: skip


def test_only_what_is_not_done_is_trained(finished, copied, run):
    shutil.rmtree(copied / "instruct")
    before = everything(copied)
    assert trained(run(copied)) == ["instruct"]
    same_end(copied / "instruct", finished.folder / "instruct")
    assert before.items() <= everything(copied).items()


def test_a_moved_run_is_the_same_run(copied, run):
    """`adapter.path` of the kept recipes names the old place; the hashes are those of the new one."""
    assert trained(run(copied)) == []


def test_names_that_changed_places_are_another_run():
    """Weights go by name, so what they are called says which adapter has which."""
    def of(**adapter):
        stage = {"data": {"train": "x"}, "adapter": {"frozen": ["a/one", "a/two"], **adapter}}
        return comparable(parse_recipe({"stages": [stage]}, [], name="x"))

    there = of(names=["one", "two"], weights={"one": 0.5})
    assert there == of(weights={"one": 0.5, "two": 1}) == of(names=["1", "2"], weights={"1": 0.5})
    assert there != of(names=["two", "one"], weights={"one": 0.5})


def test_another_version_is_told_and_no_more(copied, run, monkeypatch):
    monkeypatch.setattr("stylora.run.folder.__version__", "9.9")
    monkeypatch.setattr("stylora.run.train.__version__", "9.9")
    again = run(copied)
    assert trained(again) == [] and again.printed.count(", by stylora ") == 3


def test_a_run_of_before_stages_is_done(copied, run):
    """Its stack.json does not say what it was made from, so nothing can have changed."""
    for stage in ("style", "align", "instruct"):
        stack = json.loads((copied / stage / "stack.json").read_text(encoding="utf-8"))
        del stack["made_from"]
        (copied / stage / "stack.json").write_text(json.dumps(stack), encoding="utf-8")
    assert trained(run(copied)) == []


# --- what changed since -------------------------------------------------------------------------------------------------------------------


def test_changed_text_is_noticed_and_text_that_is_gone_is_not(recipe_file, run, tmp_path):
    text, there = tmp_path / "wuxia", f"data.train={tmp_path / 'wuxia'}"

    def put_back() -> None:
        shutil.rmtree(text, ignore_errors=True)
        shutil.copytree(recipe_file.parent / "wuxia", text)

    put_back()
    book = sorted(text.iterdir())[0]
    ran = run(tmp_path / "x", there, only="style")
    for change in (lambda: book.write_bytes(book.read_bytes() + b"\n"), lambda: book.rename(text / "新名.txt"), book.unlink):
        change()
        message = refusal(lambda: run(tmp_path / "x", there, only="style"), ran.folder)
        assert "got a finished run, but its text changed, expected what it was made from, unchanged; put it back, set output_dir" in message
        assert "--force (--stage or --from choose)" in message
        put_back()
        assert trained(run(tmp_path / "x", there, only="style")) == [], "as it was, it is done again"
    shutil.rmtree(text)
    assert trained(run(tmp_path / "x", there, only="style")) == [], "a run is often kept longer than its text"


@pytest.mark.parametrize(("stage", "child"), [("style", "align"), ("align", "instruct")])
def test_a_parent_that_was_trained_again_to_something_else_is_noticed(copied, run, stage, child):
    """Its child is not what this recipe gives any more; it is not replaced by itself."""
    other = f"{stage}.train.learning_rate=3e-5"
    assert trained(run(copied, other, only=stage, force=True)) == [stage]
    message = refusal(lambda: run(copied, other), copied)
    begun = (copied / stage / "adapter").as_posix()
    assert f"{copied / child}: got a finished run, but {begun}, the adapter it began with, was trained again or changed" in message
    assert trained(run(copied, other, start=child, force=True))[0] == child
    assert trained(run(copied, other)) == []


def test_a_parent_that_was_trained_again_to_the_same_is_the_same(finished, copied, run):
    assert trained(run(copied, only="style", force=True)) == ["style"]
    assert weights(copied, "style") == weights(finished.folder, "style") and trained(run(copied)) == []


def test_a_changed_recipe_is_another_run(copied, run):
    message = refusal(lambda: run(copied, "align.objective.kl.beta=0.2"), copied)
    assert f"{copied / 'align'}: got another run (stages[0].objective.kl.beta 0.1 there, 0.2 here)" in message
    assert "set output_dir, or replace it with --force (--stage or --from choose)" in message
    assert trained(run(copied, "align.objective.kl.beta=0.2", only="align", force=True)) == ["align"]


def test_a_spoiled_parent_is_not_trained_on(copied, run):
    shutil.rmtree(copied / "align")
    shutil.rmtree(copied / "instruct")
    spoil(copied / "style" / "adapter" / "adapter_model.safetensors")
    message = refusal(lambda: run(copied), copied)
    assert f"{copied / 'style/adapter'}: got an adapter that was changed after training, expected hash " in message


def test_a_spoiled_adapter_below_is_not_trained_on(copied, run):
    shutil.rmtree(copied / "instruct")
    spoil(copied / "align" / "adapter" / "adapter_model.safetensors")
    assert f"{copied / 'align/adapter'}: got an adapter that was changed after training" in refusal(lambda: run(copied), copied)


def other_base(folder: Path) -> Path:
    """`tiny` with another weight: an adapter fits it, and was not trained on it."""
    shutil.copytree(TINY, folder)
    spoil(folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("way", ["path", "frozen"])
def test_another_base_is_not_put_under_a_runs_adapter(finished, run, recipe_file, tmp_path, way):
    style = yaml.safe_load(recipe_file.read_text(encoding="utf-8"))["stages"][0]
    adapter = str(finished.folder / "style" / "adapter")
    style |= {"name": "top", "adapter": {"path": adapter} if way == "path" else {"frozen": [adapter]}}
    values = {"base": str(other_base(tmp_path / "base")), "stages": [style]}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    message = refusal(lambda: run(tmp_path / "x", file=tmp_path / "r.yaml"), finished.folder)
    assert f"{adapter}: got {tmp_path / 'base'}, which is not the base it was trained on, expected that base, unchanged" in message
    assert not (tmp_path / "x").exists()


def test_another_base_for_one_stage_is_another_run(copied, run, tmp_path):
    shutil.rmtree(copied / "align")
    message = refusal(lambda: run(copied, f"base={other_base(tmp_path / 'base')}", only="align"), copied)
    assert f"{copied / 'style'}: got another run (base 'tiny' there, " in message


def test_a_stage_is_not_trained_into_its_parents_folder(finished, run, recipe_file, tmp_path):
    style = yaml.safe_load(recipe_file.read_text(encoding="utf-8"))["stages"][0]
    own = finished.folder / "style"
    for key, value in (("path", str(own / "adapter")), ("frozen", [str(own / "checkpoints/checkpoint-2")])):
        values = {"stages": [style | {"adapter": {key: value, **({"names": ["below"]} if key == "frozen" else {})}}]}
        (tmp_path / "r.yaml").write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
        message = refusal(lambda: run(finished.folder, file=tmp_path / "r.yaml", force=True), finished.folder)
        assert f"got the folder of adapter.{key} " in message and "so that nothing of it is replaced" in message


# --- which stages -------------------------------------------------------------------------------------------------------------------------


def test_one_stage_at_a_time(finished, run, tmp_path):
    for stage, missing in (("align", "style"), ("instruct", "align")):
        message = refusal(lambda stage=stage: run(tmp_path / "x", only=stage), tmp_path)
        assert f"{tmp_path / 'x' / missing}: got stage '{missing}' not trained to its end, expected it done, for '{stage}' " in message
        assert message.endswith("; leave --stage and --from out") and not (tmp_path / "x").exists()
    for stage in ("style", "align"):
        ran = run(tmp_path / "x", only=stage)
        assert trained(ran) == list(ran.outcomes) == [stage] and "stage      " not in ran.printed
        same_end(tmp_path / "x" / stage, finished.folder / stage)


def test_from_one_stage_on(finished, copied, run):
    for stage in ("align", "instruct"):
        shutil.rmtree(copied / stage)
    shutil.rmtree(copied / "style" / "checkpoints")
    ran = run(copied, start="align")
    assert trained(ran) == list(ran.outcomes) == ["align", "instruct"]
    same_end(copied / "instruct", finished.folder / "instruct")
    assert list(run(copied, start="style").outcomes) == ["style", "align", "instruct"]


def test_force_begins_the_chosen_stages_anew(finished, copied, run):
    for stage in ("style", "align", "instruct"):
        (copied / stage / "stray").write_text("", encoding="utf-8")
    assert trained(run(copied, only="align", force=True)) == ["align"]
    assert [(copied / stage / "stray").exists() for stage in ("style", "align", "instruct")] == [True, False, True]
    assert trained(run(copied, start="align", force=True)) == ["align", "instruct"]
    assert (copied / "style" / "stray").exists() and not (copied / "instruct" / "stray").exists()
    for stage in ("align", "instruct"):
        same_end(copied / stage, finished.folder / stage)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(only="aling"), "--stage: got 'aling', expected a stage of the recipe; did you mean 'align'?"),
        (dict(start="x"), "--from: got 'x', expected a stage of the recipe; one of: align, instruct, style"),
        (dict(only="style", start="align"), "--from: got --stage beside it, expected one of them"),
        (dict(extend=1), "--extend: got 3 stages, expected one, for its epochs are meant; add --stage instruct"),
        (dict(extend=1, start="align"), "--extend: got 2 stages"),
        (dict(extend=1, only="align"), "--extend: got a recipe with train.max_steps 2, expected one that goes by epochs"),
    ],
)
def test_choices_that_cannot_be(finished, run, options, message):
    assert message in refusal(lambda: run(finished.folder, **options), finished.folder)


def test_one_stage_is_made_longer(run, tmp_path):
    """Under a constant rate its end is that of the longer stage, once the recipe says so, too."""
    epochs = ["train.max_steps=-1", "train.num_train_epochs=1", "train.lr_scheduler_type=constant", "train.warmup_steps=0",
              "train.samples_per_step=42", "train.eval_strategy=epoch"]  # fmt: skip
    run(tmp_path / "x", *epochs, only="style")
    shutil.copytree(tmp_path / "x", tmp_path / "y")
    short = run(tmp_path / "x", *epochs, only="align").outcomes["align"]
    longer = run(tmp_path / "x", *epochs, only="align", extend=1).outcomes["align"]
    assert trained(run(tmp_path / "x", *epochs, only="align", extend=1)) == [], "asked for twice it is done"
    straight = run(tmp_path / "y", *epochs, "align.train.num_train_epochs=2", only="align").outcomes["align"]
    assert longer.steps == straight.steps == 2 * short.steps
    same_end(tmp_path / "x" / "align", tmp_path / "y" / "align")
    message = refusal(lambda: run(tmp_path / "x", *epochs), tmp_path / "x")
    assert "got another run (stages[0].train.num_train_epochs 2.0 there, 1.0 here)" in message
    assert trained(run(tmp_path / "x", *epochs, "align.train.num_train_epochs=2", only="align")) == []


# --- gone on with -------------------------------------------------------------------------------------------------------------------------


def break_off(stage: Path) -> None:
    """As if it had been killed after its first step, of two."""
    (stage / "stack.json").unlink()
    shutil.rmtree(stage / "adapter")
    shutil.rmtree(stage / "checkpoints" / "checkpoint-2")


@pytest.mark.parametrize("stage", ["align", "instruct"])
def test_an_unfinished_stage_goes_on_where_it_stopped(finished, copied, run, stage):
    break_off(copied / stage)
    if stage == "align":
        shutil.rmtree(copied / "instruct")
    ran = run(copied)
    assert f"resume     from {copied / stage / 'checkpoints/checkpoint-1'}" in ran.printed
    assert trained(ran) == (["align", "instruct"] if stage == "align" else ["instruct"])
    for each in ("style", "align", "instruct"):
        same_end(copied / each, finished.folder / each)


@pytest.mark.parametrize(("stage", "parent"), [("align", "style"), ("instruct", "align")])
def test_an_unfinished_stage_does_not_go_on_from_another_parent(copied, run, stage, parent):
    break_off(copied / stage)
    if stage == "align":
        shutil.rmtree(copied / "instruct")
    other = f"{parent}.train.learning_rate=3e-5"
    run(copied, other, only=parent, force=True)
    message = refusal(lambda: run(copied, other, only=stage), copied)
    assert "got a checkpoint begun from another adapter than " in message and f"{parent}/adapter is now" in message
    assert trained(run(copied, other, only=stage, force=True)) == [stage]


def test_a_stage_that_stops_keeps_the_next_from_beginning(run, tmp_path, monkeypatch):
    from stylora.train.trainer import ForestTrainer

    def stop(self, loss: float) -> None:
        raise TrainingStopped("as a test wants")

    monkeypatch.setattr(ForestTrainer, "_check", stop)
    with pytest.raises(TrainingStopped):
        run(tmp_path / "x")
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["style"] and not (tmp_path / "x/style/stack.json").exists()
    monkeypatch.undo()
    assert trained(run(tmp_path / "x", only="style")) == ["style"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("instruct.data.train=/no/such/novels", "/no/such/novels"),
        ("align.data.window=100000", "data.window: got 100000 tokens, expected at most"),
        ("instruct.data={format: chat, train: nowhere.jsonl}", "nowhere.jsonl"),
        ("align.objective.kind=answers", "objective.kind: got answers, expected clm, span or fim"),
        ("instruct.objective.kl={beta: 0.1, on: general}", "objective.kl.on: got general, expected edges or all"),
        ("instruct.train.report_to=[no_such_tracker]", "train.report_to: got 'no_such_tracker'"),
        ("instruct.adapter.weights={align: .inf}", "expected input should be a finite number"),
        ("instruct.adapter={dora: true, fold_frozen: true}", "adapter.fold_frozen: got true, under a DoRA adapter"),
        ("instruct.adapter={dora: true, dropout: 0.1}", "adapter.dropout: got 0.1, of a DoRA adapter on others"),
        ("instruct.adapter.frozen=[nowhere]", "nowhere: got no adapter_model.safetensors, expected a PEFT adapter"),
    ],
)
def test_what_is_wrong_with_a_later_stage_is_told_before_the_first_is_trained(run, tmp_path, override, message):
    more = ["instruct.data.general_ratio=0"] * ("general" in override)
    assert message in refusal(lambda: run(tmp_path / "x", *more, override), tmp_path)
    assert not (tmp_path / "x").exists()


# --- the learning rate --------------------------------------------------------------------------------------------------------------------


FAST = (
    "stage '{}': train.learning_rate {} is not below 0.001, that of 'style', whose adapter it trains on; "
    "smaller steps keep what was learned"
)


@pytest.mark.parametrize(("rate", "told"), [("1e-3", ["0.001"]), ("2e-3", ["0.002"]), ("9e-4", [])])
def test_a_stage_that_goes_on_as_fast_is_warned_of(recipe_file, rate, told):
    """One with an adapter of its own may learn as fast as it likes."""
    recipe = load_recipe(recipe_file, [f"align.train.learning_rate={rate}", "instruct.train.learning_rate=1"])
    found = [line for stage in recipe.stages for line in rate_warnings(recipe, stage)]
    assert found == [FAST.format("align", each) for each in told]


@pytest.mark.parametrize("place", ["adapter", "checkpoints/checkpoint-1", "elsewhere"])
def test_so_is_one_on_an_adapter_of_another_run(finished, recipe_file, tmp_path, place):
    """Of one from elsewhere nobody knows how fast it was trained."""
    folder = finished.folder / "style" / place
    if place == "elsewhere":
        folder = tmp_path / "a" / "b" / "c"
        shutil.copytree(finished.folder / "style" / "adapter", folder)
    style = yaml.safe_load(recipe_file.read_text(encoding="utf-8"))["stages"][0] | {"name": "more", "adapter": {"path": str(folder)}}
    for rate, told in ((1e-3, [FAST.format("more", "0.001")] if place != "elsewhere" else []), (1e-4, [])):
        recipe = parse_recipe({"stages": [style | {"train": {"learning_rate": rate}}]}, [], name="r")
        assert list(rate_warnings(recipe, recipe.stages[0])) == told


def test_it_is_said_before_anything_else_and_of_what_is_to_be_trained(copied, run):
    fast = "align.train.learning_rate=2e-3"
    assert run(copied, fast, only="align", force=True).printed.startswith(f"warning    {FAST.format('align', '0.002')}\n")
    shutil.rmtree(copied / "instruct")
    again = run(copied, fast)
    assert trained(again) == ["instruct"] and "warning" not in again.printed


# --- one adapter on another ---------------------------------------------------------------------------------------------------------------


def plain_stack(*folders: Path) -> torch.Tensor:
    """Logits of the base with these adapters all at work, in plain PEFT."""
    peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32), str(folders[0]), "0")
    for number, folder in enumerate(folders[1:], 1):
        peft.load_adapter(str(folder), str(number))
    peft.base_model.set_adapter([str(number) for number in range(len(folders))])
    return peft.eval()(input_ids=IDS).logits


@torch.no_grad()
def test_a_stage_on_another_opens_with_both(finished):
    both = plain_stack(finished.folder / "align/adapter", finished.folder / "instruct/adapter")
    for name in (finished.folder, *(finished.folder / "instruct" / place for place in ("", "stack.json", "adapter"))):
        opened = open_model(str(name), FP32)
        assert opened.model.active_adapters == ["frozen0", "default"] and opened.adapter == finished.folder / "instruct/adapter"
        assert not any(parameter.requires_grad for parameter in opened.model.parameters())
        torch.testing.assert_close(opened.model(input_ids=IDS).logits, both, rtol=0, atol=1e-5)
    alone = open_model(f"{finished.folder}/instruct@align=0", FP32).model(input_ids=IDS).logits
    torch.testing.assert_close(alone, plain_stack(finished.folder / "instruct/adapter"), rtol=0, atol=1e-5)
    below = open_model(str(finished.folder / "align"), FP32).model(input_ids=IDS).logits
    for one in (alone, below):
        assert not torch.allclose(one, both, atol=1e-3), "each of the two is seen"


@torch.no_grad()
def test_a_checkpoint_of_a_stage_on_another_opens_with_what_it_was_trained_on(finished, copied):
    last, below = finished.folder / "instruct/checkpoints/checkpoint-2", finished.folder / "align/adapter/adapter_model.safetensors"
    opened = open_model(str(last), FP32).model(input_ids=IDS).logits
    assert torch.equal(opened, open_model(str(finished.folder / "instruct"), FP32).model(input_ids=IDS).logits)
    lowest = finished.folder / "align/checkpoints/checkpoint-2"
    assert find_model(str(lowest)).adapters == (lowest,)
    spoil(below)
    try:
        with pytest.raises(UserError, match="got an adapter that was changed after training"):
            find_model(str(last))
    finally:
        shutil.copy(copied / "align/adapter/adapter_model.safetensors", below)


def test_a_moved_run_opens_where_it_lies_and_a_stage_without_what_is_below_it_does_not(copied, tmp_path):
    found = find_model(str(copied))
    assert [path.resolve() for path in found.adapters] == [copied / "align/adapter", copied / "instruct/adapter"]
    shutil.copytree(copied / "instruct", tmp_path / "lonely")
    with pytest.raises(UserError, match=r"align.adapter: got no adapter_model.safetensors, expected the adapter that stack.json names"):
        find_model(str(tmp_path / "lonely"))
    spoil(copied / "align" / "adapter" / "adapter_model.safetensors")
    with pytest.raises(UserError, match=r"align.adapter: got an adapter that was changed after training"):
        find_model(str(copied / "instruct"))


def test_what_lies_below_is_not_touched_and_not_saved_again(finished):
    top = load_file(finished.folder / "instruct/adapter/adapter_model.safetensors")
    assert all(name.endswith(("lora_A.weight", "lora_B.weight")) for name in top)
    assert {name.rsplit(".", 3)[-3] for name in top} == {"q_proj", "down_proj"}
    stack = json.loads((finished.folder / "instruct/stack.json").read_text(encoding="utf-8"))
    assert stack["adapters"][0]["hash"] == hash_file(finished.folder / "align/adapter/adapter_model.safetensors")


def test_a_stage_that_continues_one_on_another_keeps_what_is_below(finished, copied, run, recipe_file, tmp_path):
    values = yaml.safe_load(recipe_file.read_text(encoding="utf-8"))
    values["stages"] += [{"name": "more", "continue": "instruct", "train": {"learning_rate": 1e-3}}]
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    assert trained(run(copied, file=tmp_path / "r.yaml")) == ["more"]
    stack = json.loads((copied / "more/stack.json").read_text(encoding="utf-8"))
    assert [(entry["path"], entry["role"]) for entry in stack["adapters"]] == [("../align/adapter", "frozen"), ("adapter", "trained")]
    before, after = (load_file(copied / stage / "adapter/adapter_model.safetensors") for stage in ("instruct", "more"))
    assert before.keys() == after.keys() and any(not torch.equal(before[name], after[name]) for name in before)
    assert rows(copied / "more")[0]["eval/style"] == rows(copied / "instruct")[-1]["eval/style"]


# --- as a command -------------------------------------------------------------------------------------------------------------------------


def test_the_flags_reach_it(command, recipe_file, finished, copied):
    there = f"output_dir={copied}"
    for stage in ("align", "instruct"):
        shutil.rmtree(copied / stage)
    assert "--resume: got nothing to go on with in" in command("train", recipe_file, there, "--resume").err
    assert "--stage: got 'x', expected a stage of the recipe" in command("train", recipe_file, there, "--stage", "x").err
    assert command("train", recipe_file, there, "--stage", "align").code == 0
    ran = command("train", recipe_file, there, "--from", "align")
    assert ran.code == 0 and ran.out.count("done already") == 1 and "stage      instruct, 2 of 2" in ran.out
    break_off(copied / "instruct")
    ran = command("train", recipe_file, there, "--resume")
    assert ran.code == 0 and ran.out.count("done already") == 2 and "resume     from " in ran.out
    for stage in ("align", "instruct"):
        same_end(copied / stage, finished.folder / stage)
    assert "--resume: got a finished run in" in command("train", recipe_file, there, "--resume").err
    ran = command("train", recipe_file, there, "--force", "--stage", "align")
    assert ran.code == 0 and "done already" not in ran.out
    same_end(copied / "align", finished.folder / "align")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("align.continue=stile", "stages[1].continue: got 'stile', expected the name of an earlier stage; did you mean 'style'?"),
        ("align.continue=align", "stages[1].continue: got a circle, align -> align"),
        ("style.continue=instruct", "stages[0].continue: got a circle, style -> instruct -> align -> style"),
        ("style.adapter=null", "stages[0].adapter: got None, expected an adapter"),
        ("layout=flat", "layout: got flat for 3 stages"),
        ("instruct.adapter.targets=[q_porj]", "adapter.targets: got 'q_porj', expected linear or embedding modules of this base; did you"),
        ("instruct.adapter.weights={align: .inf}", "expected input should be a finite number"),
        ("instruct.adapter={dora: true, fold_frozen: true}", "adapter.fold_frozen: got true, under a DoRA adapter"),
        ("instruct.adapter={dora: true, dropout: 0.1}", "adapter.dropout: got 0.1, of a DoRA adapter on others"),
        ("instruct.adapter.frozen=[nowhere]", "nowhere: got no adapter_model.safetensors, expected a PEFT adapter"),
    ],
)
def test_mistakes_are_one_sentence(command, recipe_file, copied, override, message):
    """Also those that only the model can tell."""
    shutil.rmtree(copied / "instruct")
    before = everything(copied)
    ran = command("train", recipe_file, f"output_dir={copied}", override)
    assert ran.code == 2 and message in ran.err and len(ran.err.strip().splitlines()) == 1, ran
    assert everything(copied) == before
