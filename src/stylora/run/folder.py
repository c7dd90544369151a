"""The folder of a run: `runs/<run>/<stage>/`, what lies in it, and whether it may be written, gone on with or left alone.

    recipe.yaml        the resolved recipe of this stage: run it again with `stylora train`
    environment.json   versions, device, proofs
    metrics.jsonl      one JSON object a line; events.* for TensorBoard beside it
    held_out.jsonl     every held-out sample's loss at every evaluation
    samples.jsonl      the fixed prompts, continued at every evaluation
    rejects.jsonl      rows of conversations that could not be used, where there are any
    checkpoints/       checkpoint-N: adapter, optimizer, scheduler, generators, manifest
    evaluation.json    what `stylora evaluate` measured, of the adapter that is there; three_way.json with --three-way
    adapter/           the adapter in plain PEFT format, the tokenizer beside it; adapter_info.json where it lies on others
    stack.json         base and adapters with their hashes: what generate opens; written last, so it marks a finished stage
    .lock              held while a process trains here

Runs from older recipes and flags put checkpoints and adapter where those expect them (`layout`).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path, PurePath
from typing import Any

import yaml
from filelock import FileLock, Timeout
from pydantic import ValidationError

from stylora import __version__
from stylora.corpus.read import find_files
from stylora.corpus.rows import HUB
from stylora.errors import UserError
from stylora.model.stack_names import check_names, weights_of
from stylora.model.tokenizer_file import hash_file
from stylora.recipe.recipe import Recipe, Stage
from stylora.samples.settings import Data, as_list
from stylora.train.checkpoint import NAME

LOCK, EVALUATION, THREE_WAY, ADAPTER_INFO = ".lock", "evaluation.json", "three_way.json", "adapter_info.json"
BESIDE = "_final"  # behind the name of a run whose adapter lies beside it


@dataclass(frozen=True, kw_only=True)
class StageFolder:
    """Paths of one stage. layout: as in the recipe"""

    path: Path
    layout: str = "stages"

    @property
    def adapter(self) -> Path:
        """The finished adapter."""
        beside = self.path.with_name(self.path.name + BESIDE)
        return {"stages": self.path / "adapter", "flat": self.path, "final": self.path / "final", "beside": beside}[self.layout]

    @property
    def checkpoints(self) -> Path:
        """checkpoint-N folders."""
        return self.path / "checkpoints" if self.layout == "stages" else self.path

    @property
    def stack(self) -> Path:
        """stack.json; it exists when the stage is done."""
        return self.path / "stack.json"

    @property
    def recipe(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.yaml"

    def is_empty(self) -> bool:
        """Nothing lies there yet."""
        ours = (LOCK, f"{self.recipe.name}.tmp")  # the latter where a process was killed as it began
        return not self.path.exists() or all(entry.name in ours for entry in self.path.iterdir())


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A stage's folder and what is to be done there.

    state: `new`, `resume` (this recipe's own, unfinished) or `done`; version: of stylora that did it
    """

    stage: StageFolder
    state: str
    version: str = ""


def run_folder(recipe: Recipe, name: str) -> Path:
    """Where a run lies: the recipe's `output_dir`, else `runs/<name>`."""
    return Path(recipe.output_dir) if recipe.output_dir else Path("runs") / name


def stage_folder(folder: Path, recipe: Recipe) -> StageFolder:
    """The stage's place in the run's folder."""
    return StageFolder(path=folder / recipe.stages[0].name if recipe.layout == "stages" else folder, layout=recipe.layout)


