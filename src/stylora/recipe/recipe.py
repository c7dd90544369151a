"""The recipe: one frozen description of a run, composed of the sections that the layers below define and read.

    base: tiny                       # or Qwen/Qwen3-8B, or a folder
    stages:
      - name: style
        data: {...}                  # samples/settings.py, corpus/clean.py
        objective: {...}             # samples/objective.py
        adapter: {...}               # model/settings.py
        train: {...}                 # train/settings.py
      - name: align
        continue: style              # stages.py: what a stage takes over from another
        objective: {kl: {...}}       # samples/anchors.py

Read from YAML, or JSON by the file's suffix, with overrides `a.b=c`; unknown keys are errors. Relative paths are taken from the working
folder, as everywhere else. Recipes in older forms are translated first (older.py).
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from stylora.errors import UserError, did_you_mean
from stylora.evaluate.task_settings import Task
from stylora.generate.settings import Sampling
from stylora.model.settings import Adapter
from stylora.model.stack_names import check_dora
from stylora.samples.branch_settings import Branches, place
from stylora.samples.objective import Objective
from stylora.samples.settings import Data, Style
from stylora.train.settings import Train

from .older import is_older, reaches_older, refuse_step_names, renamed_lines, translate
from .older_flags import COMMAND, read_flags, translate_flags
from .stages import inherit, stage_number

FORMS = re.compile(r"(function-|constrained-|union$|int$|float$|str$|(list|dict|tuple|literal)\[)")
"""What pydantic puts into an error's place for the forms a field may have; no part of the key."""
SUFFIXES = (".yaml", ".yml", ".json")
SAMPLES_PER_STEP = re.compile(r"(stages\.0\.)?train\.samples_per_step=")


class Stage(BaseModel, frozen=True, extra="forbid", serialize_by_alias=True):
    """One training: what is read, what it teaches, which adapter learns, how.

    name: folder of the stage inside the run: one name, no path
    continue: the earlier stage whose adapter is trained on; what is not said here is as it was there
    on: the earlier stages on whose adapters a new one is put, bottom to top; they are frozen
    task: of conversations: how answers are judged; None measures their loss alone
    branches: of branches: how they see each other and where they stand
    prompts: fixed prompts continued at every evaluation and shown with the figures; of conversations, turns of the user that are
        answered, and none where none are given; none of branches
    sampling: how they are continued
    """

    name: str = Field(default="style", pattern=r"^[^\\/:*?\"<>|.][^\\/:*?\"<>|]*$")
    continues: str | None = Field(default=None, alias="continue")
    on: tuple[str, ...] = ()
    data: Data
    objective: Objective = Objective()
    adapter: Adapter = Adapter()
    train: Train = Train()
    task: Task | None = None
    branches: Branches | None = None
    prompts: list[str] = ["剑光一闪"]
    sampling: Sampling = Sampling(max_new_tokens=64)

    @model_validator(mode="before")
    @classmethod
    def prompts_of_text(cls, values: object) -> object:
        """A line of a novel is nothing to ask a task, nor a trunk."""
        rows = isinstance(values, dict) and isinstance(values.get("data"), dict) and values["data"].get("format") in ("chat", "branches")
        return {"prompts": [], **values} if rows else values  # type: ignore[dict-item]

    @field_validator("adapter", mode="before")
    @classmethod
    def some_adapter(cls, value: object) -> object:
        """The base itself never learns."""
        if value is None:
            raise ValueError("an adapter: it is what learns, and what KL switches off to see the base")
        return value

    @model_validator(mode="after")
    def what_can_be_folded(self) -> Stage:
        """Folded adapters are part of the base: there have to be some, and nothing may want the base without them."""
        if self.adapter.fold_frozen and not (self.adapter.frozen or self.on or self.continues):
            raise UserError("adapter.fold_frozen", got="true, with no adapter below", expected="one to fold", do="remove it, or use `on`")
        kl = self.objective.kl
        if self.adapter.fold_frozen and kl is not None and kl.beta and kl.reference == "base":
            raise UserError(
                "adapter.fold_frozen", got="true, with kl.reference: base", expected="the base itself, which is gone once they are folded",
                do="set kl.reference: frozen, or fold nothing",
            )  # fmt: skip
        return self

    @model_validator(mode="after")
    def dora_on_others(self) -> Stage:
        """What is trained has to be what is opened."""
        if self.adapter.frozen or self.on:
            check_dora(self.adapter.dora, folded=self.adapter.fold_frozen, dropout=self.adapter.dropout)
        return self

    @model_validator(mode="after")
    def branches_of_trunks(self) -> Stage:
        """Data of trunks are laid out as `branches` says, by default if nothing is said; other data have none, and no prompts of theirs."""
        if self.data.format == "branches":
            if self.prompts:
                raise UserError("prompts", got="a value, while data.format is branches", expected="none", do="use `stylora branches`")
            object.__setattr__(self, "branches", self.branches or Branches())  # a frozen model is still being made here
        elif self.branches is not None:
            expected = "data.format: branches, whose layout it is"
            raise UserError("branches", got=f"a value, while data.format is {self.data.format}", expected=expected, do="remove it")
        return self

    @model_validator(mode="after")
    def a_task_of_answers(self) -> Stage:
        """Only conversations have answers."""
        if self.task is not None:
            if self.data.format != "chat":
                expected = "data.format: chat, whose answers it judges"
                raise UserError("task", got=f"a value, while data.format is {self.data.format}", expected=expected, do="remove it")
            self.task.check(self.data.answers, "task")
        return self


