"""`stylora export`: what lies in the folder opens in plain peft and transformers as the stack; nothing half-written; refusals."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

import stylora.run.export as page
from stylora.errors import UserError
from stylora.evaluate.prompts import PROMPTS
from stylora.model.adapter import Adapter, attach, save_adapter
from stylora.model.base import base_path, fingerprint, load_base
from stylora.model.device import Device
from stylora.model.export import compare, logits_of
from stylora.model.tokenizer_file import TINY
from stylora.recipe.recipe import parse_recipe
from stylora.run.export import Wanted, export
from stylora.run.folder import StageFolder, adapter_hash, keep_recipe, write_stack
from stylora.run.open import find_model, open_model
from stylora.run.task import TaskFile, write_task
from stylora.samples.branch_settings import Branches
from stylora.train.interruption import Interrupted

FP32 = Device(device=torch.device("cpu"), dtype=torch.float32, why="test")
ADAPTERS = {"style": Adapter(r=4, alpha=8, dropout=0.3), "instruct": Adapter(r=3, alpha=3, rslora=True, targets=["q_proj", "down_proj"])}
EVALUATED = {"held_out": {"style": {"perplexity": 12.5}}, "generation": {"style_score": {"mean": 0.75}, "distinct_4": 0.5}, "task": None}


def make_stages(run: Path, base: str) -> Path:
    """Two stages as training leaves them, with adapters that do something: `instruct`, of conversations, on `style`."""
    below: list[str] = []
    opened = load_base(base, FP32)
    for seed, (name, adapter) in enumerate(ADAPTERS.items()):
        data = {"format": "chat", "train": "/secret/place/rows.jsonl"} if name == "instruct" else {"train": ["/secret/place/侠.txt"]}
        settings = {"r": adapter.r, "alpha": adapter.alpha, "frozen": below, **({"weights": {"style": 0.7}} if below else {})}
        stage = {"name": name, "data": data, "adapter": settings, "train": {"samples_per_step": 8}}
        recipe = parse_recipe({"base": base, "stages": [stage]}, [], name="recipe")
        folder = StageFolder(path=run / name)
        folder.path.mkdir(parents=True)
        model = attach(load_base(base, FP32).model, adapter, seed=seed)
        torch.manual_seed(seed)
        with torch.no_grad():
            for path, parameter in model.named_parameters():
                if "lora_B" in path:
                    parameter.normal_(std=0.05)
        save_adapter(model, folder.adapter, base_name=base_path(base))
        keep_recipe(folder, recipe)
        (folder.path / "environment.json").write_text("{}", encoding="utf-8")
        rows = [{"step": 0, "eval/style": 6.5}, {"step": 5, "loss": 6.0}, {"step": 10, "eval/style": 5.25}]
        (folder.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        made = {"frozen": [adapter_hash(Path(path)) for path in below]}
        write_stack(folder, recipe, base_fingerprint=fingerprint(opened), steps=10, made=made)
        below.append(str(folder.adapter))
    write_task(run / "instruct", TaskFile(system="你是说书人。", chat_template_kwargs={"enable_thinking": False}))
    return run


@pytest.fixture(scope="module")
def stages(base_folder, tmp_path_factory) -> Path:
    return make_stages(tmp_path_factory.mktemp("runs") / "我的 run", str(base_folder))


@pytest.fixture(scope="module")
def of_tiny(tmp_path_factory) -> Path:
    """On the bundled base, which has a chat template and a card."""
    if not (TINY / "model.safetensors").is_file():
        pytest.skip("the bundled base is not there")
    return make_stages(tmp_path_factory.mktemp("runs") / "tiny", "tiny")


@pytest.fixture
def write(stages, tmp_path) -> Callable[..., tuple[dict[str, Any], Path]]:
    """`write("concat", dtype="bf16", model=...)`: exported, and where; `printed` of the function is what was said."""

    def go(kind: str, *, model: str = "", to: Path | None = None, force: bool = False, **options: Any) -> tuple[dict[str, Any], Path]:
        folder = to or tmp_path / "出 out" / kind
        console = Console(file=io.StringIO(), width=400)
        told = export(model or str(stages / "instruct"), folder, Wanted(kind=kind, **options), console=console, force=force)
        go.printed = console.file.getvalue()  # type: ignore[attr-defined]
        return told, folder

    return go


def stack_logits(model: str) -> list[torch.Tensor]:
    opened = open_model(model, FP32)
    return logits_of(opened.model, rows_of(opened.base.tokenizer))


def rows_of(tokenizer) -> list[torch.Tensor]:
    """Of prompts, also such that the export did not compare."""
    return [tokenizer(text, return_tensors="pt")["input_ids"][0] for text in (PROMPTS[0], PROMPTS[-1], "剑光一闪")]


def plain_peft(folder: Path, base: str) -> list[torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return logits_of(PeftModel.from_pretrained(model, str(folder)).eval(), rows_of(AutoTokenizer.from_pretrained(folder)))


def largest(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    return compare(one, other, torch.float32).largest


# ----------------------------------------------------------------------------------------------------------- what is written


@pytest.mark.parametrize("weight", ["", "@style=0.3"])
def test_concat_is_the_stack_in_plain_peft(weight, write, stages, base_folder):
    """With the weights of stack.json, or those given with its name; and nothing less than both adapters."""
    told, folder = write("concat", model=str(stages / "instruct") + weight)
    one, stack = plain_peft(folder, str(base_folder)), stack_logits(str(stages / "instruct") + weight)
    assert largest(one, stack) <= 1e-5 and told["comparison"]["largest"] <= 1e-5
    for other in (base_folder, stages / "style", f"{stages / 'instruct'}@style=0"):
        assert largest(stack, stack_logits(str(other))) > 1e-3
    assert told["rank"] == 7 and told["vllm_max_lora_rank"] == 8
    assert [(each["name"], each["weight"]) for each in told["adapters"]] == [("style", 0.3 if weight else 0.7), ("instruct", 1.0)]
    assert json.loads((folder / "export.json").read_text(encoding="utf-8")) == told
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["r"] == config["lora_alpha"] == 7 and not config["use_rslora"] and config["base_model_name_or_path"] == str(base_folder)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["concat"], "nothing else is left"
    assert largest(stack_logits(str(folder)), stack) <= 1e-5, "stylora opens it, too"


def test_an_adapter_of_weight_0_is_left_out(write, stages):
    told, folder = write("concat", model=f"{stages / 'instruct'}@style=0")
    assert told["rank"] == 3 and [each["name"] for each in told["adapters"]] == ["instruct"]
    assert largest(stack_logits(str(folder)), stack_logits(f"{stages / 'instruct'}@style=0")) <= 1e-5


@pytest.mark.parametrize(("rank", "exact"), [(2, False), (50, True)])
def test_svd_tells_what_is_lost(rank, exact, write, stages, base_folder):
    told, folder = write("svd", rank=rank)
    apart = largest(plain_peft(folder, str(base_folder)), stack_logits(str(stages / "instruct")))
    assert told["rank"] == min(rank, 7) and (apart <= 1e-5) == exact
    assert (told["svd"]["error"] < 1e-6) == (told["svd"]["largest_logit_difference"] < 1e-5) == exact
    assert told["svd"]["worst_error"] >= told["svd"]["error"] and told["comparison"]["largest"] <= 1e-5


@pytest.mark.parametrize(("dtype", "allowed"), [("fp32", 1e-5), ("bf16", 5e-2)])
def test_merged_is_the_stack_in_plain_transformers(dtype, allowed, write, stages, base_folder):
    told, folder = write("merged", dtype=dtype, max_shard_size="20KB")
    merged = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    assert merged.dtype == {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype] and told["dtype"] == dtype
    ours = logits_of(merged.float().eval(), rows_of(AutoTokenizer.from_pretrained(folder)))
    stack = stack_logits(str(stages / "instruct"))
    assert largest(ours, stack) <= allowed * max(1.0, max(float(row.abs().max()) for row in stack))
    assert (largest(ours, stack) <= 1e-5) == (dtype == "fp32")
    assert len(list(folder.glob("model-0*.safetensors"))) > 1 and (folder / "generation_config.json").is_file()
    assert not list(folder.glob("adapter*"))


def test_a_checkpoint_that_was_changed_is_taken_only_when_forced_and_marked(write, stages, tmp_path):
    run = tmp_path / "runs" / "copy"
    shutil.copytree(stages, run)
    path = run / "style" / "adapter" / "adapter_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="changed after training"):
        write("concat", model=str(run / "instruct"))
    told, folder = write("concat", model=str(run / "instruct"), force=True)
    assert told["forced"] and "forced: " in write.printed
    assert "**Changed after training:**" in (folder / "README.md").read_text(encoding="utf-8")


def test_a_stack_of_a_base_in_4_bits_is_written_on_the_whole_one(write, stages, tmp_path):
    run = tmp_path / "runs" / "packed"
    shutil.copytree(stages, run)
    described = json.loads((run / "instruct" / "stack.json").read_text(encoding="utf-8"))
    described["base"]["load_in_4bit"] = True
    (run / "instruct" / "stack.json").write_text(json.dumps(described), encoding="utf-8")
    told, folder = write("merged", model=str(run / "instruct"))
    assert told["trained_in_4bit"] and "are not compared" in write.printed
    assert "Trained on the base in 4 bits" in (folder / "README.md").read_text(encoding="utf-8")


# -------------------------------------------------------------------------------------------------------------------- card


def card_of(folder: Path) -> tuple[dict[str, Any], str, list[str]]:
    """(header, text, programs)"""
    text = (folder / "README.md").read_text(encoding="utf-8")
    return yaml.safe_load(text.split("---\n")[1]), text, re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def test_the_card_says_what_is_known_and_no_paths(write, stages):
    shutil.copytree(stages, stages.parent / "told", dirs_exist_ok=True)
    run = stages.parent / "told"
    models = [{"adapter": adapter, "checkpoint": None, "weight": 1.0, **EVALUATED} for adapter in (None, "x")]
    (run / "instruct" / "evaluation.json").write_text(json.dumps({"models": models}), encoding="utf-8")
    told, folder = write("concat", model=str(run / "instruct"))
    header, text, _ = card_of(folder)
    assert header["library_name"] == "peft" and header["base_model"] == "小 base" and "license" not in header
    assert "# license: the base's card names none; choose one" in text and "**Not chosen yet.**" in text
    for each in told["adapters"]:
        assert each["hash"] in text
    assert "novels from 侠.txt; 10 steps of 8 samples" in text and "chat from rows.jsonl" in text and "/secret" not in text
    assert "| style | style | 6.500 | 5.250 |" in text
    assert "| perplexity, style | 12.50 | 12.50 |" in text and "| style score | 0.750 | 0.750 |" in text
    assert "weights:\n      style: 0.7" in text and "samples_per_step: 8" in text
    assert "| `stylora evaluate` | this model |" in text
    _, folder = write("svd", rank=2, model=str(run / "instruct"))
    assert "| `stylora evaluate` | the adapters, before they were shrunk |" in card_of(folder)[1]


def test_figures_of_another_weight_are_not_claimed(write, stages):
    run = stages.parent / "told"
    shutil.copytree(stages, run, dirs_exist_ok=True)
    models = [{"adapter": adapter, "checkpoint": None, "weight": 1.0, **EVALUATED} for adapter in (None, "x")]
    (run / "instruct" / "evaluation.json").write_text(json.dumps({"models": models}), encoding="utf-8")
    _, folder = write("concat", model=f"{run / 'instruct'}@style=0.5")
    assert "12.50" not in (folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", ["concat", "merged"])
def test_the_programs_of_the_card_work(kind, write, of_tiny, monkeypatch, capsys):
    """The one with transformers is run, by the chat template of the bundled base; vLLM's is Python."""
    _, folder = write(kind, model=str(of_tiny / "instruct"))
    header, text, (transformers, vllm) = card_of(folder)
    assert header["license"] == "apache-2.0" and header["language"] == "zh"
    monkeypatch.chdir(folder.parent)
    torch.manual_seed(0)
    exec(compile(transformers.replace("max_new_tokens=64", "max_new_tokens=4"), "card", "exec"), {})
    assert capsys.readouterr().out.strip()
    assert "你是说书人。" in transformers and "enable_thinking" in transformers and "enable_thinking" in vllm
    ast.parse(vllm)
    assert ("max_lora_rank=8" in vllm) == ("--max-lora-rank 8" in text) == ("LoRARequest" in vllm) == (kind == "concat")
    assert (folder / "chat_template.jinja").is_file()