def claim_stage(folder: Path, recipe: Recipe, *, force: bool, extend: bool = False) -> Claim:
    """What is to be done in the stage's folder, before anything is computed or written.

    force: replace a run that lies there, another one or an unfinished one; never files that are no run
    extend: the recipe is that of the run there, with more epochs
    Raises UserError for a file in its place, for files that are no run, unless forced for another run and for one whose text or first
    adapter is no longer what it was, and for `extend` without a run.
    """
    stage = stage_folder(folder, recipe)
    file = next((path for path in [stage.path, *stage.path.parents] if path.is_file()), None)
    if file is not None:
        raise UserError(str(file), got="a file", expected="a folder for the run", do="set output_dir to another place")
    if stage.is_empty():
        if extend:
            raise UserError("--extend", got=f"no run in {stage.path}", expected="a finished run", do="train it first, without --extend")
        if stage.layout == "beside" and stage.adapter.exists():
            expected = "no such folder: the finished adapter will lie there"
            raise UserError(str(stage.adapter), got="files of no run that is there", expected=expected, do="set output_dir, or move it")
        return Claim(stage=stage, state="new")
    there = _kept_recipe(stage)
    if there is None:
        raise UserError(
            str(stage.path), got="files that are no run", expected="an empty folder or this recipe's own run", do="set output_dir"
        )  # fmt: skip
    if force:
        return Claim(stage=stage, state="new")
    ours, theirs = comparable(recipe), comparable(there)
    if ours != theirs and not (extend and _is_longer(recipe, there)):
        raise UserError(
            str(stage.path), got=f"another run ({difference(theirs, ours)})", expected="an empty folder or this recipe's own run",
            do="set output_dir, or replace it with --force (--stage or --from choose)",
        )  # fmt: skip
    stack = _done_with(stage, recipe)
    if stack is None:
        return Claim(stage=stage, state="resume")
    changed = _changed(stack.get("made_from", {}), recipe)
    if changed is not None:
        raise UserError(
            str(stage.path), got=f"a finished run, but {changed}", expected="what it was made from, unchanged",
            do="put it back, set output_dir, or train it again with --force (--stage or --from choose)",
        )  # fmt: skip
    return Claim(stage=stage, state="done", version=stack.get("made_from", {}).get("version", ""))


def made_from(recipe: Recipe) -> dict[str, Any]:
    """What a stage was made from beside its recipe: hashes of its text and of the adapters it begins with, and the program's version."""
    adapter = recipe.stages[0].adapter
    return {"text": hash_text(recipe.stages[0].data), "start": adapter.path and adapter_hash(Path(adapter.path)),
            "frozen": [adapter_hash(Path(path)) for path in adapter.frozen], "version": __version__}  # fmt: skip


def hash_text(data: Data) -> str:
    """Hex BLAKE2b-128 of the files of a `data` section, names and bytes. Raises UserError where a file is not there."""
    rows = data.format in ("chat", "branches")  # of novels it names titles among the training text
    validation = list(data.validation) if rows and isinstance(data.validation, tuple) else []
    paths = [path for _, listed, _ in data.styles() for path in listed] + as_list(data.general or ()) + validation
    digest = blake2b(repr([path for path in paths if path.startswith(HUB)]).encode(), digest_size=16)
    for file in find_files(path for path in paths if not path.startswith(HUB)):
        digest.update(file.name.encode("utf-8", "surrogateescape") + b"\0" + hash_file(file).encode())
    return digest.hexdigest()


def _changed(made: dict[str, Any], recipe: Recipe) -> str | None:
    """What is no longer as it was when the stage was trained; None where nothing is, or it is not there to be compared."""
    adapter = recipe.stages[0].adapter
    for path, then in zip([adapter.path, *adapter.frozen], [made.get("start"), *made.get("frozen", [])], strict=False):
        if path is not None and then is not None and adapter_file(Path(path)) is not None and adapter_hash(Path(path)) != then:
            return f"{path}, the adapter it began with, was trained again or changed"
    try:
        text = hash_text(recipe.stages[0].data)
    except UserError:
        return None  # a run is often kept longer than its text, or elsewhere
    return "its text changed" if text != made.get("text", text) else None


def longer(recipe: Recipe, epochs: float) -> Recipe:
    """The recipe with so many more epochs. Raises UserError for one that counts steps."""
    stage = recipe.stages[0]
    if not epochs:
        return recipe
    if stage.train.max_steps > 0:
        raise UserError("--extend", got=f"a recipe with train.max_steps {stage.train.max_steps}", expected="one that goes by epochs")
    trained = stage.train.model_copy(update={"num_train_epochs": stage.train.num_train_epochs + epochs})
    return recipe.model_copy(update={"stages": [stage.model_copy(update={"train": trained})]})


