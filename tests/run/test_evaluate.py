"""`stylora evaluate` on the bundled base: figures are those of their functions, models do not disturb each other, wrong calls end early."""

from __future__ import annotations

import io
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file

from stylora.errors import UserError
from stylora.evaluate.base_distance import base_distance
from stylora.evaluate.copying import TrainingText
from stylora.evaluate.held_out import measure, precision_context
from stylora.evaluate.intervals import interval
from stylora.evaluate.prompts import PROMPTS
from stylora.evaluate.repetition import distinct
from stylora.generate.decode import generate
from stylora.generate.settings import Sampling
from stylora.model.device import choose_device
from stylora.model.forest_model import ForestModel
from stylora.model.tokenizer_file import TINY
from stylora.recipe.recipe import Recipe, load_recipe, parse_recipe
from stylora.run import evaluate as page
from stylora.run.evaluation_data import EvaluationData, choose_recipe
from stylora.run.evaluation_options import read_checkpoints, read_prompts, read_weights
from stylora.run.figures import alarms, label
from stylora.run.folder import adapter_hash
from stylora.run.open import find_model, open_model
from stylora.run.plan import open_tokenizer, read_data
from stylora.run.show_evaluation import show, telling
from stylora.run.train import train

ROOT = Path(__file__).parents[2]
SHORT = Sampling(max_new_tokens=8)
PARTS = ("style", "general")
pytestmark = pytest.mark.skipif(not (TINY / "tokenizer.json").is_file(), reason="the bundled base is not there yet")


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
def module_cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


def recipe(books: Path, out: Path, *overrides: str) -> Recipe:
    data = {
        "train": str(books / "wuxia"), "general": str(books / "modern"), "general_ratio": 0.25, "validation": 0.2,
        "general_validation": 0.2, "window": 64, "min_window": 16,
    }  # fmt: skip
    steps = {
        "max_steps": 3, "samples_per_step": 4, "save_steps": 1, "save_total_limit": None, "eval_strategy": "no", "learning_rate": 3e-3,
        "report_to": [],
    }  # fmt: skip
    stage = {"data": data, "adapter": {"r": 4, "alpha": 8}, "train": steps, "prompts": []}
    return parse_recipe({"output_dir": str(out), "stages": [stage]}, overrides, name="test")


@pytest.fixture(scope="module")
def trained(books, module_cache, tmp_path_factory) -> Path:
    """A stage of three steps, with a checkpoint at each."""
    described = recipe(books, tmp_path_factory.mktemp("runs") / "我的 [run]")
    train(described, name="unused", console=Console(file=io.StringIO()), cache=module_cache)
    return Path(str(described.output_dir)) / "style"


@pytest.fixture
def stage(trained, tmp_path) -> Path:
    """A copy of it, not evaluated."""
    shutil.copytree(trained, tmp_path / "[run]" / "style", ignore=shutil.ignore_patterns("evaluation.json"))
    return tmp_path / "[run]" / "style"


@pytest.fixture(scope="module")
def evaluate(module_cache) -> Callable[..., dict[str, Any]]:
    """`evaluate(stage)`: three prompts of eight tokens, quietly."""

    def run(*models: object, **options) -> dict[str, Any]:
        given = {"prompts": PROMPTS[:3], "sampling": SHORT, "console": Console(file=io.StringIO()), "cache": module_cache} | options
        return page.evaluate([str(model) for model in models], **given)

    return run


@pytest.fixture(scope="module")
def result(evaluate, trained) -> dict[str, Any]:
    return evaluate(trained)


def without_names(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if key not in ("name", "adapter", "checkpoint")}


# --- the figures --------------------------------------------------------------------------------------------------------------------------


