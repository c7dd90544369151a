"""Recipes: read, overridden, refused with the file and the key; and every field of every section has somebody who reads it."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

import stylora
from stylora.corpus.clean import Cleaning
from stylora.errors import UserError
from stylora.evaluate.task_settings import Task
from stylora.generate.settings import Sampling
from stylora.model.settings import Adapter
from stylora.recipe.recipe import Recipe, Stage, load_recipe, parse_recipe
from stylora.samples.anchors import Kl
from stylora.samples.branch_settings import Branches
from stylora.samples.objective import Objective
from stylora.samples.settings import Data, Style
from stylora.train.settings import Train

ROOT = Path(__file__).parents[2]
WHOLE = """
base: tiny
attention: eager
stages:
  - name: 风格
    data:
      train: {old: {train: [a.txt, b], weight: 0.5}, new: {train: c}}
      validation: [某书]
      general: g
      general_ratio: 0.1
      window: 512
      cleaning: {adverts: false}
    objective: {kind: fim, fim_rate: 0.9, loss: middle}
    adapter: {r: 8, alpha: 16, dropout: 0.05, targets: [q_proj, v_proj], rslora: true}
    train: {learning_rate: 1.0e-4, max_steps: 7, row_tokens: 2048, warmup_steps: 10, report_to: none}
    prompts: [剑光一闪, 他说]
    sampling: {temperature: 0, stop: "。"}
