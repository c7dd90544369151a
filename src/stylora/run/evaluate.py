"""`stylora evaluate`: how much style a model has gained, and what it has lost, beside its base. The page that tells the story.

    MODELs -> the data they are measured on -> base by base: the base itself, then each model, checkpoint and weight on it -> figures

A base is loaded once for all models on it, and adapters are put on it in turn. What is the same for all of them, the voice and the index of
the training text, is made once. Everything is seeded: two calls give the same figures.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel
from rich.console import Console

from stylora.errors import UserError
from stylora.evaluate.held_out import HeldOut, precision_context
from stylora.evaluate.judging import Answered
from stylora.evaluate.prompts import PROMPTS
from stylora.evaluate.task import Examined
from stylora.evaluate.voice import Voice
from stylora.generate.decode import Model
from stylora.generate.settings import Sampling
from stylora.model.adapter import adapter_weight, check_linear, read_config, restore_adapter
from stylora.model.base import Base, load_base
from stylora.model.device import Device, choose_device, keep_freed_memory
from stylora.model.forest_model import ForestModel
from stylora.model.proofs import prove_base
from stylora.model.rope_2d import remove
from stylora.model.tokenizer_file import tokenizer_file
from stylora.recipe.recipe import Recipe
from stylora.samples.branch_data import BranchData
from stylora.samples.chat_data import ChatData
from stylora.samples.text import TextData
from stylora.train.checkpoint import steps_there, unsound

from .evaluation_data import EvaluationData, HeldOutText, TrainedOn, choose_recipe, measured_on, same_place, stage_recipe
from .evaluation_options import Checkpoints
from .figures import Asked, alarms, continuation_figures, distance_figures, label, loss_figures, measure_loss
from .folder import EVALUATION, StageFolder, adapter_hash, write_json
from .open import Found, find_model, put_on
from .plan import chat_format, open_tokenizer, shares_prefixes
from .show_evaluation import telling
from .task import TaskAtHand, both_ways, read_task, task_at_hand, write_errors

SAMPLING = Sampling(max_new_tokens=100)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A model in one state: with the weights in `folder`, those of `checkpoint` or what it ended with, and their update times `weight`.

    folder: None for a bare base
    """

    name: str
    folder: Path | None = None
    checkpoint: int | None = None
    weight: float = 1.0

    def as_json(self, base: str) -> dict[str, Any]:
        """The beginning of its entry. base: name of its base"""
        adapter = None if self.folder is None else self.folder.as_posix()
        return {"name": self.name, "base": base, "adapter": adapter, "checkpoint": self.checkpoint, "weight": self.weight}


@dataclass(frozen=True, kw_only=True)
class OnBase:
    """A base, loaded, with what all models on it are measured against: the held-out text in its tokens, and its own loss of that.

    head: how its logits are made, as it was proved; shares: are the beginnings that rows have in common read once?
    task: what it is asked, of conversations with a task; entry: all its own figures
    """

    base: Base
    head: str
    shares: bool
    text: HeldOutText
    loss: dict[str, HeldOut]
    task: TaskAtHand | None
    entry: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Measured:
    """figures: of a model in one state; rows: its answers, where it was asked"""

    figures: dict[str, Any]
    rows: list[Answered] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What all models of a call have in common. voice: None where there is none"""

    data: EvaluationData
    asked: Asked
    voice: Voice | None
    device: Device

    @property
    def generates(self) -> bool:
        """Conversations and branches are measured by their loss, and conversations by their task where they have one."""
        return isinstance(self.data.data, TextData)

    @property
    def columnar(self) -> bool:
        """Do the branches that are measured see each other's earlier columns?"""
        branches = self.data.recipe.stages[0].branches
        return branches is not None and branches.visibility == "columnar"