# ----------------------------------------------------------------------------------------------------- whole or not at all


def everything(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_an_export_is_replaced_when_forced_and_nothing_else_ever_is(write, tmp_path):
    _, folder = write("concat")
    before = everything(folder)
    with pytest.raises(UserError, match="an earlier export.*--force"):
        write("svd", rank=2, to=folder)
    assert everything(folder) == before
    write("merged", to=folder, force=True)
    assert not (folder / "adapter_config.json").exists() and (folder / "config.json").is_file()
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "novel.txt").write_text("x", encoding="utf-8")
    for force in (False, True):
        with pytest.raises(UserError, match="files that are no export"):
            write("concat", to=mine, force=force)
    assert everything(mine) == {"novel.txt": b"x"}
    with pytest.raises(UserError, match="--to: got .*which can't be made .*expected a folder that can be written to"):
        write("concat", to=mine / "novel.txt" / "in")


def test_a_folder_with_the_stack_in_it_is_not_replaced(write, stages, tmp_path):
    run = tmp_path / "in"
    shutil.copytree(stages, run / "run")
    (run / "export.json").write_text("{}", encoding="utf-8")
    with pytest.raises(UserError, match="where .* lies"):
        write("concat", model=str(run / "run" / "instruct"), to=run, force=True)


@pytest.mark.parametrize(("moment", "end"), [("compare", "error"), ("model_card", "signal"), ("save_adapter", "disk")])
def test_what_ends_it_leaves_the_folder_as_it_was(moment, end, write, monkeypatch):
    _, folder = write("concat")
    before = everything(folder)

    def stop(*arguments: object, **named: object) -> None:
        if end == "signal":
            os.kill(os.getpid(), signal.SIGTERM)
        raise OSError(28, "No space left on device") if end == "disk" else ZeroDivisionError

    with monkeypatch.context() as patch, contextlib.ExitStack() as stack:
        patch.setattr(page, moment, stop)
        stack.enter_context(pytest.raises({"error": ZeroDivisionError, "signal": Interrupted, "disk": UserError}[end]))
        write("svd", rank=2, to=folder, force=True)
    assert everything(folder) == before
    assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name]