"""
MEANT = ", expected a key of this section; did you mean "
SHORT = "stages:\n  - data: {train: books}\n"


@pytest.fixture
def recipe(tmp_path):
    """`recipe(text, *overrides)`: what loading a file with that text gives."""

    def load(text: str, *overrides: str) -> Recipe:
        path = tmp_path / "一 recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return load_recipe(path, overrides)

    return load


def refused(recipe, text: str, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        recipe(text, *overrides)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_written_is_read(recipe):
    read = recipe(WHOLE)
    stage = read.stages[0]
    assert (read.base, read.attention, stage.name, stage.prompts) == ("tiny", "eager", "风格", ["剑光一闪", "他说"])
    assert list(stage.data.styles()) == [("old", ["a.txt", "b"], 0.5), ("new", ["c"], 1.0)]
    assert (stage.data.validation, stage.data.cleaning.adverts, stage.data.cleaning.unwrap) == (("某书",), False, True)
    assert (stage.objective.kind, stage.objective.fim_rate, stage.objective.spm_rate, stage.objective.loss) == ("fim", 0.9, 0.5, "middle")
    assert stage.adapter == Adapter(r=8, alpha=16, dropout=0.05, targets=["q_proj", "v_proj"], rslora=True)
    assert stage.train == Train(learning_rate=1e-4, max_steps=7, row_tokens=2048, warmup_steps=10, report_to=[])
    assert (stage.sampling.temperature, stage.sampling.stop) == (0, ["。"])


@pytest.mark.parametrize(
    "text", [WHOLE, SHORT, SHORT + "    objective: {kind: clm}\n", SHORT + "    objective: {kind: span, whole_words: true}\n"]
)
def test_the_resolved_recipe_is_a_recipe_again(recipe, text):
    """As a run keeps it: all values written out."""
    read = recipe(text)
    written = yaml.safe_dump(read.model_dump(mode="json"), allow_unicode=True, sort_keys=False)
    assert recipe(written) == read
    assert recipe(written).model_dump(mode="json") == read.model_dump(mode="json") == yaml.safe_load(written)


def test_a_recipe_is_frozen(recipe):
    with pytest.raises(ValueError, match="frozen"):
        recipe(SHORT).base = "other"


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_recipes_load(path):
    assert load_recipe(path).stages


@pytest.mark.parametrize(
    ("override", "where", "value"),
    [
        ("train.learning_rate=2e-4", "train.learning_rate", 2e-4),
        ("train.learning_rate=5.0e-4", "train.learning_rate", 5e-4),
        ("stages.0.train.max_steps=2", "train.max_steps", 2),
        ("name=other", "name", "other"),
        ("data.train=[一 本.txt, b]", "data.train", ("一 本.txt", "b")),
        ("data.window=128", "data.window", 128),
        ("data.cleaning.adverts=false", "data.cleaning.adverts", False),
        ("data.validation=0.1", "data.validation", 0.1),
        ("objective.kind=clm", "objective.kind", "clm"),
        ("objective={kind: span, span_length: [2, 3]}", "objective.span_length", (2, 3)),
        ("train.row_tokens=", "train.row_tokens", None),
        ("train.report_to=none", "train.report_to", []),
        ("prompts=[]", "prompts", []),
        ("data.train=a=b.txt", "data.train", "a=b.txt"),
    ],
)
def test_overrides(recipe, override, where, value):
    found = recipe(SHORT, override).stages[0]
    for part in where.split("."):
        found = getattr(found, part)
    assert found == value


def test_overrides_of_the_recipe_itself_and_of_list_items(recipe):
    read = recipe(WHOLE, "base=Qwen/Qwen3-8B", "output_dir=runs/x", "prompts.1=她说", "stages.0.prompts.0=甲", "base=last")
    assert (read.base, read.output_dir, read.stages[0].prompts) == ("last", "runs/x", ["甲", "她说"])
    assert read.stages[0].data == recipe(WHOLE).stages[0].data


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.learning_rate", "train.learning_rate: got no `=`, expected key=value, as in train.learning_rate=2e-4"),
        ("=3", "=3: got no `=`"),
        ("train.learning_rat=1", "stages[0].train.learning_rat: got an unknown key" + MEANT + "'learning_rate'?"),
        ("base.x=1", "base.x: got 'base', expected a section of the recipe"),
        ("prompts.7=x", "prompts.7: got '7'"),
        ("prompts.x=x", "prompts.x: got 'x'"),
        ("stages.1.name=x", "stages.1.name: got '1'"),
        ("stages.x=1", "stages.x: got 'x'"),
        ("prompts=[a", "prompts: got [a, expected a value in YAML"),
        ("trian.max_steps=1", "stages[0].trian: got an unknown key" + MEANT + "'train'?"),
    ],
)
def test_overrides_that_cannot_be(recipe, override, message):
    assert message in refused(recipe, WHOLE, override)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SHORT + "bas: tiny\n", "recipe.yaml: bas: got an unknown key" + MEANT + "'base'?"),
        (SHORT + "    objectiv: {}\n", "recipe.yaml: stages[0].objectiv: got an unknown key" + MEANT + "'objective'?"),
        (SHORT + "    train: {lr: 1}\n", "stages[0].train.lr: got an unknown key, expected a key of this section; "),
        ("stages: [{data: {train: a, windw: 8}}]", "stages[0].data.windw: got an unknown key" + MEANT + "'window'?"),
        ("stages: [{data: {train: a, cleaning: {advert: no}}}]", "stages[0].data.cleaning.advert: got an unknown key"),
        (
            "stages: [{data: {train: {strict: {train: x, wieght: 2}}}}]",
            "stages[0].data.train.strict.wieght: got an unknown key" + MEANT + "'weight'?",
        ),
        ("stages: [{data: {train: {a: {weight: 2}}}}]", "stages[0].data.train.a.train: got nothing, expected a value; add this key"),
        (SHORT + "    train: {max_steps: many}\n", "stages[0].train.max_steps: got 'many', expected input should be a valid integer"),
        (SHORT + "    adapter: {r: 0}\n", "stages[0].adapter.r: got 0, expected input should be greater than or equal to 1"),
        (SHORT + "    adapter: {targets: 5}\n", "stages[0].adapter.targets: got 5"),
        (SHORT + "    objective: {mask_ratio: 0}\n", "stages[0].objective.mask_ratio: got 0, expected input should be greater than 0"),
        (
            SHORT + "    objective: {kind: clm, mask_ratio: 0.1}\n",
            "stages[0].objective: got {kind, mask_ratio}, expected mask_ratio: objective `clm` does not read this",
        ),
        (SHORT + "    train: [1]\n", "stages[0].train: got [1], expected"),
        (
            SHORT + "    train: {warmup_ratio: 0.1, warmup_steps: 5}\n",
            "stages[0].train: got {warmup_ratio, warmup_steps}, expected warmup_ratio and warmup_steps both given; keep one",
        ),
        ("stages: [{data: {train: a, validation: 1.5}}]", "stages[0].data.validation: got 1.5, expected input should be less than 1"),
        ("stages: [{data: {train: a, general: b, general_ratio: 1}}]", "data.general_ratio: got 1"),
        ("stages: [{data: {train: a, window: 4}}]", "stages[0].data.window: got 4"),
        ("stages: []", "recipe.yaml: stages: got [], expected"),
        ("base: tiny", "recipe.yaml: stages: got nothing, expected a value; add this key"),
        ("stages: [{name: x}]", "recipe.yaml: stages[0].data: got nothing"),
        ("", "recipe.yaml: got NoneType, expected a mapping with `stages`"),
        ("- a\n", "recipe.yaml: got list, expected a mapping with `stages`"),
        ("base: tiny\nstages:\n  - name: x\n   data: {}\n", "recipe.yaml:4: got "),
        ("base: [tiny\n", "recipe.yaml:2: got "),
        ("base: \ttiny\x00\n", "recipe.yaml: got "),
    ],
)  # fmt: skip
def test_mistakes(recipe, text, message):
    assert message in refused(recipe, text)


def test_older_names_load(recipe):
    train = recipe(SHORT + "    train: {warmup_ratio: 0.1, evaluation_strategy: epoch, bf16: true}\n").stages[0].train
    assert (train.warmup_steps, train.eval_strategy, train.precision) == (0.1, "epoch", "bf16")


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "wuxia.yaml").write_text(SHORT, encoding="utf-8-sig")
    assert load_recipe(tmp_path / "wuxia.yaml").base == "tiny", "a BOM is no mistake"
    cases = {
        "wuxa.yaml": "got no such file, expected a recipe in YAML; did you mean wuxia.yaml?", "nothing/there.yaml": "got no such file",
        ".": "expected a readable recipe",
    }  # fmt: skip
    (tmp_path / "gbk.yaml").write_bytes("base: 武侠\n".encode("gb18030"))
    cases["gbk.yaml"] = "got UnicodeDecodeError, expected a readable recipe in UTF-8 YAML"
    for name, message in cases.items():
        with pytest.raises(UserError) as caught:
            load_recipe(tmp_path / name)
        assert message in str(caught.value) and str(tmp_path / name) in str(caught.value)


# --- every field has a reader -------------------------------------------------------------------------------------------------------------

RECEIVERS: dict[type[BaseModel], set[str]] = {
    Recipe: {"recipe"}, Stage: {"stage", "stages"}, Data: {"data"}, Style: {"style"}, Cleaning: {"cleaning"}, Objective: {"objective"},
    Adapter: {"adapter"}, Train: {"train", "settings"}, Sampling: {"sampling"}, Kl: {"kl"},
    Task: {"task"}, Branches: {"branches"},
}  # fmt: skip
"""section -> the names its objects go by in the source: `objective.kind`, `stage.objective.kind`, `stages[0].name`."""


@cache
def reads() -> frozenset[tuple[str, str]]:
    """(receiver, field) of every attribute read in the source; a section's own methods (not its validators) read as that section."""
    found = set()
    for path in Path(stylora.__file__).parent.rglob("*.py"):
        for node, owner in _walk(ast.parse(path.read_text(encoding="utf-8")), None):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                receiver = node.value.value if isinstance(node.value, ast.Subscript) else node.value
                name = receiver.id if isinstance(receiver, ast.Name) else receiver.attr if isinstance(receiver, ast.Attribute) else ""
                found.add((owner.lower() if name == "self" and owner else name, node.attr))
    return frozenset(found)