def test_the_base_comes_first_and_is_at_no_distance_from_itself(result, trained):
    base, model = result["models"]
    assert (base["name"], base["base"], base["adapter"]) == ("base", "tiny", None)
    assert (model["name"], model["base"], model["adapter"]) == (str(trained), "tiny", (trained / "adapter").as_posix())
    assert (model["checkpoint"], model["weight"]) == (None, 1.0)
    for part in PARTS:
        assert base["kl_to_base"][part] == base["reverse_kl_to_base"][part] == base["held_out"][part]["change"] == 0
        assert model["kl_to_base"][part] > 0 and model["reverse_kl_to_base"][part] > 0
        assert model["held_out"][part]["change"] == model["held_out"][part]["loss"] - base["held_out"][part]["loss"] != 0
    assert result["warnings"] == [] and json.loads(json.dumps(result, allow_nan=False)) == result


def test_losses_and_divergences_are_those_of_their_functions(result, trained, module_cache):
    described = load_recipe(trained / "recipe.yaml")
    data, device = read_data(described, open_tokenizer("tiny"), cache=module_cache), choose_device()
    opened = open_model(str(trained), device)
    forest = ForestModel(opened.base.model, words=len(opened.base.tokenizer))
    for part in PARTS:
        samples = data.validation_samples[part]
        with precision_context(device.device, device.dtype):
            held = measure(forest, samples, data.validation_characters[part])
            distance = base_distance(forest, samples)
        found = result["models"][1]["held_out"][part]
        assert (found["loss"], found["error"], found["perplexity"]) == (held.loss, held.error, held.perplexity)
        assert found["perplexity_per_character"] == held.perplexity_per_character and found["tokens"] == held.tokens.sum()
        assert result["models"][1]["kl_to_base"][part] == distance.forward
        assert result["models"][1]["reverse_kl_to_base"][part] == distance.reverse


def test_continuations_are_those_of_generate_and_their_figures_those_of_the_functions(result, trained, module_cache):
    entry, device = result["models"][1], choose_device()
    opened = open_model(str(trained), device)
    with precision_context(device.device, device.dtype):
        drawn = generate(opened.model, opened.base.tokenizer, PROMPTS[:3], SHORT)
    texts = [sample["text"] for sample in entry["samples"]]
    assert texts == [each.text for each in drawn]
    assert [sample["prompt"] for sample in entry["samples"]] == list(PROMPTS[:3])
    yardstick = EvaluationData(recipe=load_recipe(trained / "recipe.yaml"), cache=module_cache)
    voice = yardstick.voice(tokens=8, seed=0)
    assert voice is not None
    assert result["voice"] == {"accuracy": voice.accuracy, "passages": voice.passages, "apart": voice.apart}
    found = entry["generation"]
    scores = voice.style_score(texts)
    assert [sample["style_score"] for sample in entry["samples"]] == scores.tolist()
    assert found["style_score"] == interval(scores, seed=0).as_json()
    assert found["function_words"]["mean"] == voice.pooled_function_word_distance(texts, seed=0).mean
    assert (found["distinct_2"], found["length"]) == (distinct(texts, 2), np.mean([each.tokens for each in drawn]))
    assert found["stopped"] == np.mean([each.stopped == "stop" for each in drawn]) == np.mean([s["stopped"] for s in entry["samples"]])
    perplexity = [sample["base_perplexity"] for sample in entry["samples"]]
    assert min(perplexity) <= found["fluency"]["mean"] <= max(perplexity)


def test_copying_is_looked_for_in_the_training_text_and_not_in_what_is_held_out(result, trained, books, module_cache):
    described = load_recipe(trained / "recipe.yaml")
    data = read_data(described, open_tokenizer("tiny"), cache=module_cache)
    texts = {path: path.read_text(encoding="utf-8") for path in books.glob("*/*.txt")}
    held = {name for side in data.summary.sides if side.held for name in side.books}
    index = TrainingText([text for path, text in texts.items() if path.stem not in held])
    style = [text for path, text in texts.items() if path.stem in held and path.parent.name == "wuxia"]
    assert (len(held), len(style)) == (2, 1), "one book of either part"
    for entry in result["models"]:
        for sample in entry["samples"]:
            assert sample["longest_copy"] == index.longest_match(sample["text"])[0]
        assert entry["generation"]["longest_copy"] == max(sample["longest_copy"] for sample in entry["samples"])
        assert entry["generation"]["copied_held_out"] == index.overlap(style)