def test_what_a_killed_process_left_is_swept_away(write, tmp_path):
    left = tmp_path / ".out.part"
    left.mkdir()
    (tmp_path / "out").mkdir()  # an empty one may be filled
    (left / "half").write_text("x", encoding="utf-8")
    _, folder = write("concat", to=tmp_path / "out")
    assert not left.exists() and not (folder / "half").exists()


def test_another_model_is_not_written(write, monkeypatch, tmp_path):
    """What lands on disk is what is compared, not what was in memory."""
    original = page.save_adapter

    def damaged(model, folder, *, base_name):
        with torch.no_grad():
            next(parameter for name, parameter in model.named_parameters() if "lora_B" in name).add_(0.01)
        original(model, folder, base_name=base_name)

    monkeypatch.setattr(page, "save_adapter", damaged)
    with pytest.raises(UserError, match="logits that differ by .* once it is written and read again"):
        write("svd", rank=2)
    assert not any((tmp_path / "出 out").iterdir())


# --------------------------------------------------------------------------------------------------------------- refusals


OPTIONS = {
    "--as: got 'cat', expected one of concat, svd, merged; did you mean 'concat'": ["--as", "cat"],
    "--as: got 'gguf'.*convert_hf_to_gguf.py": ["--as", "gguf"],
    "--rank: got 4, with --as concat": ["--as", "concat", "--rank", "4"],
    "--rank: got none, with --as svd": ["--as", "svd"],
    "--dtype: got 'int8'": ["--as", "concat", "--dtype", "int8"],
    "--max-shard-size: got a size, with --as concat": ["--as", "concat", "--max-shard-size", "1GB"],
    "--max-shard-size: got 'big'": ["--as", "merged", "--max-shard-size", "big"],
}