def _walk(node: ast.AST, owner: str | None):
    for child in ast.iter_child_nodes(node):
        validates = isinstance(child, ast.FunctionDef) and any("valid" in ast.unparse(d) for d in child.decorator_list)
        if not validates:
            inner = child.name if isinstance(child, ast.ClassDef) else owner
            yield child, inner
            yield from _walk(child, inner)


@pytest.mark.parametrize(("section", "field"), [(section, field) for section in RECEIVERS for field in section.model_fields])
def test_every_field_has_a_reader(section, field):
    if section is Cleaning and not any((name, field) in reads() for name in RECEIVERS[Cleaning]):
        from stylora.corpus import clean

        assert field in clean._LINE_STEPS, "steps on lines are looked up by their name"
        return
    assert any((name, field) in reads() for name in RECEIVERS[section]), f"nobody reads {section.__name__}.{field}"


def test_all_sections_of_a_recipe_are_walked():
    """A section added to the recipe is added above."""

    def sections(model: type[BaseModel]) -> set[type[BaseModel]]:
        found = {model}
        for field in model.model_fields.values():
            todo = [field.annotation]
            while todo:
                annotation = todo.pop()
                if isinstance(annotation, type) and issubclass(annotation, BaseModel):
                    found |= sections(annotation)
                todo += getattr(annotation, "__args__", ())
        return found

    assert sections(Recipe) == set(RECEIVERS)


@pytest.mark.parametrize("name", ["..", ".", "", "/", "a/b", "a\\b", "C:x"])
def test_a_stage_is_named_by_one_folder_name(name):
    """A path would let `--force` replace folders outside the run."""
    with pytest.raises(UserError, match="name"):
        parse_recipe({"stages": [{"name": name, "data": {"train": "x"}}]}, [], name="r")
    assert parse_recipe({"stages": [{"name": "风格 1", "data": {"train": "x"}}]}, [], name="r").stages[0].name == "风格 1"