def test_two_calls_give_the_same_bytes_and_the_stage_keeps_them(result, evaluate, trained):
    kept = (trained / "evaluation.json").read_text(encoding="utf-8")
    assert json.loads(kept) == result
    again = evaluate(trained)
    assert json.dumps(again) == json.dumps(result)
    assert (trained / "evaluation.json").read_text(encoding="utf-8") == kept
    assert not list(trained.glob("*.tmp"))


def test_another_seed_draws_others(result, evaluate, trained):
    other = evaluate(trained, sampling=SHORT.model_copy(update={"seed": 1}))
    assert [entry["held_out"] for entry in other["models"]] == [entry["held_out"] for entry in result["models"]]
    assert [s["text"] for s in other["models"][1]["samples"]] != [s["text"] for s in result["models"][1]["samples"]]


def test_more_samples_of_a_prompt_keep_the_first(result, evaluate, trained):
    more = evaluate(trained, samples=2)
    for one, both in zip(result["models"], more["models"], strict=True):
        assert both["samples"][:3] == one["samples"]
        assert [sample["prompt"] for sample in both["samples"]] == list(PROMPTS[:3]) * 2
        scores = np.array([sample["style_score"] for sample in both["samples"]]).reshape(2, 3)
        assert both["generation"]["style_score"]["mean"] == pytest.approx(scores.mean())
        assert both["generation"]["style_score"] == interval(scores.mean(0), seed=0).as_json(), "over prompts, not over samples"


# --- several models -----------------------------------------------------------------------------------------------------------------------


def test_models_on_one_base_do_not_disturb_each_other(result, evaluate, trained, stage):
    """In any order, each as if it were alone; the base is loaded once."""
    path = stage / "adapter" / "adapter_model.safetensors"
    save_file({name: -value for name, value in load_file(path).items()}, path, metadata={"format": "pt"})  # A and B: the same update
    described = json.loads((stage / "stack.json").read_text(encoding="utf-8"))
    described["adapters"][0]["hash"] = adapter_hash(stage / "adapter")
    (stage / "stack.json").write_text(json.dumps(described), encoding="utf-8")
    first = stage / "checkpoints" / "checkpoint-1"
    told = io.StringIO()
    together = evaluate(first, stage, "tiny", trained, console=Console(file=told))
    names = [entry["name"] for entry in together["models"]]
    assert names == ["base", str(first), str(stage), str(trained)], "the base was measured, so `tiny` needs no line of its own"
    assert told.getvalue().count("base tiny") == 1
    base, early, same, model = together["models"]
    assert (base, model) == tuple(result["models"])
    assert without_names(same) == without_names(model) != without_names(early)
    assert json.loads((stage / "evaluation.json").read_text(encoding="utf-8"))["models"] == [base, same]
    assert not (first / "evaluation.json").exists()


def test_a_bare_base_needs_a_recipe(evaluate, result, trained):
    alone = evaluate("tiny", data=trained / "recipe.yaml")
    assert alone["models"] == result["models"][:1]


def test_checkpoints(result, evaluate, stage):
    everything = evaluate(stage, checkpoints="all")
    assert [entry["checkpoint"] for entry in everything["models"]] == [None, 1, 2, 3, None]
    *_, first, second, third, last = everything["models"]
    assert without_names(third) == without_names(last) == without_names(result["models"][1]), "the last one is what the stage ended with"
    assert len({entry["held_out"]["style"]["loss"] for entry in (first, second, third)}) == 3
    some = evaluate(stage, checkpoints=[2])
    assert some["models"][1:] == [second, last]
    alone = evaluate(stage / "checkpoints" / "checkpoint-2", data=stage / "recipe.yaml")
    assert without_names(alone["models"][1]) == without_names(second)