class Recipe(BaseModel, frozen=True, extra="forbid"):
    """A whole run.

    base: `tiny`, a folder, or a hub id
    trust_remote_code: run Python that comes with the base; only for bases you trust
    attention: `sdpa`, `eager` or `flex_attention`; None takes what transformers chooses
    load_in_4bit: pack the frozen base's linear layers into 4 bits (QLoRA: nf4, double quantisation), a quarter of bf16's memory; needs
        bitsandbytes
    output_dir: where the run lies; None is `runs/<name of the recipe file>`
    layout: `stages` gives each stage a folder of its own; `flat` puts checkpoints and adapter into output_dir itself, as older recipes
        expect them; `final` puts the adapter into its folder `final`, `beside` into a folder beside it, its name with `_final` behind
    stages: carried out in order; `continue` and `on` say how they hang together
    """

    base: str = "tiny"
    trust_remote_code: bool = False
    attention: Literal["sdpa", "eager", "flex_attention"] | None = None
    load_in_4bit: bool = False
    output_dir: str | None = None
    layout: Literal["stages", "flat", "final", "beside"] = "stages"
    stages: list[Stage] = Field(min_length=1)

    @model_validator(mode="after")
    def whole_weights_to_fold_into(self) -> Recipe:
        """What is packed into 4 bits can't take another sum without rounding it all again."""
        if self.load_in_4bit and any(stage.adapter.fold_frozen for stage in self.stages):
            raise UserError("adapter.fold_frozen", got="true, with load_in_4bit", expected="a base in whole weights", do="fold nothing")
        return self

    @model_validator(mode="after")
    def a_folder_each(self) -> Recipe:
        """Only the layout `stages` keeps stages apart."""
        if self.layout != "stages" and len(self.stages) > 1:
            raise UserError("layout", got=f"{self.layout} for {len(self.stages)} stages", expected="stages, which gives each its folder")
        return self

    @model_validator(mode="after")
    def stages_at_the_same_positions(self) -> Recipe:
        """What was learned at coordinates goes with no others; told here, before the stage below is trained."""
        stages = {stage.name: stage for stage in self.stages}
        for stage in self.stages:
            for below in [stages[name] for name in filter(None, [stage.continues, *stage.on])]:
                if below.branches is not None and below.branches.rope_2d_ratio and place(below.branches) != place(stage.branches):
                    raise UserError(
                        f"stage {stage.name!r}: branches", got=f"{place(stage.branches)}, with {below.name!r} at {place(below.branches)}",
                        expected="the positions of the stage it begins with",
                        do=f"say them in `branches`, or set rope_2d_ratio to 0 in {below.name!r}",
                    )  # fmt: skip
        return self


def load_recipe(path: Path, overrides: Sequence[str] = (), *, processes: int = 1) -> Recipe:
    """Read, override, validate. processes: that train together, for the step of an older recipe. Raises UserError naming file and key."""
    return load_recipe_told(path, overrides, processes=processes)[0]


def load_recipe_told(path: Path, overrides: Sequence[str] = (), *, processes: int = 1) -> tuple[Recipe, list[str]]:
    """The recipe, and a sentence for every key that was translated on the way."""
    return _parse(read_yaml(path), overrides, name=str(path), processes=processes)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, or a JSON file. Raises UserError naming file and line."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        there = [p.name for p in path.parent.iterdir() if p.suffix.lower() in SUFFIXES] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, there, n=1)
        do = f"did you mean {near[0]}?" if near else "`stylora init FOLDER` writes one"
        raise UserError(str(path), got="no such file", expected="a recipe in YAML", do=do) from None
    except (UnicodeDecodeError, IsADirectoryError, PermissionError) as error:
        raise UserError(str(path), got=type(error).__name__, expected="a readable recipe in UTF-8 YAML") from error
    values = _parse_json(text, path) if path.suffix.lower() == ".json" else _parse_yaml(text, path)
    if not isinstance(values, dict):
        raise UserError(str(path), got=type(values).__name__, expected="a mapping with `stages`")
    return values


def _parse_yaml(text: str, path: Path) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or "broken YAML"
        raise UserError(where, got=problem, expected="valid YAML", do="check the indentation") from error


