"""Branches trained on a random base: as rows of their own, seeing each other, stopped and gone on with; kept where older flags expect."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from peft import PeftModel
from rich.console import Console
from transformers import AutoModelForCausalLM

import stylora.run.evaluate as evaluation
import stylora.run.plan as plan
import stylora.run.train as training
from stylora.errors import UserError
from stylora.forest import Edges, Forest, Sample, join
from stylora.model.adapter import read_branches
from stylora.model.device import Device, choose_device
from stylora.recipe.recipe import Recipe, load_flags_told, load_recipe, parse_recipe
from stylora.run.folder import StageFolder, make_stage
from stylora.run.open import find_model, open_model
from stylora.run.runs import find_run, remove
from stylora.run.train import train
from stylora.samples.branch_data import BranchData
from stylora.samples.branch_settings import Branches
from stylora.train.interruption import Interrupted
from stylora.train.trainer import ForestTrainer

ROWS = [
    {"main": f"cup {n} is {'red' if n % 3 else 'blue'}, costs {n * 7}", "branches": [
        {"prompt": "colour:", "answer": "red" if n % 3 else "blue"}, {"prompt": "price:", "answer": str(n * 7)}, f"a cup, number {n}",
    ][: 1 + n % 3]}
    for n in range(14)
]  # fmt: skip
HELD = [{**row, "main": f"a {row['main']}"} for row in ROWS[:3]]


def written(path: Path, rows: list[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def made(tmp_path, base_folder):
    """`made("name", "branches.rope_2d_ratio=0", rows=...)`: a recipe of a few steps in fp32 over these rows."""

    def build(name: str, *overrides: str, rows: list[dict] = ROWS) -> Recipe:
        files = [written(tmp_path / f"{part}.jsonl", each) for part, each in ((name, rows), ("held", HELD))]
        values = {
            "base": str(base_folder), "output_dir": str(tmp_path / "runs" / name),
            "stages": [{
                "name": "b", "data": {"format": "branches", "train": files[0], "validation": [files[1]]},
                "branches": {"branch_stride": 16}, "adapter": {"r": 4, "alpha": 8},
                "train": {"num_train_epochs": 2, "samples_per_step": 6, "precision": "fp32", "learning_rate": 1e-2, "report_to": "none",
                          "eval_strategy": "epoch", "save_strategy": "no"},
            }],
        }  # fmt: skip
        return parse_recipe(values, overrides, name="test")

    return build


def carried_out(recipe: Recipe) -> tuple[list[dict], Path, str]:
    """(lines of metrics.jsonl but for the closing one, folder of the stage, what was printed)."""
    console = Console(file=io.StringIO(), width=300)
    outcome = train(recipe, name="unused", console=console)
    assert outcome is not None
    return metrics(outcome.folder), outcome.folder, console.file.getvalue()


def metrics(stage: Path) -> list[dict]:
    lines = (stage / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if "train_runtime" not in row]


def assert_same(ours: list[dict], theirs: list[dict]) -> None:
    """Every loss and gradient norm, trained and held out."""
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for one, other in zip(ours, theirs, strict=True):
        told = one.keys() & {"loss", "grad_norm", "eval/branches"}
        assert told and {key: one[key] for key in told} == pytest.approx({key: other[key] for key in told}, rel=1e-5, abs=1e-5)


# --------------------------------------------------------------------------------------------------- isolated is separate


def apart(sample: Sample) -> Sample:
    """Every branch in a row with a trunk of its own, at the coordinate it had."""
    forest, edges = sample.forest, sample.edges
    ends = np.unique(forest.end).tolist()  # of the branches, the last of which ends with the trunk
    if len(ends) == 1:
        return sample
    trunk, rows = int(np.argmax(forest.end != len(forest))), []
    for start, end in zip([trunk, *ends[:-1]], ends, strict=True):
        chosen = np.r_[0:trunk, start:end]
        place = {index: number for number, index in enumerate(chosen.tolist())}
        own = [number for number, source in enumerate(edges.source.tolist()) if start <= source < end]
        rows.append(Sample(
            forest=Forest(
                ids=forest.ids[chosen], time=forest.time[chosen], branch=forest.branch[chosen], root=np.zeros(len(chosen), np.int32),
                end=np.full(len(chosen), len(chosen), np.int32),
            ),
            edges=Edges(
                source=np.array([place[edges.source[edge]] for edge in own], np.int32), target=edges.target[own], weight=edges.weight[own]
            ),
        ))  # fmt: skip
    return join(rows)


@pytest.mark.parametrize("ratio", [0, 0.5])
def test_isolated_branches_train_as_rows_of_their_own(made, monkeypatch, ratio):
    """The same samples, once as trees and once as a trunk for each branch, at equal coordinates."""
    together, _, printed = carried_out(made("together", f"branches.rope_2d_ratio={ratio}"))
    assert "branches see their trunk and not each other" in printed and "steps of at most 6 branches" in printed
    whole = BranchData.sample
    monkeypatch.setattr(BranchData, "sample", lambda data, index, epoch: apart(whole(data, index, epoch)))
    monkeypatch.setattr(plan, "shares_prefixes", lambda stage: False)  # a trie would merge the trunks again
    separate, _, _ = carried_out(made("separate", f"branches.rope_2d_ratio={ratio}"))
    assert_same(together, separate)
    assert len(together) > 6 and together[-1]["eval/branches"] < together[0]["eval/branches"]


def test_rows_of_one_branch_each_are_the_same_training(made):
    """From the file on: a row for every branch. One step an epoch, for another number of rows is shuffled in another way."""
    settings = ("branches.rope_2d_ratio=0", "train.samples_per_step=1000", "train.num_train_epochs=3")
    alone = [{**row, "branches": [branch]} for row in ROWS for branch in row["branches"]]
    assert_same(carried_out(made("trees", *settings))[0], carried_out(made("chains", *settings, rows=alone))[0])


# ----------------------------------------------------------------------------------------------- what is learned and kept


def test_columnar_branches_train_and_only_the_adapter_changes(made, monkeypatch):
    kept: list[training.Prepared] = []
    prepare = training.prepare

    def spy(*args, **settings):
        kept.append(prepare(*args, **settings))
        before.update({name: weight.detach().clone() for name, weight in kept[0].base.model.named_parameters()})
        return kept[0]

    before: dict = {}
    monkeypatch.setattr(training, "prepare", spy)
    rows, stage, printed = carried_out(made("columns", "branches.visibility=columnar", "branches.rope_2d_ratio=0.25"))
    assert "each other's earlier columns" in printed and rows[-1]["eval/branches"] < rows[0]["eval/branches"]
    changed = {name for name, weight in kept[0].base.model.named_parameters() if not weight.equal(before[name])}
    assert changed == {name for name in before if "lora_" in name}
    assert f"try: stylora branches {stage}" in printed
    assert load_recipe(stage / "recipe.yaml").stages[0].branches == read_branches(stage / "adapter")


@pytest.mark.filterwarnings("ignore:Unexpected keyword arguments")
def test_an_adapter_of_coordinates_opens_here_and_fails_in_plain_peft(made, base_folder):
    _, stage, _ = carried_out(made("turned", "train.max_steps=2", "train.save_strategy=epoch"))
    layout = Branches(branch_stride=16)
    for folder in (stage / "adapter", stage / "checkpoints" / "checkpoint-2"):
        assert read_branches(folder) == layout
        with pytest.raises(Exception, match="STYLORA_LORA_2D"):
            PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_folder), str(folder))
        assert open_model(str(folder), cpu()).branches == layout
    assert find_model(str(stage)).branches == layout
    _, plain, _ = carried_out(made("plain", "train.max_steps=2", "branches.rope_2d_ratio=0"))
    PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base_folder), str(plain / "adapter"))


def cpu(precision: str = "fp32") -> Device:
    return choose_device(precision)


def test_stopped_and_gone_on_with_is_the_same_to_the_bit(made, monkeypatch):
    """Epochs that draw their branches and differ in their steps; stopped in the second of three."""
    drawn = ("data.max_branches_per_sample=3", "train.num_train_epochs=3", "train.samples_per_step=8", "adapter.dropout=0.1")
    straight, stage, _ = carried_out(made("straight", *drawn))
    stop = ForestTrainer.stop_asked
    with monkeypatch.context() as patch:
        patch.setattr(ForestTrainer, "stop_asked", lambda trainer: signal.SIGTERM if trainer.state.global_step == 5 else stop(trainer))
        with pytest.raises(Interrupted):
            carried_out(made("stopped", *drawn))
    resumed, other, printed = carried_out(made("stopped", *drawn))
    assert "resume     from" in printed and "checkpoint-5" in printed
    assert resumed == straight and (other / "adapter/adapter_model.safetensors").read_bytes() == adapter(stage)
    assert straight[-1]["epoch"] == 3


def adapter(stage: Path) -> bytes:
    return (stage / "adapter" / "adapter_model.safetensors").read_bytes()


def test_rows_that_cannot_be_used_are_kept_with_their_reason(made):
    rows, stage, printed = carried_out(made("bad", "train.max_steps=1", rows=[*ROWS, {"main": "", "branches": ["x"]}]))
    (reject,) = [json.loads(line) for line in (stage / "rejects.jsonl").read_text(encoding="utf-8").splitlines()]
    assert "`main` is empty" in reject["reason"] and "`main` is empty" in printed


@pytest.mark.parametrize("visibility", ["isolated", "columnar"])
def test_evaluate_measures_what_training_measured(made, monkeypatch, tmp_path, visibility):
    """On the held-out branches, as they are laid out; what the model is trained on otherwise is said."""
    rows, stage, _ = carried_out(made("measured", f"branches.visibility={visibility}"))
    monkeypatch.setattr(evaluation, "choose_device", cpu)
    result = evaluation.evaluate([str(stage)], console=Console(quiet=True))
    base, ours = result["models"]
    assert ours["held_out"]["branches"]["loss"] == pytest.approx(rows[-1]["eval/branches"], rel=1e-5)
    assert ours["kl_to_base"]["branches"] > 0 == base["kl_to_base"]["branches"] and ours["generation"] is None
    assert [line for line in result["warnings"] if "branches" in line] == [
        "the data are branches: loss and KL are measured; style, continuations and copying are not"
    ]
    other = made("other", "branches.visibility=isolated", "branches.branch_stride=8")
    again = evaluation.evaluate([str(stage)], data=other, console=Console(quiet=True))
    assert any("laid out in another way" in line for line in again["warnings"])
    assert (stage / "evaluation.json").is_file()


# ------------------------------------------------------------------------------------------------------------ older flags


FLAGS = "--lora_rank 4 --batch_size 4 --batch_by_samples --max_branches_per_sample 16 --rope_2d_ratio 0.5 --epochs 3 --ddp".split()
QUICK = ["--branch_stride", "8", "--dtype=float32", "train.max_steps=2", "train.report_to=none"]


@pytest.mark.parametrize("rows", [ROWS, [{"text": row["main"]} for row in ROWS]], ids=["branches", "text"])
def test_the_flags_of_the_quick_start_train(command, base_folder, tmp_path, monkeypatch, rows):
    monkeypatch.chdir(tmp_path)
    asked = ["train", "--base_model", base_folder, "--data_path", written(tmp_path / "rows.jsonl", rows), *FLAGS, *QUICK]
    ran = command(*asked)
    assert ran.code == 0, ran
    run, final = (tmp_path / "out" / "lora" / f"lora_{base_folder.name}{end}" for end in ("", "_final"))
    assert {path.name for path in final.iterdir()} >= {"adapter_model.safetensors", "adapter_config.json"}
    assert (run / "checkpoint-2" / "adapter_model.safetensors").is_file() and not (run / "adapter_model.safetensors").exists()
    assert find_model(str(run)).adapter.resolve() == find_model(str(final)).adapter.resolve() == final.resolve()
    recipe = load_recipe(run / "recipe.yaml")
    assert recipe == load_flags_told([str(word) for word in asked[1:]])[0]
    assert "done already" in command(*asked).out
    (final / "stale.txt").write_text("x", encoding="utf-8")
    make_stage(StageFolder(path=run, layout="beside"), recipe)
    assert not final.exists() and {path.name for path in run.iterdir()} <= {"recipe.yaml", ".lock"}, "what --force begins with"
    (run / "metrics.jsonl").touch()
    final.mkdir()
    remove(find_run(str(run)))
    assert not run.exists() and not final.exists()


def test_a_folder_beside_that_is_no_run_of_ours_is_left_alone(command, base_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    theirs = tmp_path / "out" / "lora" / f"lora_{base_folder.name}_final" / "mine.txt"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("x", encoding="utf-8")
    asked = ["train", "--base_model", base_folder, "--data_path", written(tmp_path / "rows.jsonl", ROWS), *QUICK]
    for force in ([], ["--force"]):
        ran = command(*asked, *force)
        assert ran.code == 2 and "got files of no run that is there" in ran.err
    assert theirs.read_text(encoding="utf-8") == "x"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="gloo over localhost")
def test_two_processes_trace_one(base_folder, tmp_path):
    """A batch of 4 on two processes is one of 8 on one."""
    flags = ["--base_model", str(base_folder), "--data_path", written(tmp_path / "rows.jsonl", ROWS), "--branch_stride=8", "--epochs=2"]
    found = []
    for name, more in (("one", ["--batch_size", "8"]), ("two", ["--batch_size", "4", "--ddp", "--nproc", "2"])):
        asked = [sys.executable, "-m", "stylora", "train", *flags, "--dtype", "float32", "--lora_name", name, *more]
        ran = subprocess.run(asked, cwd=tmp_path, capture_output=True, text=True, encoding="utf-8", timeout=250)
        assert ran.returncode == 0, ran
        found.append(metrics(tmp_path / "out" / "lora" / f"{name}_{base_folder.name}"))
    assert_same(*found)


# ---------------------------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("branches.rope_2d_ratio=1.5", "branches.rope_2d_ratio: got 1.5, expected input should be less than or equal to 1"),
        ("branches.rope_2d_ratio=-0.1", "branches.rope_2d_ratio: got -0.1"),
        ("branches.branch_stride=0", "branches.branch_stride: got 0"),
        ("data={format: text, train: x}", "branches: got a value, while data.format is text, expected data.format: branches"),
        ("prompts=[x]", "prompts: got a value, while data.format is branches"),
        ("objective.kind=clm", "objective.kind: got clm, expected branches"),
        ("objective.kl={beta: 0.1, on: general}", "objective.kl.on: got general"),
        ("branches.branch_stride=200", "branches.branch_stride: got 200, which puts branch 8 at 1,600"),
        ("branches.fork=ab", "branches.fork: got 'ab', which is 2 tokens"),
    ],
)
def test_mistakes(made, override, told):
    with pytest.raises(UserError) as caught:
        carried_out(made("wrong", override))
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_data_without_a_usable_row(made, tmp_path):
    for rows in ([], [{"main": "x", "branches": []}]):
        with pytest.raises(UserError, match="data.train: got no usable row"):
            carried_out(made("empty", rows=rows))
    assert not (tmp_path / "runs").exists()


def test_a_base_that_does_not_keep_branches_apart_is_refused(made, random_model, tokenizer, tmp_path):
    random_model("Qwen3_5Text").save_pretrained(tmp_path / "hybrid")
    tokenizer.save_pretrained(tmp_path / "hybrid")
    with pytest.raises(UserError, match="not proved to keep them apart"):
        carried_out(made("hybrid", f"base={tmp_path / 'hybrid'}", "branches.rope_2d_ratio=0"))