def evaluate(
    models: Sequence[str], *, data: Path | Recipe | None = None, stage: str | None = None, held_out: Path | None = None,
    prompts: Sequence[str] = PROMPTS, sampling: Sampling = SAMPLING, samples: int = 1, seed: int = 0, weights: Sequence[float] = (1.0,),
    checkpoints: Checkpoints | None = None, console: Console, base: str | None = None, trust_remote_code: bool = False,
    force: bool = False, cache: Path | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Measure the models and their bases; gives what evaluation.json says, and writes it beside the stack.json of every stage.

    models: MODEL arguments; data, stage: the recipe and stage whose data section is measured on, None for that of the first model that is
        a stage; held_out: a file of conversations to measure on instead of those the recipe holds out
    samples: continuations of each prompt; seed: of the voice and the intervals (the draws have sampling's own)
    weights: factors of each adapter's update, 1 as trained; checkpoints: of each stage, measured before what it ended with
    base: replaces that of PEFT folders and runs; force: also what was changed after training, which is then said; cache: of tokens
    Raises UserError for a MODEL, checkpoint, recipe, stage or base that is not there, and for weights an adapter can't have.
    """
    if not prompts:
        raise UserError("--prompts", got="no prompt", expected="at least one to continue")
    found = [find_model(name, base=base, force=force) for name in dict.fromkeys(models)]
    variants = {each.name: plan(each, checkpoints, weights) for each in found}
    if checkpoints is not None and not any(each.stack for each in found):
        raise UserError("--checkpoints", got="no MODEL that is a stage", expected="a run or a stage, which has checkpoints")
    for each in found:
        tokenizer_file(each.base, where=each.where)  # a base that is not there is told before hours are spent on the others
    asked = Asked(prompts=tuple(prompts), sampling=sampling, samples=samples, seed=seed)
    yardstick = EvaluationData(recipe=measured_on(choose_recipe(found, data, stage, base), held_out), cache=cache)
    groups = by_base(found)
    keep_freed_memory()
    with telling(console, 1 + len(groups) + sum(map(len, variants.values()))) as tell:
        tell("text and voice")
        voice = yardstick.voice(tokens=sampling.max_new_tokens, seed=seed) if isinstance(yardstick.data, TextData) else None
        common = Evaluation(data=yardstick, asked=asked, voice=voice, device=choose_device())
        entries: list[dict[str, Any]] = []
        for group in groups:
            named = yardstick.recipe.base if same_place(group[0].base, yardstick.recipe.base) else group[0].base  # `tiny`, not its folder
            tell(f"base {named}")
            on = measure_base(replace(group[0], base=named), common, trust_remote_code)
            entries.append(on.entry)
            for each in group:
                own = list(measure_model(each, variants[each.name], on, common, tell))
                entries += own
                if each.stack is not None and each.as_trained:
                    keep(each.stack.parent / EVALUATION, described(common, [on.entry, *own]), console)
            del on
            gc.collect()  # room for the next base
    return described(common, entries)


def plan(found: Found, checkpoints: Checkpoints | None, weights: Sequence[float]) -> list[Variant]:
    """Every state in which a model is measured; none for a bare base, which is measured anyway.

    Raises UserError for a checkpoint that is not there or damaged, and for an adapter that can't be weighted.
    """
    if found.adapter is None:
        return []
    configs = [read_config(folder) for folder in found.adapters]
    if any(weight != 1 for weight in [*weights, *(layer.weight for layer in found.layers)]):
        check_linear(configs)
    for folder, config in zip(found.adapters, configs, strict=True):
        if not isinstance(config, LoraConfig) or config.bias != "none" or config.modules_to_save or config.trainable_token_indices:
            raise UserError(str(folder), got="an adapter that is more than LoRA", expected="plain LoRA, which leaves the base as it was",
                            do="`stylora generate` opens it")  # fmt: skip
    states: list[tuple[int | None, Path]] = [(None, found.adapter)]
    recipe = stage_recipe(found) if checkpoints is not None else None
    if recipe is not None and checkpoints is not None and found.stack is not None:
        folder = StageFolder(path=found.stack.parent, layout=recipe.layout).checkpoints
        there = sorted(steps_there(folder))
        states = [(step, folder / f"checkpoint-{step}") for step in (there if checkpoints == "all" else checkpoints)] + states
        for step, path in states[:-1]:
            trouble = "no such checkpoint" if step not in there else unsound(path)
            if trouble is not None:
                expected = f"one of {', '.join(map(str, there))}" if there else "a stage that kept its checkpoints"
                raise UserError(str(path), got=trouble, expected=expected)
    return [Variant(name=found.name, checkpoint=step, folder=path, weight=weight) for step, path in states for weight in weights]


def by_base(found: Sequence[Found]) -> list[list[Found]]:
    """The models of each base together, packed or not, in the order in which bases and models were named."""
    groups: list[list[Found]] = []
    for each in found:
        group = next(
            (one for one in groups if same_place(one[0].base, each.base) and one[0].load_in_4bit == each.load_in_4bit), None
        )
        if group is None:
            groups.append([each])
        else:
            group.append(each)
    return groups


def measure_base(found: Found, common: Evaluation, trust_remote_code: bool) -> OnBase:
    """Load a base and measure it, bare. found: a model on it"""
    base = load_base(
        found.base, common.device, trust_remote_code=trust_remote_code, load_in_4bit=found.load_in_4bit, where=found.where
    )
    base = replace(base, name=f"{found.base} in 4 bits" if found.load_in_4bit else found.base)
    proofs, data = prove_base(base.model, words=len(base.tokenizer)), common.data.data
    if isinstance(data, ChatData) and not proofs.packs and data.branches is not None:
        raise UserError(
            data.branches, got="a conversation that is a tree", expected="one text, for this base does not keep branches apart",
            do="set data.turns: last",
        )  # fmt: skip
    if isinstance(data, BranchData) and not proofs.packs:
        expected = "one text, for this base does not keep branches apart"
        raise UserError("data.format", got="branches", expected=expected, do="use another base")
    text = common.data.held_out(found.base)
    shares = proofs.packs and shares_prefixes(common.data.recipe.stages[0])
    forest = ForestModel(base.model, words=len(base.tokenizer), head=proofs.head, columnar=common.columnar)
    with precision_context(common.device.device, common.device.dtype):
        loss = measure_loss(forest, text, share_prefixes=shares)
    task = None
    if isinstance(data, ChatData):
        stage = common.data.recipe.stages[0]
        form = chat_format(found.base, open_tokenizer(found.base), stage.data.chat_template_kwargs)
        task = task_at_hand(stage, common.data.conversations(found.base), form, base, packs=proofs.packs)
    on = OnBase(base=base, head=proofs.head, shares=shares, text=text, loss=loss, task=task)
    trained_on = common.data.trained_on(Found(name="base", base=found.base)) if common.generates else None
    on.entry.update({**Variant(name="base").as_json(base.name), **figures(base.model, on, common, trained_on, loss=loss).figures})
    return on


def measure_model(
    found: Found, variants: Sequence[Variant], on: OnBase, common: Evaluation, tell: Callable[[str], None]
) -> Iterator[dict[str, Any]]:
    """The figures of a model in each of its states; afterwards the base is bare again."""
    if not variants:
        return
    opened = put_on(on.base, found)
    laid_out = common.data.recipe.stages[0].branches
    if laid_out is not None and opened.branches not in (None, laid_out):
        common.data.warnings.append(f"{found.name} was trained on branches that are laid out in another way than those it is measured on")
    common.data.warnings += [f"forced: {line}" for line in opened.forced]
    model, trained_on = opened.model, common.data.trained_on(found) if common.generates else None
    assert isinstance(model, PeftModel)
    there = found.adapter
    measured: dict[tuple[str, float], Measured] = {}  # a stage most often ends with what its last checkpoint holds
    for variant in variants:
        assert variant.folder is not None
        tell(label(variant.name, variant.checkpoint, variant.weight))
        key = adapter_hash(variant.folder), variant.weight
        if key not in measured:
            if variant.folder != there:
                restore_adapter(model, variant.folder)
                there = variant.folder
            with nullcontext() if variant.weight == 1 else adapter_weight(model, variant.weight):
                measured[key] = figures(model, on, common, trained_on, stage=found.stack and found.stack.parent)
        if found.stack is not None and found.as_trained and on.task is not None and variant.checkpoint is None and variant.weight == 1:
            keep_errors(found.stack.parent, on.task, measured[key].rows)
        yield {**variant.as_json(on.base.name), **measured[key].figures}
    model.unload()
    remove(on.base.model)


def keep_errors(stage: Path, task: TaskAtHand, rows: Sequence[Answered]) -> None:
    """The wrong answers of a stage as it was trained, in its folder, where that may be written to."""
    if os.access(stage, os.W_OK):
        write_errors(stage, rows, task.asks.kind)


def figures(
    model: Model, on: OnBase, common: Evaluation, trained_on: TrainedOn | None, *, loss: dict[str, HeldOut] | None = None,
    stage: Path | None = None,
) -> Measured:  # fmt: skip
    """What was measured of a model in the state it is in.

    trained_on: None where nothing is continued; loss: where it is known already; stage: its folder, which says how sure it is of labels
    """
    forest = ForestModel(on.base.model, words=len(on.base.tokenizer), head=on.head, columnar=common.columnar)  # adapters lie inside
    with precision_context(common.device.device, common.device.dtype):
        own = loss or measure_loss(forest, on.text, share_prefixes=on.shares)
        found = {"held_out": loss_figures(own, on.loss), **distance_figures(forest, on.text, share_prefixes=on.shares)}
        if trained_on is None:
            answered = {} if on.task is None else answers(on.task, forest, stage)
            task = None if on.task is None else {way: examined.metrics for way, examined in answered.items()}
            rows = answered["constrained" if "constrained" in answered else "free"].rows if answered else []
            return Measured(figures={**found, "task": task, "generation": None, "samples": []}, rows=rows)
        generation, samples = continuation_figures(
            model, forest, on.base, common.asked, voice=common.voice, trained_on=trained_on.text
        )
    generation["copied_held_out"] = trained_on.held_out
    return Measured(figures={**found, "task": None, "generation": generation, "samples": samples})


def answers(task: TaskAtHand, forest: ForestModel, stage: Path | None) -> dict[str, Examined]:
    """The answers, `free` and `constrained`; none where nothing is held out. stage: its folder, which says how sure it is of labels"""
    told = None if stage is None else read_task(stage)
    return both_ways(task.asks, forest, task.every, 1.0 if told is None else told.temperature) if task.every else {}


def described(common: Evaluation, entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The whole as JSON has it. entries: of all models, or of one and its base"""
    stage, asked, voice = common.data.recipe.stages[0], common.asked, common.voice
    told = None if voice is None else {"accuracy": voice.accuracy, "passages": voice.passages, "apart": voice.apart}
    return {
        "settings": {
            "seed": asked.seed, "samples": asked.samples, "prompts": list(asked.prompts),
            "sampling": asked.sampling.model_dump(mode="json"), "precision": common.device.precision,
            "base": common.data.recipe.base, "stage": stage.name, "data": stage.data.model_dump(mode="json"),
        },
        "warnings": [*common.data.warnings, *cautions(common, entries), *alarms(entries)], "voice": told, "models": list(entries),
    }  # fmt: skip


def cautions(common: Evaluation, entries: Sequence[dict[str, Any]]) -> Iterator[str]:
    """What is not measured here, and what does not compare."""
    if isinstance(common.data.data, ChatData):
        yield "the data are conversations: loss, KL and task are measured; style, continuations and copying are not"
    elif not common.generates:
        yield "the data are branches: loss and KL are measured; style, continuations and copying are not"
    if not any(entry["held_out"] for entry in entries):
        yield "nothing is held out: there is no loss and no KL; set data.validation"
    if len({entry["base"] for entry in entries}) > 1:
        yield "the models stand on several bases: compare figures per character, not per token, and take each KL as one to its own base"


def keep(path: Path, result: dict[str, Any], console: Console) -> None:
    """Write evaluation.json, where the folder may be written to: somebody else's run can be measured too."""
    if os.access(path.parent, os.W_OK):
        write_json(path, result)
    else:
        console.print(f"not kept   {path.parent} can't be written to", markup=False, highlight=False)