NEUTRAL = ("tokens_per_microbatch", "gradient_checkpointing", "save_total_limit", "report_to")
"""settings of `train` that may change between two parts of a run: they do not change what is learned"""


def comparable(recipe: Recipe) -> dict[str, Any]:
    """A recipe without where it and its first adapters are kept, for a run that was moved is the same run, and without what does not
    change its result: `prompts` and `sampling` only show what was learned. Whether an adapter is the one it was, its hash tells."""
    values = recipe.model_dump(mode="json") | {"output_dir": None}
    train = recipe.stages[0].train
    better = None if train.metric_for_best_model is None else train.more_is_better  # what it comes to, however it was said
    values["stages"][0] |= {"prompts": None, "sampling": None}
    values["stages"][0]["train"] |= dict.fromkeys(NEUTRAL) | {"greater_is_better": better}
    adapter = values["stages"][0]["adapter"]
    names, weights = adapter["names"] or [*map(adapter_name, adapter["frozen"])], adapter["weights"]
    adapter["weights"] = [weights.get(name, 1.0) for name in names]  # of each in its place: what they are called changes nothing
    adapter["frozen"] = [PurePath(path).parts[-2:] for path in adapter["frozen"]]
    adapter["names"] = None
    if "path" in adapter and adapter["path"] is not None:
        adapter["path"] = "/".join(PurePath(adapter["path"]).parts[-2:])
    return values


def difference(there: Any, here: Any, key: str = "") -> str:
    """The first key in which two dumped recipes differ, and its two values."""
    if isinstance(there, dict) and isinstance(here, dict):
        name = next(name for name in [*there, *here] if name not in there or name not in here or there[name] != here[name])
        return difference(there.get(name), here.get(name), f"{key}.{name}" if key else name)
    if isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        number = next(number for number, pair in enumerate(zip(there, here, strict=True)) if pair[0] != pair[1])
        return difference(there[number], here[number], f"{key}[{number}]")
    return f"{key} {there!r} there, {here!r} here"


def _is_longer(recipe: Recipe, there: Recipe) -> bool:
    epochs = there.stages[0].train.num_train_epochs
    shorter = comparable(recipe)
    shorter["stages"][0]["train"]["num_train_epochs"] = epochs
    return shorter == comparable(there) and epochs < recipe.stages[0].train.num_train_epochs


def _done_with(stage: StageFolder, recipe: Recipe) -> dict[str, Any] | None:
    """The stack.json of a recipe that was carried out to its end. One that can't be read, as a power cut may leave it, is none."""
    try:
        stack = json.loads(stage.stack.read_text(encoding="utf-8"))
    except (FileNotFoundError, UnicodeDecodeError, json.JSONDecodeError):
        return None
    whole = (stage.adapter / "adapter_model.safetensors").is_file()
    return stack if whole and stack.get("num_train_epochs") == recipe.stages[0].train.num_train_epochs else None


def parent_stage(adapter: Path) -> StageFolder | None:
    """The stage that an adapter or checkpoint folder lies in; None for one from elsewhere."""
    beside = [adapter.with_name(adapter.name.removesuffix(BESIDE))] if adapter.name.endswith(BESIDE) else []
    for path in (adapter, *beside, *list(adapter.parents)[:2]):
        if (path / "recipe.yaml").is_file() and (path / "environment.json").is_file():
            recipe = _kept_recipe(StageFolder(path=path))
            if path in beside and recipe is not None and recipe.layout != "beside":
                continue
            return StageFolder(path=path, layout=recipe.layout) if recipe else None
    return None


def _kept_recipe(stage: StageFolder) -> Recipe | None:
    """The recipe lying there; None where there is none that can be read."""
    try:
        return Recipe.model_validate(yaml.safe_load(stage.recipe.read_text(encoding="utf-8")))
    except (FileNotFoundError, UnicodeDecodeError, yaml.YAMLError, ValidationError, UserError):
        return None