def _parse_json(text: str, path: Path) -> Any:
    """As JSON: YAML would read its 5e-5 as text, and refuse its tabs."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        problem = f"broken JSON at column {error.colno} ({error.msg[0].lower()}{error.msg[1:]})"
        raise UserError(f"{path}:{error.lineno}", got=problem, expected="valid JSON", do="check commas and quotes there") from error


def parse_recipe(values: dict[str, Any], overrides: Sequence[str], *, name: str, processes: int = 1) -> Recipe:
    """A recipe from plain values. Overrides `a.b=c` reach into the first stage unless they begin with the name of a stage or a key of the
    recipe itself, or of the older form in a recipe of that form."""
    return _parse(values, overrides, name=name, processes=processes)[0]


def _parse(values: dict[str, Any], overrides: Sequence[str], *, name: str, processes: int) -> tuple[Recipe, list[str]]:
    lines: list[str] = []
    called: dict[str, str] = {}
    if is_older(values, name):
        reaching = [override for override in overrides if reaches_older(override, values)]
        overrides = [override for override in overrides if override not in reaching]
        for override in reaching:
            _override(values, override, older=True)
        older = translate(values, name=name, processes=processes)
        values, lines, called = older.values, older.lines, older.called
        size = called.get("stages[0].train.samples_per_step")
        if size and not size.endswith("samples_per_step") and any(SAMPLES_PER_STEP.match(each) for each in overrides):
            raise UserError("train.samples_per_step", got="both forms at once", expected=f"it or {size}", do=f"override {size} instead")
    return _validated(values, overrides, name, called), lines + ([] if called else renamed_lines(values))


def load_flags_told(words: Sequence[str], *, processes: int = 1) -> tuple[Recipe, list[str], list[str]]:
    """The recipe that older flags say, a sentence for each of them, and the overrides among the words. processes: as in `load_recipe`

    Raises UserError that names the flag.
    """
    flags, overrides = read_flags(words)
    older = translate_flags(flags, processes=processes)
    return _validated(older.values, overrides, COMMAND, older.called), older.lines, overrides


def _validated(values: dict[str, Any], overrides: Sequence[str], name: str, called: dict[str, str]) -> Recipe:
    """The recipe of values in the current form, overridden. called: places -> the older keys that they came from"""
    for override in overrides:
        _override(values, override)
    refuse_step_names(values, name)
    try:
        return Recipe.model_validate(inherit(values, name))
    except ValidationError as error:
        raise _as_user_error(error, name, called) from error


def _override(values: dict[str, Any], override: str, *, older: bool = False) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(override, got="no `=`", expected="key=value, as in train.learning_rate=2e-4")
    path = key.split(".")
    if not older and path[0] not in Recipe.model_fields:
        number = stage_number(values, path[0]) if path[0] not in Stage.model_fields else None
        path = ["stages", "0", *path] if number is None else ["stages", str(number), *path[1:]]
    place: Any = values
    for part in path[:-1]:
        if isinstance(place, list):
            place = place[int(part)] if part.isdigit() and int(part) < len(place) else _missing(key, part)
        else:
            place = place.setdefault(part, {})
        if not isinstance(place, dict | list):
            _missing(key, part)
    last: Any = path[-1]
    if isinstance(place, list):
        last = int(last) if last.isdigit() and int(last) < len(place) else _missing(key, last)
    try:
        place[last] = yaml.safe_load(text) if text else None
    except yaml.YAMLError as error:
        raise UserError(key, got=text, expected="a value in YAML", do="quote it") from error


def _missing(key: str, part: str) -> Any:
    raise UserError(key, got=f"'{part}'", expected="a section of the recipe")


def _as_user_error(error: ValidationError, name: str, called: dict[str, str]) -> UserError:
    """One of pydantic's complaints as one sentence about one key: the first of the deepest, which knows best which form was meant.

    called: places -> the keys of an older recipe that they came from
    """
    first = max(error.errors(), key=lambda one: len(one["loc"]))
    place = [part for part in first["loc"] if not (isinstance(part, str) and FORMS.match(part))]
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).lstrip(".")
    origin = max((one for one in called if key == one or key.startswith((f"{one}.", f"{one}["))), key=len, default="")
    key = called[origin] + key[len(origin) :] if origin else key
    where = f"{name}: {key}" if key else name
    if first["type"] == "extra_forbidden":
        known = _section(place[:-1])
        return UserError(where, got="an unknown key", expected="a key of this section", do=did_you_mean(str(place[-1]), known))
    if first["type"] == "missing":
        return UserError(where, got="nothing", expected="a value", do="add this key")
    got = repr(first["input"]) if not isinstance(first["input"], dict) else f"{{{', '.join(map(str, first['input']))}}}"
    message = first["msg"].removeprefix("Value error, ")
    return UserError(where, got=got, expected=message[0].lower() + message[1:])


def _section(place: Sequence[int | str]) -> list[str]:
    """The keys of the section at `place`."""
    section: Any = Recipe
    for part in place:
        if part == "stages":
            section = Stage
        elif section is Data and part == "train":  # behind it comes the name of a style, as the user likes
            section = Style
        elif isinstance(part, str) and section is not Style:
            section = section.model_fields[part].annotation
            section = next((one for one in get_args(section) if isinstance(one, type) and issubclass(one, BaseModel)), section)
    return [field.alias or name for name, field in section.model_fields.items()]