def test_weights(result, evaluate, stage):
    found = evaluate(stage, weights=(1.0, 0.0, 0.5))["models"]
    assert [entry["weight"] for entry in found] == [1.0, 1.0, 0.0, 0.5]
    base, trained, nothing, half = found
    assert without_names(trained) == without_names(result["models"][1])
    assert (nothing["held_out"], nothing["samples"]) == (base["held_out"], base["samples"])
    assert nothing["kl_to_base"] == {"style": 0.0, "general": 0.0}
    assert 0 < half["kl_to_base"]["style"] < trained["kl_to_base"]["style"]


def test_a_stack_is_measured_with_all_its_adapters(result, evaluate, trained, books, module_cache, tmp_path):
    """An adapter on a frozen one: its base has neither, and both are weighted; a checkpoint changes the upper one alone."""
    described = recipe(books, tmp_path / "run", f"adapter.frozen=['{trained.as_posix()}/adapter']", "adapter.names=[below]", "train.seed=5")
    train(described, name="unused", console=Console(file=io.StringIO()), cache=module_cache)
    found = evaluate(tmp_path / "run", checkpoints=[1], weights=(1.0, 0.0))["models"]
    base, _, _, whole, nothing = found
    assert base == result["models"][0] and nothing["held_out"] == base["held_out"]
    losses = [entry["held_out"]["style"]["loss"] for entry in (base, result["models"][1], found[1], whole)]
    assert losses == sorted(losses, reverse=True) and len(set(losses)) == 4, "three steps more than the frozen one has"


def test_a_base_with_another_tokenizer_reads_the_same_text(result, evaluate, trained, base_folder, module_cache):
    found = evaluate(trained, str(base_folder))
    assert found["models"][:2] == result["models"]
    other = found["models"][2]
    assert (other["name"], other["base"], other["adapter"]) == ("base", str(base_folder), None)
    assert any("several bases: compare figures per character" in warning for warning in found["warnings"])
    yardstick = EvaluationData(recipe=load_recipe(trained / "recipe.yaml"), cache=module_cache)
    ours, theirs = yardstick.held_out("tiny"), yardstick.held_out(str(base_folder))
    tokenizers = [open_tokenizer(base) for base in ("tiny", str(base_folder))]
    assert max(len(sample) for sample in theirs.samples["style"]) <= 256 < sum(len(sample) for sample in theirs.samples["style"])
    for part in PARTS:
        mine, read = (
            "".join(tokenizer.decode(sample.forest.ids.tolist()) for sample in text.samples[part])
            for tokenizer, text in zip(tokenizers, (ours, theirs), strict=True)
        )
        assert mine == read
        predicted = sum(theirs.characters[part])
        assert predicted == pytest.approx(len(read), abs=2 * len(theirs.samples[part])), "but for the first token of each"
        figures = other["held_out"][part]
        assert figures["tokens"] == sum(len(sample) - 1 for sample in theirs.samples[part])
        assert math.log(figures["perplexity_per_character"]) == pytest.approx(figures["loss"] * figures["tokens"] / predicted)


# --- data ---------------------------------------------------------------------------------------------------------------------------------


def test_conversations_have_losses_and_no_style(evaluate, trained, tmp_path):
    rows = tmp_path / "rows.jsonl"
    turns = [[{"role": "user", "content": f"{n}加{n}"}, {"role": "assistant", "content": f"{2 * n}"}] for n in range(12)]
    rows.write_text("\n".join(json.dumps({"messages": each}) for each in turns), encoding="utf-8")
    chat = parse_recipe({"stages": [{"data": {"format": "chat", "train": str(rows), "validation": 0.2}}]}, [], name="chat")
    found = evaluate(trained, data=chat)
    assert any("the data are conversations" in warning for warning in found["warnings"]) and found["voice"] is None
    for entry in found["models"]:
        assert list(entry["held_out"]) == ["answers"] and entry["generation"] is None and entry["samples"] == []
    assert found["models"][1]["kl_to_base"]["answers"] > 0
    shown = shown_by(found)
    assert "answers" in shown and "continuations" not in shown.split("warning")[0]


