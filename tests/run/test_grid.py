"""The points of a sweep: values split as YAML has them, names that every file system takes, recipes validated, equal ones refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from stylora.errors import UserError
from stylora.recipe.recipe import load_recipe
from stylora.run.grid import LONGEST, lineage, plain, point_names, read_grid, split_values

TWO_STAGES = {
    "stages": [
        {"data": {"train": "x"}, "train": {"learning_rate": 1e-3}},
        {"name": "align", "continue": "style", "objective": {"kl": {"beta": 0.1}}, "train": {"learning_rate": 1e-4}},
    ]
}


@pytest.fixture
def recipe(tmp_path, monkeypatch) -> Path:
    """`recipe.yaml` in the working folder: style, then align."""
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(yaml.safe_dump(TWO_STAGES), encoding="utf-8")
    return Path("recipe.yaml")


def refusal(recipe: Path, *arguments: str) -> str:
    with pytest.raises(UserError) as refused:
        read_grid(recipe, arguments)
    assert not [path for path in Path().iterdir() if path != recipe], "nothing is written"
    return str(refused.value)


# ------------------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize(
    "text, values",
    [
        ("1e-4,1e-3", ["1e-4", "1e-3"]), ("[3,5],[2,4]", ["[3,5]", "[2,4]"]), ('"a,b",c', ['"a,b"', "c"]), ("x", ["x"]), ("", [""]),
        ("{beta: 0.1, on: all},null", ["{beta: 0.1, on: all}", "null"]), (" 0 , 0.1 ", ["0", "0.1"]), ("书/a,书/b", ["书/a", "书/b"]),
        (r"D:\novels,it's", [r"D:\novels", "it's"]), ("[[1,2],[3]],[]", ["[[1,2],[3]]", "[]"]),
    ],
)  # fmt: skip
def test_a_comma_inside_brackets_or_quotes_belongs_to_the_value(text, values):
    assert split_values("key", text) == values


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(min_codepoint=32, max_codepoint=0x4FFF), max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", min_size=1), inner, max_size=2),
)


@given(st.lists(JSON, min_size=1, max_size=4))
@settings(deadline=None)
def test_values_written_one_after_another_come_apart_again(values):
    texts = [json.dumps(value) for value in values]
    assert split_values("key", ",".join(texts)) == texts


@pytest.mark.parametrize("text", ["a,,b", ",a", "[1", "1],[2", "a[1].txt", "{a: 1"])
def test_values_that_are_no_yaml_are_refused(text):
    with pytest.raises(UserError, match="^data.train: got .*, expected values in YAML, separated by commas; quote"):
        split_values("data.train", text)


def test_plain_values():
    texts = ("1e-4", "-2E+3", "0.1", "7", "null", "[3,5]", "novels", "1e-3x", "e5", "2021-01e-4")
    assert [plain(text) for text in texts] == [1e-4, -2000.0, 0.1, 7, None, [3, 5], "novels", "1e-3x", "e5", "2021-01e-4"]


# -------------------------------------------------------------------------------------------------------------------- names


def test_names_are_made_of_the_ends_of_the_keys():
    assert point_names([{"train.learning_rate": "1e-4", "align.objective.kl.beta": "0.1"}]) == ["lr=1e-4,beta=0.1"]
    values = {"data.span": "[3,5]", "base": "Qwen/Qwen3-8B", "x.y": "-1", "z": '""'}
    assert point_names([values]) == ["span=3-5,base=Qwen-Qwen3-8B,y=-1,z=none"]


def test_keys_with_equal_ends_are_told_apart():
    both = {"train.learning_rate": "1", "align.train.learning_rate": "2"}
    assert point_names([both]) == ["train-lr=1,align-lr=2"]
    assert point_names([{"a.b.c": "1", "a.d.c": "2", "x.e": "3"}]) == ["a-b-c=1,a-d-c=2,e=3"]


TEXTS = st.text(st.characters(min_codepoint=33, max_codepoint=0x4FFF), max_size=80)


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=2, max_size=6, unique=True))
def test_names_are_short_safe_and_unique_whatever_the_values(pairs):
    names = point_names([{"train.learning_rate": one, "data.window": other} for one, other in pairs])
    assert len({name.casefold() for name in names}) == len(pairs)
    for name in names:
        assert len(name) <= LONGEST and not re.search(r'[\\/:*?"<>|\s\x00-\x1f]', name) and not name.endswith((".", " ")) and "=" in name


def test_a_long_name_keeps_its_beginning():
    short, long = point_names([{"data.train": "novels"}, {"data.train": "a/very/long/" * 9}])
    assert short == "train=novels"
    assert re.fullmatch(r"train=a-very-long-a-[a-z-]+-[0-9a-f]{8}", long) and len(long) == LONGEST


# ------------------------------------------------------------------------------------------------------------------- points


def test_points_are_the_product_in_the_order_given(recipe):
    grid = read_grid(recipe, ["train.learning_rate=1e-4,1e-3", "base=tiny", "align.objective.kl.beta=0,0.1"])
    assert [point.name for point in grid.points] == ["lr=1e-4,beta=0", "lr=1e-4,beta=0.1", "lr=1e-3,beta=0", "lr=1e-3,beta=0.1"]
    assert grid.fixed == ["base=tiny"] and grid.folder == Path("runs/recipe-sweep")
    for point in grid.points:
        overrides = [f"{key}={text}" for key, text in point.values.items()]
        alone = load_recipe(recipe, [*overrides, "base=tiny", f"output_dir=runs/recipe-sweep/{point.name}"])
        assert point.recipe == alone and point.folder == Path("runs/recipe-sweep") / point.name


def test_a_stage_is_addressed_by_name_or_by_number(recipe):
    named, numbered = (
        [point.recipe for point in read_grid(recipe, [f"{stage}.train.learning_rate=1e-4,1e-5"]).points] for stage in ("align", "stages.1")
    )
    assert named == numbered
    assert [[stage.train.learning_rate for stage in each.stages] for each in named] == [[1e-3, 1e-4], [1e-3, 1e-5]]


def test_the_folder_is_the_recipes_own_where_it_has_one(recipe):
    assert read_grid(recipe, ["train.seed=1,2", "output_dir=那里"]).points[0].folder == Path("那里/seed=1")


def test_a_lineage_is_all_that_a_stage_comes_from(recipe):
    """What a later stage does is no part of it; nor is what changes no weight."""
    here = load_recipe(recipe)
    later, memory, earlier, base = (
        load_recipe(recipe, [one])
        for one in ("align.objective.kl.beta=0.2", "train.tokens_per_microbatch=64", "train.seed=1", "base=other")
    )
    assert lineage(here, 0) == lineage(later, 0) and lineage(here, 1) != lineage(later, 1)
    assert [lineage(here, number) == lineage(memory, number) for number in (0, 1)] == [True, True]
    assert [lineage(here, number) == lineage(earlier, number) for number in (0, 1)] == [False, False]
    assert lineage(here, 0) != lineage(base, 0)


def test_a_stage_beside_another_is_no_part_of_its_lineage(recipe):
    stages = [*TWO_STAGES["stages"], {"name": "chat", "on": ["style"], "data": {"train": "y"}}]
    recipe.write_text(yaml.safe_dump({"stages": stages}), encoding="utf-8")
    here, other = load_recipe(recipe), load_recipe(recipe, ["align.train.seed=1"])
    assert [lineage(here, number) == lineage(other, number) for number in range(3)] == [True, False, True]


# ---------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["train.seed"], "train.seed: got no `=`, expected KEY=A,B"),
        (["=1,2"], "=1,2: got no `=`"),
        (["train.seed=1,2", "train.seed=3,4"], "train.seed: got the key twice, expected all its values behind one `=`"),
        (["train.seed=1,2,1"], "train.seed: got 1 twice, expected every value once"),
        (["train.seed=1,2,"], "train.seed: got '1,2,' with an empty value, expected values between commas; `null` is none"),
        (["train.seed=1"], "KEY=A,B: got no key with several values, expected at least one; `stylora train`"),
        (["output_dir=a,b"], "output_dir: got 2 values, expected one folder"),
        (["train.learning_rate=1e-4,0.0001"], "train.learning_rate: got 1e-4 and 0.0001, with which lr=1e-4 and lr=0.0001 learn the same"),
        (["train.tokens_per_microbatch=64,128"], "train.tokens_per_microbatch: got 64 and 128, with which"),
        (["train.seed=1,2", "style.train.seed=1,2"], "train.seed: got 1 and 2, with which train-seed=1,style-seed=1 and train-seed=2"),
        (["train.seed=1,two"], "recipe.yaml: stages[0].train.seed: got 'two', expected"),
        (["align.objective.kl.beta=0,-1"], "recipe.yaml: stages[1].objective.kl.beta: got -1, expected"),
        (["aling.train.seed=1,2"], "recipe.yaml: stages[0].aling: got an unknown key"),
        (["train.sede=1,2"], "recipe.yaml: stages[0].train.sede: got an unknown key, expected a key of this section; did you mean 'seed'?"),
        (["stages.7.train.seed=1,2"], "stages.7.train.seed: got '7', expected a section of the recipe"),
    ],
)  # fmt: skip
def test_what_is_refused_before_anything_happens(recipe, arguments, told):
    assert refusal(recipe, *arguments).startswith(told)


def test_a_recipe_that_is_not_there(recipe):
    with pytest.raises(UserError, match="recipe.yml: got no such file.*did you mean recipe.yaml"):
        read_grid(Path("recipe.yml"), ["train.seed=1,2"])