@pytest.mark.parametrize("message", OPTIONS)
def test_options_that_do_not_go_together(message, refused, stages, tmp_path):
    assert re.match(message, refused("export", stages / "instruct", "--to", tmp_path / "out", *OPTIONS[message]))
    assert not (tmp_path / "out").exists()


def test_models_that_can_not_be_exported(refused, stages, base_folder, random_model, tmp_path):
    def told(model: object, *more: object) -> str:
        return refused("export", model, "--to", tmp_path / "out", "--as", "concat", *more)

    assert "a model without adapters" in told(base_folder)
    assert "no adapter whose weight is not 0" in told(f"{stages / 'style'}@style=0")
    for name, kind, adapter in (("dora", "Qwen3", Adapter(r=2, dora=True)), ("foreign", "GPT2", Adapter(r=2, targets=["c_attn"]))):
        save_adapter(attach(random_model(kind), adapter, seed=0), tmp_path / name, base_name=str(base_folder))
    assert re.search(r"a DoRA adapter.*export it with --as merged", told(tmp_path / "dora"))
    assert "an adapter that does not fit this base" in told(tmp_path / "foreign")
    run = tmp_path / "runs" / "twice"
    shutil.copytree(stages, run)
    described = json.loads((run / "instruct" / "stack.json").read_text(encoding="utf-8"))
    described["adapters"][0]["name"] = "instruct"
    (run / "instruct" / "stack.json").write_text(json.dumps(described), encoding="utf-8")
    assert "two adapters called 'instruct'" in told(run / "instruct")
    (tmp_path / "file").write_text("x", encoding="utf-8")
    assert "a file, expected a folder" in refused("export", stages / "style", "--to", tmp_path / "file", "--as", "concat")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_a_base_in_packed_weights_is_refused(write, monkeypatch):
    original = page.load_base

    def packed(*arguments: Any, **named: Any):
        base = original(*arguments, **named)
        base.model.is_quantized = True
        return base

    monkeypatch.setattr(page, "load_base", packed)
    with pytest.raises(UserError, match="saved in packed weights.*--base"):
        write("merged")


