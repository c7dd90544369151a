"""Several stages in one recipe: what a stage takes over key by key, how overrides reach it, and how stages may hang together."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from stylora.errors import UserError
from stylora.evaluate.task_settings import Task
from stylora.model.settings import Adapter
from stylora.recipe.recipe import Recipe, Stage, load_recipe, parse_recipe
from stylora.recipe.stages import inherit
from stylora.samples.anchors import Kl
from stylora.samples.branch_settings import Branches
from stylora.samples.objective import Objective
from stylora.train.settings import Train

STYLE = {
    "name": "style",
    "data": {
        "train": "novels", "validation": ["某书"], "window": 512, "general": "g", "general_ratio": 0.1, "cleaning": {"adverts": False},
    },
    "objective": {"kind": "span", "mask_ratio": 0.3, "kl": {"beta": 0.2, "on": "general"}},
    "adapter": {"r": 8, "dropout": 0.1, "targets": ["q_proj"]},
    "train": {"max_steps": 40, "learning_rate": 1e-3, "warmup_steps": 7, "precision": "fp32"},
    "prompts": ["剑光一闪", "他说"],
    "sampling": {"temperature": 0, "stop": ["。"]},
}  # fmt: skip


def recipe(*stages: dict[str, Any], overrides: tuple[str, ...] = ()) -> Recipe:
    return parse_recipe({"stages": deepcopy(list(stages))}, overrides, name="r.yaml")


def after_style(**said: Any) -> Stage:
    """The second stage, which continues STYLE."""
    return recipe(STYLE, {"name": "align", "continue": "style", **said}).stages[1]


def refused(*stages: dict[str, Any], overrides: tuple[str, ...] = ()) -> str:
    with pytest.raises(UserError) as caught:
        recipe(*stages, overrides=overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def plain(name: str, **more: Any) -> dict[str, Any]:
    """A stage that trains on something."""
    return {"name": name, "data": {"train": "x"}, **more}


# --- what is taken over -------------------------------------------------------------------------------------------------------------------


def test_a_stage_that_says_nothing_is_its_parent():
    first, second = recipe(STYLE, {"name": "align", "continue": "style"}).stages
    assert second == first.model_copy(update={"name": "align", "continues": "style"})


@pytest.mark.parametrize(
    ("section", "said", "changed"),
    [
        ("data", {"window": 128}, {"window": 128}),
        ("data", {"cleaning": {"blanks": False}}, {"cleaning.blanks": False}),
        ("data", {"general_ratio": 0}, {"general_ratio": 0}),
        ("data", {"validation": 0.1}, {"validation": 0.1}),
        ("objective", {"mask_ratio": 0.1}, {"mask_ratio": 0.1}),
        ("objective", {"kl": {"beta": 0.5}}, {"kl.beta": 0.5}),
        ("objective", {"kl": None}, {"kl": None}),
        ("train", {"learning_rate": 1e-4}, {"learning_rate": 1e-4}),
        ("train", {"save_strategy": False}, {"save_strategy": "no"}),
        ("sampling", {"temperature": 1}, {"temperature": 1}),
        ("prompts", ["她说"], {"": ["她说"]}),
        ("prompts", [], {"": []}),
    ],
)  # fmt: skip
def test_what_a_stage_says_replaces_that_key_and_no_other(section, said, changed):
    before, after = (stage.model_dump(mode="json") for stage in (recipe(STYLE).stages[0], after_style(**{section: said})))
    for place, value in changed.items():
        *path, last = [section, *filter(None, place.split("."))]
        there = before
        for part in path:
            there = there[part]
        there[last] = value
    after["objective"].setdefault("kl", None)  # left out where there is none
    assert after == before | {"name": "align", "continue": "style"}


def test_it_takes_over_what_its_parent_took_over():
    stages = recipe(STYLE, {"name": "b", "continue": "style", "data": {"window": 64}}, {"name": "c", "continue": "b", "prompts": []}).stages
    assert stages[2].data == stages[1].data and stages[2].data.window == 64 and stages[2].data.general == "g"
    assert stages[2].adapter == stages[0].adapter and stages[2].prompts == []


def test_two_may_continue_one():
    stages = recipe(STYLE, {"name": "b", "continue": "style", "data": {"window": 64}}, {"name": "c", "continue": "style"}).stages
    assert stages[2].data == stages[0].data != stages[1].data


def test_on_takes_over_nothing():
    first, second = recipe(STYLE, plain("top", on=["style"])).stages
    assert second == Stage(name="top", on=("style",), data={"train": "x"})
    assert refused(STYLE, {"name": "top", "on": ["style"]}) == "r.yaml: stages[1].data: got nothing, expected a value; add this key"


# --- train: steps and epochs, older names -------------------------------------------------------------------------------------------------


def test_epochs_of_a_stage_win_over_its_parents_steps():
    train = after_style(train={"num_train_epochs": 2}).train
    assert (train.num_train_epochs, train.max_steps, train.warmup_steps) == (2, -1, 7)
    assert after_style(train={"max_steps": 5}).train.max_steps == 5
    assert after_style(train={"num_train_epochs": 2, "max_steps": 5}).train.max_steps == 5
    assert after_style(train={"learning_rate": 1e-4}).train.max_steps == 40


@pytest.mark.parametrize(
    ("theirs", "ours", "expected"),
    [
        ({"warmup_steps": 10}, {"warmup_ratio": 0.1}, {"warmup_steps": 0.1}),
        ({"warmup_ratio": 0.1}, {"warmup_steps": 10}, {"warmup_steps": 10}),
        ({"warmup_ratio": 0.1}, {"learning_rate": 1e-5}, {"warmup_steps": 0.1, "learning_rate": 1e-5}),
        ({"evaluation_strategy": "epoch"}, {"eval_strategy": "no"}, {"eval_strategy": "no"}),
        ({"eval_strategy": "epoch"}, {"evaluation_strategy": "steps"}, {"eval_strategy": "steps"}),
        ({"precision": "fp32"}, {"bf16": True}, {"precision": "bf16"}),
        ({"bf16": True}, {"precision": "fp16"}, {"precision": "fp16"}),
        ({"bf16": True}, {"bf16": False}, {"precision": "fp32"}),
        ({"metric_for_best_model": "style"}, {"load_best_model_at_end": False}, {"metric_for_best_model": None}),
        ({"load_best_model_at_end": True}, {"metric_for_best_model": "eval_style"}, {"metric_for_best_model": "style"}),
        ({"report_to": "none"}, {}, {"report_to": []}),
    ],
)
def test_one_setting_under_two_names_is_one_setting(theirs, ours, expected):
    stages = recipe(plain("a", train=theirs), {"name": "b", "continue": "a", "train": ours}).stages
    assert stages[1].train == Train(**expected)


def test_two_names_in_one_stage_are_still_refused():
    both = {"warmup_ratio": 0.1, "warmup_steps": 5}
    assert "stages[1].train: got {" in refused(STYLE, {"name": "b", "continue": "style", "train": both})
    assert "stages[0].train: got {" in refused(plain("a", train=both), {"name": "b", "continue": "a", "train": {"seed": 1}})


# --- another kind -------------------------------------------------------------------------------------------------------------------------


KL = Kl(beta=0.2, on="general")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"kind": "span"}, Objective(kind="span", mask_ratio=0.3, kl=KL)),
        ({"kind": "span", "span_ratio": 0.1}, Objective(kind="span", mask_ratio=0.3, span_ratio=0.1, kl=KL)),
        ({"kind": "clm"}, Objective(kind="clm", kl=KL)),
        ({"kind": None}, Objective(kl=KL)),
        ({"kind": "fim", "fim_rate": 1}, Objective(kind="fim", fim_rate=1, kl=KL)),
        ({"kind": "fim", "kl": {"beta": 0.1}}, Objective(kind="fim", kl=Kl(beta=0.1, on="general"))),
        ({"kind": "clm", "kl": None}, Objective(kind="clm")),
    ],
)
def test_another_kind_of_objective_leaves_out_what_it_does_not_read(said, expected):
    """KL stands beside any of them, so it stays."""
    assert after_style(objective=said).objective == expected


def test_the_default_kind_is_a_kind_too():
    parent = plain("a", objective={"kl": {"beta": 0.3}})
    for said in ({"kind": "clm"}, {"kind": "fim"}, {"kl": {"on": "all"}}):
        assert recipe(parent, {"name": "b", "continue": "a", "objective": said}).stages[1].objective.kl.beta == 0.3


def test_another_format_of_data_leaves_out_what_it_does_not_read():
    text = after_style(data={"format": "text", "train": "rows.jsonl"})
    assert text.data == recipe(STYLE).stages[0].data.model_copy(update={"format": "text", "train": "rows.jsonl"})
    chat = after_style(data={"format": "chat", "train": "rows.jsonl", "validation": 0.1}, objective={"kl": {"on": "edges"}})
    assert (chat.data.format, chat.data.validation, chat.data.general) == ("chat", 0.1, None)
    assert chat.objective == Objective(kl=Kl(beta=0.2, on="edges")), "what span reads means nothing to conversations"
    parent = plain("a", data={"format": "chat", "train": "x"}, objective={"kind": "answers"})
    back = {"name": "b", "continue": "a", "data": {"format": "novels"}, "objective": {"kind": "span", "mask_ratio": 0.5}}
    assert recipe(parent, back).stages[1].objective == Objective(kind="span", mask_ratio=0.5)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"objective": {"kind": "spam"}}, "stages[1].objective.kind: got 'spam'"),
        ({"objective": {"kind": ["span"]}}, "stages[1].objective.kind: got ['span']"),
        ({"objective": {"kind": "clm", "mask_ratio": 0.1}}, "mask_ratio: objective `clm` does not read this"),
        ({"data": {"format": "chat", "window": 64}}, "data.window: got a value, expected only settings that format `chat` reads"),
        ({"data": {"windw": 64}}, "stages[1].data.windw: got an unknown key"),
        ({"data": "novels"}, "stages[1].data: got 'novels'"),
        ({"train": [1]}, "stages[1].train: got [1]"),
        ({"prompts": "剑"}, "stages[1].prompts: got '剑'"),
    ],
)
def test_mistakes_are_told_of_the_stage_that_makes_them(said, message):
    assert message in refused(STYLE, {"name": "b", "continue": "style", **said})


# --- overrides ----------------------------------------------------------------------------------------------------------------------------


ALIGN = {"name": "对齐", "continue": "style", "train": {"num_train_epochs": 1}}


@pytest.mark.parametrize("stage", ["对齐", "stages.1"])
def test_an_override_reaches_a_stage_by_name_and_by_number(stage):
    overrides = (f"{stage}.objective.kl.beta=0.9", f"{stage}.train.learning_rate=1e-5", f"{stage}.data.window=64")
    first, second = recipe(STYLE, ALIGN, overrides=overrides).stages
    assert first == recipe(STYLE).stages[0]
    assert (second.objective.kl.beta, second.objective.kl.on, second.train.learning_rate, second.data.window) == (0.9, "general", 1e-5, 64)
    assert second.train.num_train_epochs == 1


def test_without_a_stage_the_first_is_meant_and_the_rest_takes_it_over():
    first, second = recipe(STYLE, ALIGN, overrides=("train.learning_rate=1e-5", "style.data.window=64")).stages
    assert (first.train.learning_rate, first.data.window) == (second.train.learning_rate, second.data.window) == (1e-5, 64)


def test_the_unnamed_stage_is_called_style():
    unnamed = {key: value for key, value in STYLE.items() if key != "name"}
    first, second = recipe(unnamed, ALIGN, overrides=("style.adapter.r=2",)).stages
    assert first.adapter.r == second.adapter.r == 2 and second.continues == "style"


def test_how_stages_hang_together_can_be_overridden():
    assert recipe(STYLE, plain("b"), overrides=("b.continue=style",)).stages[1].data.train == "x"
    assert recipe(STYLE, plain("b"), overrides=("b.on=[style]",)).stages[1].on == ("style",)
    assert recipe(STYLE, {**ALIGN, "data": {"train": "x"}}, overrides=("对齐.continue=",)).stages[1].continues is None
    assert recipe(STYLE, plain("b", on=["style"]), overrides=("b.on=",)).stages[1].on == ()
    assert recipe(STYLE, ALIGN, overrides=("stages.1.name=b",)).stages[1].name == "b"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("aling.train.seed=1", "stages[0].aling: got an unknown key"),
        ("对齐.trian.seed=1", "stages[1].trian: got an unknown key, expected a key of this section; did you mean 'train'?"),
        ("对齐.adapter.r=2", "stages[1].adapter: got r, expected nothing: it goes on with the adapter of 'style'"),
        ("stages.2.train.seed=1", "stages.2.train.seed: got '2', expected a section of the recipe"),
        ("name=other", "stages[1].continue: got 'style', expected the name of an earlier stage"),
        ("对齐=1", "stages[1]: got 1, expected"),
    ],
)
def test_overrides_that_cannot_be(override, message):
    assert message in refused(STYLE, ALIGN, overrides=(override,))


def test_a_stage_may_be_named_like_a_section_and_is_then_reached_by_number():
    stages = recipe(plain("train"), plain("data"), overrides=("train.seed=3", "stages.1.train.seed=4")).stages
    assert [stage.train.seed for stage in stages] == [3, 4]


# --- how stages may hang together ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([STYLE, {"name": "b", "continue": "stile"}],
         "r.yaml: stages[1].continue: got 'stile', expected the name of an earlier stage; did you mean 'style'?"),
        ([STYLE, plain("b", on=["style", "x"])], "r.yaml: stages[1].on: got 'x', expected the name of an earlier stage; one of: b, style"),
        ([STYLE, {"name": "b", "continue": 5}], "stages[1].continue: got 5, expected the name of an earlier stage"),
        ([STYLE, {"name": "b", "continue": True}], "stages[1].continue: got True, expected the name of an earlier stage"),
        ([STYLE, {"name": "b", "continue": ["style"]}], "stages[1].continue: got ['style'], expected the name of one stage; use `on`"),
        ([STYLE, {"name": "b", "continue": {"style": 1}}], "stages[1].continue: got {'style': 1}, expected the name"),
        ([STYLE, plain("b", on={"style": 1})], "stages[1].on: got {'style': 1}, expected the name"),
        ([STYLE, plain("b", on=[["style"]])], "stages[1].on: got ['style'], expected the name"),
        ([plain("a", **{"continue": "a"})], "stages[0].continue: got a circle, a -> a, expected a stage that is trained before"),
        ([plain("a", on=["a"])], "stages[0].on: got a circle, a -> a"),
        ([plain("a", **{"continue": "b"}), plain("b", on=["a"])], "stages[0].continue: got a circle, a -> b -> a"),
        ([plain("a", on=["c"]), plain("b", on=["a"]), plain("c", **{"continue": "b"})], "stages[0].on: got a circle, a -> c -> b -> a"),
        ([STYLE, plain("a", on=["style", "c"]), plain("c", on=["a"])], "stages[1].on: got a circle, a -> c -> a"),
        ([plain("b", **{"continue": "style"}), STYLE],
         "stages[0].continue: got 'style', which comes later, expected an earlier stage; move 'style' up"),
        ([plain("b", on=["style"]), STYLE], "stages[0].on: got 'style', which comes later"),
        ([STYLE, plain("style")], "r.yaml: stages[1].name: got 'style' again, expected a name of its own, for its folder has it"),
        ([STYLE, plain("b"), plain("Style")], "stages[2].name: got 'Style' again"),
        ([{"data": {"train": "x"}}, {"data": {"train": "y"}}], "stages[1].name: got 'style' again"),
        ([STYLE, {"name": "b", "continue": "style", "adapter": {"r": 4, "alpha": 8}}],
         "stages[1].adapter: got r, alpha, expected nothing: it goes on with the adapter of 'style'; remove it, or use `on` for a new one"),
        ([STYLE, {"name": "b", "continue": "style", "adapter": {"path": "x"}}], "stages[1].adapter: got path, expected nothing"),
        ([STYLE, {"name": "b", "continue": "style", "adapter": "x"}], "stages[1].adapter: got 'x', expected nothing"),
        ([STYLE, plain("b", on=["style"], **{"continue": "style"})], "stages[1].on: got `continue` beside it, expected one of them"),
        ([STYLE, {"name": "b", "continue": "style", "adapter": None}], "r.yaml: stages[1].adapter: got None, expected an adapter: it is"),
        ([plain("a", adapter=None, objective={"kl": {"beta": 0.1}})],
         "stages[0].adapter: got None, expected an adapter: it is what learns, and what KL switches off to see the base"),
        ([plain("a", adapter={"path": "x", "r": 4})], "stages[0].adapter: got {path, r}, expected r: comes from the adapter in `path`"),
        ([{"name": "a", "objective": {}}, {"name": "b", "continue": "a", "objective": {}}], "data: got nothing, expected a value"),
        ([STYLE, "b"], "stages[1]: got 'b'"),
        ([STYLE, None], "stages[1]: got None"),
    ],
)  # fmt: skip
def test_stages_that_cannot_be(stages, message):
    with pytest.raises(UserError) as caught:
        parse_recipe({"stages": stages}, [], name="r.yaml")
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("layout", ["flat", "final"])
def test_only_the_layout_with_folders_has_room_for_several(layout):
    values = {"layout": layout, "stages": [STYLE, {"name": "align", "continue": "style"}]}
    with pytest.raises(UserError, match=f"layout: got {layout} for 2 stages, expected stages, which gives each its folder"):
        parse_recipe(values, [], name="r")
    assert parse_recipe({"layout": layout, "stages": [STYLE]}, [], name="r").layout == layout


TURNED = {"name": "b", "data": {"format": "branches", "train": "rows.jsonl"}, "branches": {"rope_2d_ratio": 0.5}}
ROWS = {"format": "branches", "train": "other.jsonl"}


@pytest.mark.parametrize("above, refused", [
    ({"continue": "b", "data": {"format": "text", "train": "novels"}}, "the base's own positions, with 'b' at rope_2d_ratio 0.5, "),
    ({"on": ["b"], "data": {"train": "novels"}}, "the base's own positions, with 'b' at"),
    ({"on": ["b"], "data": ROWS, "branches": {"branch_stride": 64}}, "branch_stride 64, positions replace, with 'b' at"),
    ({"on": ["b"], "data": ROWS}, None),
    ({"continue": "b", "branches": {"visibility": "columnar"}}, None),
])  # fmt: skip
def test_stages_stand_at_the_positions_of_those_they_begin_with(above, refused):
    """A mistake that would else be told when the stage below has been trained."""
    if refused is None:
        recipe(TURNED, {"name": "c", **above})
    else:
        with pytest.raises(UserError, match=f"stage 'c': branches: got .*{refused}"):
            recipe(TURNED, {"name": "c", **above})
    recipe({**TURNED, "branches": {"rope_2d_ratio": 0}}, {"name": "c", **above})


def test_on_needs_no_quotes(tmp_path):
    """YAML 1.1 reads a bare `on` as true."""
    path = tmp_path / "r.yaml"
    for written, expected in (("on: [a]", ("a",)), ("on: a", ("a",)), ("'on': [a, b]", ("a", "b")), ("on:", ()), ("on: []", ())):
        text = f"stages:\n  - {{name: a, data: {{train: x}}}}\n  - {{name: b, data: {{train: x}}}}\n  - name: c\n    {written}\n"
        path.write_text(text + "    data: {train: x}\n", encoding="utf-8")
        assert load_recipe(path).stages[2].on == expected, written
    assert True in yaml.safe_load("on: [a]")
    assert load_recipe(path, ["c.on=b"]).stages[2].on == ("b",)


def test_several_stages_written_out_are_the_same_recipe():
    """As anyone may keep them: `continue` and `on` stand there under their names, and everything is said; but an adapter beside
    `continue` can only be its parent's."""
    read = recipe(STYLE, plain("top", on=["style"]), plain("other"))
    written = read.model_dump(mode="json")
    assert [list(stage)[:3] for stage in written["stages"]] == [["name", "continue", "on"]] * 3
    assert parse_recipe(yaml.safe_load(yaml.safe_dump(written)), [], name="r") == read