def check_room(stage: StageFolder, need_bytes: int) -> None:
    """Raises UserError for a disk with less free space than the run will need at most."""
    parent = next(p for p in [stage.path, *stage.path.parents] if p.exists())
    ours = sum(file.stat().st_size for file in stage.path.rglob("*") if file.is_file())  # replaced, or part of what is needed
    free = shutil.disk_usage(parent).free + ours
    if free < need_bytes:
        raise UserError(
            str(stage.path), got=f"{free / 2**20:,.0f} MB free", expected=f"{need_bytes / 2**20:,.0f} MB for adapter and checkpoints",
            do="free some space, set output_dir to another disk, or lower train.save_total_limit",
        )  # fmt: skip


@contextmanager
def locked(stage: StageFolder) -> Iterator[None]:
    """Keep other processes out of the folder. Raises UserError when one is at work there."""
    stage.path.mkdir(parents=True, exist_ok=True)
    lock = FileLock(stage.path / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise UserError(str(stage.path), got="a run that another process is training", expected="one at a time") from None
    try:
        yield
    finally:
        lock.release()


def make_stage(stage: StageFolder, recipe: Recipe) -> None:
    """Leave the resolved recipe in the claimed folder, and nothing else.

    stack.json goes first and recipe.yaml changes last: whatever a kill leaves belongs to the recipe beside it, and is not done.
    """
    stage.stack.unlink(missing_ok=True)
    for entry in sorted(stage.path.iterdir(), key=lambda entry: entry.is_file()):  # checkpoints before the logs they go with
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        elif entry.name != LOCK and entry != stage.recipe:
            entry.unlink()
    if stage.layout == "beside":
        shutil.rmtree(stage.adapter, ignore_errors=True)
    keep_recipe(stage, recipe)


def keep_recipe(stage: StageFolder, recipe: Recipe) -> None:
    """Write recipe.yaml."""
    write_text(stage.recipe, yaml.safe_dump(recipe.model_dump(mode="json"), allow_unicode=True, sort_keys=False))


def publish(stage: StageFolder, write: Callable[[Path], None]) -> None:
    """Put the finished adapter in place. write: puts its files into the folder it is given; they are moved once all are there."""
    part = stage.path / ".adapter.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    write(part)
    stage.adapter.mkdir(exist_ok=True)
    for file in part.iterdir():
        if file.is_file():
            with file.open("rb+") as written:
                os.fsync(written.fileno())
        if file.is_dir():  # a folder of chat templates, which no call replaces
            shutil.rmtree(stage.adapter / file.name, ignore_errors=True)
        os.replace(file, stage.adapter / file.name)
    part.rmdir()


def write_stack(
    stage: StageFolder, recipe: Recipe, *, base_fingerprint: dict[str, Any], steps: int, made: dict[str, Any]
) -> None:
    """Describe base and adapters, bottom to top, how its branches were laid out where it learned from any, how far the last was trained and
    what it was made from (`made_from`); whoever opens the stage checks it against these hashes."""
    for measured in (EVALUATION, THREE_WAY):
        (stage.path / measured).unlink(missing_ok=True)  # it was of an adapter that is no more
    frozen = frozen_entries(stage.path, recipe.stages[0], made)
    top = _entry(stage.path, stage.adapter, "trained", recipe.stages[0].name, 1.0, adapter_hash(stage.adapter))
    base = {"name": recipe.base, "fingerprint": base_fingerprint, "load_in_4bit": recipe.load_in_4bit}
    epochs, branches = recipe.stages[0].train.num_train_epochs, recipe.stages[0].branches
    layout = {} if branches is None else {"branches": branches.model_dump(mode="json")}
    how_far = {"steps": steps, "num_train_epochs": epochs, "made_from": made}
    write_json(stage.stack, {"base": base, "adapters": [*frozen, top], **layout, **how_far})


def write_adapter_info(folder: Path, stage: StageFolder, recipe: Recipe, *, made: dict[str, Any]) -> None:
    """Beside an adapter that lies on others: what it needs below, from bottom to top, by paths from where it will lie.

    Plain PEFT opens such an adapter without a word, and without what it was trained on. folder: where it is being written
    """
    below = frozen_entries(stage.adapter, recipe.stages[0], made)
    if below:
        how = "stylora opens this folder with the adapters below it; plain PEFT needs every one of them loaded and active"
        write_json(folder / ADAPTER_INFO, {
            "base_model": recipe.base, "style_adapter": below[-1]["path"], "instruct_adapter": ".", "below": below, "usage": how,
        })  # fmt: skip


def frozen_entries(start: Path, described: Stage, made: dict[str, Any]) -> list[dict[str, Any]]:
    """The adapters below a stage's own, as stack.json has them. start: the folder that paths begin in"""
    adapter = described.adapter
    names = stack_names(described)[:-1]
    weights = weights_of(names, adapter.weights, where="adapter.weights")
    below = zip(adapter.frozen, names, weights, made["frozen"], strict=True)
    return [_entry(start, Path(path), "frozen", name, weight, hash) for path, name, weight, hash in below]


def _entry(start: Path, folder: Path, role: str, name: str, weight: float, hash: str) -> dict[str, Any]:
    there, here = folder.resolve(), start.resolve()
    path = (there if there.drive != here.drive else Path(os.path.relpath(there, here))).as_posix()  # no way leads from drive to drive
    return {"name": name, "path": path, "role": role, "weight": weight, "hash": hash, "config_hash": config_hash(folder)}


def stack_names(stage: Stage) -> tuple[str, ...]:
    """What the adapters of a stage's stack are called, bottom to top: those below by `adapter.names` or their places, the top as the stage.

    Raises UserError where two have one name, or there are more or fewer names than adapters.
    """
    adapter = stage.adapter
    if adapter.names and len(adapter.names) != len(adapter.frozen):
        raise UserError(
            "adapter.names", got=f"{len(adapter.names)} names", expected=f"{len(adapter.frozen)}, one for each adapter below",
            do="name them bottom to top",
        )  # fmt: skip
    names = (*(adapter.names or map(adapter_name, adapter.frozen)), stage.name)
    check_names(names, where=f"stage {stage.name!r}", do="give those below names of their own in adapter.names, bottom to top")
    return names


def adapter_name(folder: str) -> str:
    """What an adapter is called by where it lies: `runs/wuxia/style/adapter` and `style/checkpoint-20` are `style`."""
    parts = [part for part in PurePath(folder).parts if part not in ("adapter", "final", "checkpoints") and not NAME.fullmatch(part)]
    return parts[-1] if parts else folder


def config_hash(folder: Path) -> str:
    """Hash of what an adapter_config.json says of the adapter itself; where its base lies may change.

    Raises UserError where there is none.
    """
    if not (folder / "adapter_config.json").is_file():
        raise UserError(str(folder), got="no adapter_config.json", expected="a PEFT adapter", do="name a run's adapter/ folder")
    config = read_object(folder / "adapter_config.json")
    told = {key: value for key, value in config.items() if key not in ("base_model_name_or_path", "revision", "inference_mode")}
    return blake2b(json.dumps(told, sort_keys=True).encode(), digest_size=16).hexdigest()


def adapter_hash(folder: Path) -> str:
    """Hash of the adapter's weights, in either of PEFT's formats. Raises UserError where there are none."""
    file = adapter_file(folder)
    if file is None:
        raise UserError(str(folder), got="no adapter_model.safetensors", expected="a PEFT adapter", do="name a run's adapter/ folder")
    return hash_file(file)


def adapter_file(folder: Path) -> Path | None:
    """The adapter's weights; None where there are none."""
    names = ("adapter_model.safetensors", "adapter_model.bin")
    return next((path for path in (folder / name for name in names) if path.is_file()), None)


def read_object(path: Path) -> dict[str, Any]:
    """A stack.json, checkpoint.json or adapter_config.json. Raises UserError for one that a power cut or an editor left broken."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(str(path), got="broken JSON", expected="what training wrote there", do="train it again") from error
    if not isinstance(found, dict):
        raise UserError(str(path), got=f"a JSON {type(found).__name__}", expected="what training wrote there", do="train it again")
    return found


def write_json(path: Path, value: Any) -> None:
    """JSON, atomically."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2))


def write_text(path: Path, text: str) -> None:
    """A text file, whole or not at all."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    os.replace(temporary, path)