@pytest.mark.parametrize("settings", [["data.validation=0", "data.general_validation=0"], ["data.general=null", "data.general_ratio=null"]])
def test_what_is_missing_is_said_and_the_rest_is_measured(evaluate, trained, books, tmp_path, settings):
    found = evaluate(trained, data=recipe(books, tmp_path, *settings))
    entry = found["models"][1]
    if "validation" in settings[0]:
        assert entry["held_out"] == entry["kl_to_base"] == {} and "nothing is held out: there is no loss and no KL" in found["warnings"][-1]
        assert entry["generation"]["style_score"] is not None and found["voice"] is not None
    else:
        assert list(entry["held_out"]) == ["style"] and found["voice"] is None
        assert [warning for warning in found["warnings"] if "no style score: the general text: got 0 passages" in warning]
        assert entry["generation"]["style_score"] is entry["generation"]["function_words"] is None
        assert entry["generation"]["fluency"]["mean"] > 1
    assert "-" in shown_by(found)


def test_held_out_text_that_a_model_was_trained_on(evaluate, trained, books, module_cache, tmp_path):
    """The recipe that is measured on holds out a book that the model has learned from; or the very book it has not."""
    data = read_data(load_recipe(trained / "recipe.yaml"), open_tokenizer("tiny"), cache=module_cache)
    sides = {side.held: side.books for side in data.summary.sides if side.part == "style"}
    for held, told in ((sides[True][0], []), (sides[False][0], ["100.0"])):
        found = evaluate(trained, data=recipe(books, tmp_path, f"data.validation=[{held}]"))
        warnings = [warning for warning in found["warnings"] if "of the held-out style text stands word for word" in warning]
        assert [warning.split("%")[0] for warning in warnings] == told
        assert all(f"the training text of {trained}" in warning for warning in warnings), "not in that of the recipe"
        assert found["models"][1]["generation"]["copied_held_out"] == pytest.approx(len(told))


def test_a_models_own_text_that_is_gone(evaluate, stage, books, tmp_path):
    values = (stage / "recipe.yaml").read_text(encoding="utf-8").replace("wuxia", "gone")
    (stage / "recipe.yaml").write_text(values, encoding="utf-8")
    found = evaluate(stage, data=recipe(books, tmp_path))
    assert [warning for warning in found["warnings"] if warning.startswith(f"{stage}: its own training text can't be read")]


def test_the_alarm_sounds_above_what_held_out_text_shows():
    def entry(copied: float, held: float, adapter: str | None = "a") -> dict[str, Any]:
        found = {"copied": copied, "copied_held_out": held, "longest_copy": 25, "longest_copy_text": "却说那少年"}
        return {"name": "[m]", "checkpoint": 3, "weight": 0.5, "adapter": adapter, "generation": found}

    assert list(alarms([entry(0.02, 0.02), entry(0, 0), entry(0.5, 0, None), {**entry(1, 0), "generation": None}])) == []
    (alarm,) = alarms([entry(0.021, 0.02)])
    assert alarm.startswith("[m] @3 x0.5: 2.1% of its continuations") and "(2.0% of the held-out text does)" in alarm
    assert alarm.endswith("却说那少年, 25 characters")


# --- wrong calls --------------------------------------------------------------------------------------------------------------------------