def test_nothing_is_changed_in_place():
    values = {"stages": [dict(STYLE), dict(ALIGN), plain("c", on=["style"])]}
    before = yaml.safe_dump(values)
    written = inherit(values, "r")
    assert yaml.safe_dump(values) == before and written["stages"][0] == STYLE


def test_a_saved_adapter_may_be_continued_too():
    stages = recipe(plain("a", adapter={"path": "old/adapter", "frozen": ["below"]}), {"name": "b", "continue": "a"}).stages
    assert stages[1].adapter == stages[0].adapter == Adapter(path="old/adapter", frozen=("below",))


# --- any number of stages -----------------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.sampled_from(["continue", "on", None]), st.integers(0, 6), st.integers(1, 3)), min_size=1, max_size=7))
def test_any_tree_of_stages_resolves_to_its_nearest_word(tree):
    """Each stage continues, builds on or ignores any other; each third says a window and each third a rate."""
    stages = []
    for number, (how, parent, says) in enumerate(tree):
        stage: dict[str, Any] = {"name": f"s{number}"} if how == "continue" else plain(f"s{number}")
        if how is not None:
            stage[how] = f"s{parent}"
        if says == 1:
            stage.setdefault("data", {})["window"] = 64 + number
        if says == 2:
            stage["train"] = {"learning_rate": 1 / (number + 10)}
        stages.append(stage)
    if any(how is not None and parent >= number for number, (how, parent, _) in enumerate(tree)):
        with pytest.raises(UserError, match="a circle|comes later|an earlier stage"):
            recipe(*stages)
        return
    for number, stage in enumerate(recipe(*stages).stages):
        line = [number]
        while tree[line[-1]][0] == "continue":
            line.append(tree[line[-1]][1])
        window = next((64 + each for each in line if tree[each][2] == 1), 1024)
        rate = next((1 / (each + 10) for each in line if tree[each][2] == 2), Train().learning_rate)
        assert (stage.data.window, stage.train.learning_rate) == (window, rate)