def test_it_is_computed_in_bf16_where_the_base_does_not_fit(base_folder, monkeypatch):
    found = find_model(str(base_folder))
    assert page.comparing_device(found.base, False).precision == "fp32"
    monkeypatch.setattr(page.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1000}))
    assert page.comparing_device(found.base, False).precision == "bf16"
    assert page.comparing_device(str(base_folder / "nowhere"), False).precision == "fp32"


def test_the_command_tells(command, stages, tmp_path):
    ran = command("export", stages / "instruct", "--to", tmp_path / "a", "--as", "svd", "--rank", 2)
    assert ran.code == 0 and "one LoRA of rank 2, fp32" in ran.out and "% of the update" in ran.out
    assert "vLLM needs --max-lora-rank 8" in ran.out and "style x 0.7 + instruct x 1" in ran.out
    ran = command("export", stages / "instruct", "--to", tmp_path / "b", "--as", "merged", "--json")
    assert json.loads(ran.out)["as"] == "merged" and ran.code == 0


@pytest.mark.parametrize("kind", ["concat", "svd", "merged"])
def test_coordinates_of_branches_are_not_exported(kind, base_folder, tmp_path):
    """No other program knows them. Without them it is an adapter like another."""
    model = attach(load_base(str(base_folder), FP32).model, Adapter(r=2), seed=0)
    wanted = Wanted(kind=kind, rank=2 if kind == "svd" else None)
    for name, ratio in (("turned", 0.5), ("flat", 0.0)):
        save_adapter(model, tmp_path / name, base_name=str(base_folder), branches=Branches(rope_2d_ratio=ratio))
    with pytest.raises(UserError, match="branches stand at rope_2d_ratio 0.5, .*; use it here"):
        export(str(tmp_path / "turned"), tmp_path / "out", wanted, console=Console(file=io.StringIO()))
    assert not (tmp_path / "out").exists()
    export(str(tmp_path / "flat"), tmp_path / "out", wanted, console=Console(file=io.StringIO()))