def mistake(run: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        run()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("models", "options", "message"),
    [
        (["tiny"], {}, "--data: got nothing, and no MODEL that is a stage"),
        (["no such"], {}, "MODEL: got 'no such', expected `tiny`, a folder, or a hub id that can be reached"),
        (["STAGE", "EMPTY"], {}, "got a folder without a finished run or model"),
        (["STAGE", "no such base"], {}, "MODEL: got 'no such base'"),
        (["STAGE"], {"prompts": []}, "--prompts: got no prompt"),
        (["STAGE"], {"checkpoints": [1, 7]}, "checkpoint-7: got no such checkpoint, expected one of 1, 2, 3"),
        (["tiny"], {"checkpoints": "all"}, "--checkpoints: got no MODEL that is a stage"),
        (["STAGE"], {"data": Path("no such.yaml")}, "no such.yaml: got no such file"),
        (["STAGE"], {"data": "RECIPE", "stage": "stlye"}, "--stage: got 'stlye', expected a stage of the recipe; did you mean 'style'?"),
    ],
)
def test_wrong_calls_end_before_anything_is_measured(evaluate, stage, tmp_path, models, options, message):
    (tmp_path / "empty").mkdir()
    names = {"STAGE": str(stage), "EMPTY": str(tmp_path / "empty")}
    if options.get("data") == "RECIPE":
        options = options | {"data": stage / "recipe.yaml"}
    told = io.StringIO()
    assert message in mistake(lambda: evaluate(*[names.get(name, name) for name in models], console=Console(file=told), **options))
    assert told.getvalue() == "" and not (stage / "evaluation.json").exists()


def test_a_damaged_checkpoint_and_an_adapter_without_a_weight(evaluate, stage):
    config = stage / "adapter" / "adapter_config.json"
    config.write_text(config.read_text(encoding="utf-8").replace('"use_dora": false', '"use_dora": true'), encoding="utf-8")
    assert "got an adapter_config.json that was changed after training" in mistake(lambda: evaluate(stage, weights=(1.0, 0.5)))
    assert "weight: got a DoRA adapter" in mistake(lambda: evaluate(stage, weights=(1.0, 0.5), force=True))
    config.write_text(config.read_text(encoding="utf-8").replace('"use_dora": true', '"use_dora": false'), encoding="utf-8")
    weights = stage / "checkpoints" / "checkpoint-2" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert "checkpoint-2: got adapter_model.safetensors" in mistake(lambda: evaluate(stage, checkpoints="all"))


def test_a_folder_that_cannot_be_written_to_is_left_alone(evaluate, stage, monkeypatch):
    monkeypatch.setattr(page.os, "access", lambda path, mode: False)
    told = io.StringIO()
    evaluate(stage, console=Console(file=told, soft_wrap=True))
    assert f"not kept   {stage} can't be written to" in told.getvalue() and not (stage / "evaluation.json").exists()


def test_options_as_values(tmp_path):
    assert read_checkpoints("all") == "all" and read_checkpoints("200, 100,100") == [100, 200]
    assert read_weights("0.3,1,0.3") == [1.0, 0.3]
    for text in ("", "1.5", "last", "100,"):
        assert "--checkpoints: got" in mistake(lambda text=text: read_checkpoints(text))
    for text in ("", "x", "-1", "nan", "inf", "0.3,"):
        assert "--weight: got" in mistake(lambda text=text: read_weights(text))
    path = tmp_path / "prompts.txt"
    path.write_text("\ufeff 他推开门，\r\n\n[b]门外\n", encoding="utf-8")
    assert read_prompts(path) == [" 他推开门，", "[b]门外"]
    path.write_text("\n \n", encoding="utf-8")
    assert "got no prompt" in mistake(lambda: read_prompts(path))
    path.write_bytes("门".encode("gbk"))
    assert "got UnicodeDecodeError" in mistake(lambda: read_prompts(path))
    assert "got no such file" in mistake(lambda: read_prompts(tmp_path / "none"))


# --- the command --------------------------------------------------------------------------------------------------------------------------


def shown_by(result: dict[str, Any], width: int = 120) -> str:
    file = io.StringIO()
    show(result, Console(file=file, width=width, force_terminal=True, color_system=None))
    return file.getvalue()