@pytest.mark.parametrize("path", sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_go_on_more_slowly(path):
    stages = {stage.name: stage for stage in load_recipe(path).stages}
    for stage in stages.values():
        if stage.continues is not None:
            assert stage.train.learning_rate < stages[stage.continues].train.learning_rate


def test_an_adapter_does_not_count_twice():
    """`align` holds all that `style` learned: with both in a stack it would be there twice. Side by side, or one on the other, is fine."""
    align = {"name": "align", "continue": "style"}
    said = "stages[2].on: got 'align' and 'style', which it goes on with, expected one of them, or it counts twice; leave 'style' out"
    assert said in refused(STYLE, align, plain("top", on=["style", "align"]))
    upper = plain("upper", on=["style"])
    assert "'align' and 'style'" in refused(STYLE, align, upper, plain("top", on=["upper", "align"]))
    assert recipe(STYLE, align, upper, plain("top", on=["upper"])).stages[3].on == ("upper",)
    assert recipe(STYLE, align, plain("top", on=["align"])).stages[2].on == ("align",)


# --- a task, and what its kind of answers reads -------------------------------------------------------------------------------------------


LABELS = {
    "name": "labels", "data": {"format": "chat", "train": "l.jsonl", "answers": "label"}, "prompts": ["公交车"],
    "task": {"labels": ["a", "b"], "unknown": 0.5, "rows": 50, "metric": "my.own:figures"},
}  # fmt: skip
NOVELS = {"format": "novels", "train": "novels"}


def after_labels(**said: Any) -> Stage:
    return recipe(LABELS, {"name": "b", "continue": "labels", **said}).stages[1]


def test_the_same_kind_of_answers_takes_the_whole_task_over():
    whole = recipe(LABELS).stages[0]
    for said in ({}, {"data": {"train": "other.jsonl"}}, {"data": {"format": "chat", "answers": "label", "train": "x"}}):
        assert (after_labels(**said).task, after_labels(**said).prompts) == (whole.task, ["公交车"])
    assert after_labels(task={"unknown": 0.1}).task == whole.task.model_copy(update={"unknown": 0.1})
    assert after_labels(task=None).task is None


def test_other_answers_leave_out_what_only_these_have_a_use_for():
    kept = {"rows": 50, "metric": "my.own:figures"}
    for answers in ("json", "text"):
        other = after_labels(data={"answers": answers})
        assert (other.task, other.prompts) == (Task(**kept), ["公交车"])
    said = {"json_schema": "s.json", "rows": 9}
    assert after_labels(data={"answers": "json"}, task=said).task == Task(**kept | said)
    mapped = {"name": "map", "data": {"format": "chat", "train": "m", "answers": "json"}, "task": {"json_schema": "s.json", "rows": 7}}
    back = {"name": "b", "continue": "map", "data": {"answers": "label"}}
    assert recipe(mapped, back).stages[1].task == Task(rows=7)
    assert recipe(mapped, back, {"name": "c", "continue": "b"}).stages[2].task == Task(rows=7), "nor does it come back further on"
    assert "labels: got a value, while data.answers is json" in refused(LABELS, {
        "name": "b", "continue": "labels", "data": {"answers": "json"}, "task": {"labels": ["a", "b"]},
    }), "what the stage says itself is its own mistake"  # fmt: skip


def test_text_has_no_task_and_a_task_no_lines_of_novels():
    text = after_labels(data=NOVELS)
    assert text.task is None and text.prompts == recipe(plain("a")).stages[0].prompts
    assert after_labels(data=NOVELS, prompts=["他说"]).prompts == ["他说"]
    chat = {"format": "chat", "train": "rows.jsonl", "validation": 0.1}
    assert after_style(data=chat, objective={"kl": {"on": "edges"}}).prompts == []
    assert after_style(data=chat, objective={"kl": {"on": "edges"}}, prompts=["问"], task={"rows": 3}).prompts == ["问"]
    assert after_style(data={"format": "text", "train": "rows.jsonl"}).prompts == STYLE["prompts"], "rows of text go on like novels"


def test_branches_go_on_with_branches_and_are_left_out_by_other_data():
    """How they are laid out is the adapter's; text and conversations have no layout."""
    rows = plain("a", data={"format": "branches", "train": "x"})
    rows["branches"] = {"visibility": "columnar", "rope_2d_ratio": 0, "branch_stride": 64}
    rows["objective"] = {"kind": "branches", "kl": {"beta": 0.1}}
    again = {"name": "b", "continue": "a", "branches": {"rope_2d_ratio": 0.25}}
    chat = {"name": "c", "continue": "a", "data": {"format": "chat", "train": "y"}}
    values = inherit({"stages": [rows, again, chat]}, "r")
    first, second, third = Recipe.model_validate(values).stages
    assert first.branches == Branches(visibility="columnar", rope_2d_ratio=0, branch_stride=64)
    assert second.branches == Branches(visibility="columnar", branch_stride=64, rope_2d_ratio=0.25)
    assert third.branches is None and third.objective.kind is None and third.objective.kl == Kl(beta=0.1)