def test_the_tables_fit_into_120_columns_and_say_everything(result):
    several = json.loads(json.dumps(result))
    several["models"][1] |= {"name": "runs/wuxia", "checkpoint": 300, "weight": 0.5}
    several["models"][1]["samples"][0]["text"] = "[red]他\n说"
    several["warnings"] = ["[bold]careful[/bold]"]
    shown = shown_by(several)
    assert "…" not in shown.split("warning")[0], "no figure is cut off"
    assert max(map(len, shown.splitlines())) <= 120
    assert f"{result['models'][0]['held_out']['style']['perplexity']:.2f}" in shown
    assert "runs/wuxia @300 x0.5" in shown and "[red]他↵说" in shown and "warning    [bold]careful[/bold]" in shown
    for prompt in PROMPTS[:3]:
        assert shown.count(f"  {prompt}") == 2
    assert label("a", None, 1.0) == "a"


def test_a_terminal_shows_how_far_it_is():
    file = io.StringIO()
    with telling(Console(file=file, force_terminal=True, width=80), 3) as tell:
        tell("[b]ase")
        tell("model")
    assert "model" in file.getvalue() and "1/3" in file.getvalue(), "the bar is drawn anew a few times a second"


def test_json_is_alone_on_stdout_and_in_the_file(command, result, stage, tmp_path):
    prompts, out = tmp_path / "p.txt", tmp_path / "figures.json"
    prompts.write_text("\n".join(PROMPTS[:3]), encoding="utf-8")
    ran = command("evaluate", stage, "--prompts", prompts, "--max-new-tokens", 8, "--json", "--out", out, "--weight", "0")
    assert ran.code == 0, ran
    found = json.loads(ran.out)
    assert json.loads(out.read_text(encoding="utf-8")) == found
    assert [without_names(entry) for entry in found["models"][:2]] == [without_names(entry) for entry in result["models"]]
    assert found["settings"] == result["settings"] and found["models"][2]["weight"] == 0
    assert "measure    " in ran.err


def test_the_command_prints_tables_on_stdout_and_progress_on_stderr(command, stage, tmp_path):
    ran = command("evaluate", stage, "--max-new-tokens", 4, "--checkpoints", "1", "--seed", "3")
    assert ran.code == 0, ran
    assert f"{stage} @1" in ran.out and "held-out text" in ran.out and "32 prompts x 1, up to 4 tokens" in ran.out
    assert "seed 3;" in ran.out and "measure" not in ran.out
    kept = json.loads((stage / "evaluation.json").read_text(encoding="utf-8"))
    assert kept["settings"]["seed"] == kept["settings"]["sampling"]["seed"] == 3


def test_wrong_commands(refused, stage, tmp_path):
    assert "--weight: got 'half'" in refused("evaluate", stage, "--weight", "half")
    assert "--out: got" in refused("evaluate", stage, "--out", tmp_path / "no" / "such.json")
    assert "--out: got" in refused("evaluate", stage, "--out", tmp_path)
    assert "--top-p: got" in refused("evaluate", stage, "--top-p", "0")
    assert "--data: got nothing" in refused("evaluate", stage / "adapter")


def test_which_data_are_chosen(trained, books, tmp_path):
    own = find_model(str(trained))
    assert choose_recipe([find_model("tiny"), own], None, None, None).stages[0].data == load_recipe(trained / "recipe.yaml").stages[0].data
    two = recipe(books, tmp_path).model_dump(mode="json")
    two["stages"].append(json.loads(json.dumps(two["stages"][0])) | {"name": "b", "data": {"train": "x"}})
    chosen = parse_recipe(two, [], name="two")
    assert choose_recipe([own], chosen, None, None).stages[0].name == "style"
    assert choose_recipe([own], chosen, "b", "elsewhere").stages[0].data.train == "x"
    assert choose_recipe([own], chosen, "b", "elsewhere").base == "elsewhere"


@torch.no_grad()
def test_the_base_is_bare_again_after_a_model(trained, module_cache):
    """What `unload` leaves is what was there, so that the next adapter stands on the base alone."""
    from stylora.model.base import load_base
    from stylora.run.open import put_on

    device = choose_device()
    base = load_base("tiny", device)
    before = {name: value.clone() for name, value in base.model.state_dict().items()}
    put_on(base, find_model(str(trained))).model.unload()
    assert base.model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in base.model.state_dict().items())
