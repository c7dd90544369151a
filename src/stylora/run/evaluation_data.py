"""What all models of an evaluation are measured with: one data section's held-out text, its training text, and the voice learned from it.

The text is split as the recipe's own base splits it, whatever base a model stands on. A base with another tokenizer reads the same held-out
text in its own tokens, so that nothing one model learned from is held out for another. Opens no model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from stylora.errors import UserError, did_you_mean
from stylora.evaluate.copying import TrainingText
from stylora.evaluate.voice import LENGTH, Voice, fit_voice
from stylora.forest import Sample
from stylora.model.tokenizer_file import base_path, context_length, hash_file, tokenizer_file
from stylora.recipe.recipe import Recipe, load_recipe
from stylora.samples.branch_data import BranchData
from stylora.samples.chat_data import ChatData
from stylora.samples.clm import clm
from stylora.samples.text import PARTS, TextData

from .open import Found
from .plan import StageData, open_tokenizer, read_data

SHORTEST = 20  # characters of a passage that the voice learns from, however short the continuations are
OVERLAP = 0.01  # share of the held-out text from which on its overlap with training text is worth a warning


@dataclass(frozen=True, kw_only=True)
class HeldOutText:
    """What a loss is measured on. samples, characters: part -> its samples, and what the predicted part of each decodes to"""

    samples: dict[str, list[Sample]]
    characters: dict[str, list[float]]


@dataclass(frozen=True, kw_only=True)
class TrainedOn:
    """What a model may have learned by heart. held_out: share of the held-out style text that stands in it in runs of 20 characters"""

    text: TrainingText
    held_out: float


@dataclass(kw_only=True)
class EvaluationData:
    """The data section of `recipe`, which has one stage.

    cache: of tokens, None for the user's own; warnings: sentences for the user, as they come up
    """

    recipe: Recipe
    cache: Path | None = None
    warnings: list[str] = field(default_factory=list)
    _indexed: dict[str, TrainedOn] = field(default_factory=dict)

    @cached_property
    def data(self) -> StageData:
        """Windows, conversations or branches, in the tokens of the recipe's base."""
        return read_data(self.recipe, self._tokenizer, cache=self.cache)

    def rows(self, base: str) -> ChatData | BranchData:
        """Conversations or branches in the tokens of `base`."""
        data = self.data
        if not same_place(base, self.recipe.base):  # another base may have these tokens, and another template
            data = read_data(self.recipe.model_copy(update={"base": base}), open_tokenizer(base), cache=self.cache)
        assert not isinstance(data, TextData)
        return data

    def conversations(self, base: str) -> ChatData:
        """The conversations in the tokens of `base`."""
        data = self.rows(base)
        assert isinstance(data, ChatData)
        return data

    def held_out(self, base: str) -> HeldOutText:
        """For models on `base`; parts in which nothing is predicted are left out."""
        data, context = self.data, context_length(base)
        samples, characters = data.validation_samples, data.validation_characters
        longest = max((len(sample) for found in samples.values() for sample in found), default=0)
        if not isinstance(data, TextData):
            other = self.rows(base)
            samples, characters = other.validation_samples, other.validation_characters
        elif _same_tokens(base, self.recipe.base) and (context is None or longest <= context):
            pass  # as they are
        else:
            tokenizer = open_tokenizer(base)
            texts = {part: _decoded(self._tokenizer, data.validation[part]) for part in PARTS}
            cut = {part: [ids for text in texts[part] for ids in _cut(tokenizer, text, context)] for part in PARTS}
            samples = {part: [clm(ids) for ids in cut[part]] for part in PARTS}
            characters = {part: [float(len(tokenizer.decode(ids[1:].tolist()))) for ids in cut[part]] for part in PARTS}
        told = [part for part, found in samples.items() if any(len(sample.edges.weight) for sample in found)]
        return HeldOutText(samples={part: samples[part] for part in told}, characters={part: characters[part] for part in told})

    def voice(self, *, tokens: int, seed: int) -> Voice | None:
        """Learned from the training text, in passages about as long as continuations of so many tokens; None, and a warning, without it."""
        assert isinstance(self.data, TextData)
        style, general = (self._training[part] for part in PARTS)
        per_token = sum(map(len, style)) / max(1, sum(map(len, self.data.texts("style", held=False))))
        try:
            return fit_voice(style, general, seed=seed, length=min(LENGTH, max(SHORTEST, round(tokens * per_token))))
        except UserError as error:
            self.warnings.append(f"no style score: {error}")
            return None

    def trained_on(self, found: Found) -> TrainedOn:
        """What this model was trained on, where its stage says it and the text is there; else the training text of the data."""
        section = self.recipe.stages[0].data
        recipe = stage_recipe(found)
        if recipe is not None and not (recipe.stages[0].data == section and _same_tokens(recipe.base, self.recipe.base)):
            try:
                own = read_data(recipe, open_tokenizer(recipe.base), cache=self.cache)
            except UserError as error:
                self.warnings.append(f"{found.name}: its own training text can't be read, so copies of the data's are looked for ({error})")
            else:
                if isinstance(own, TextData):
                    texts = _training_texts(own, open_tokenizer(recipe.base))
                    return self._index(_trained(texts, recipe), f"the training text of {found.name}")
        return self._index(_trained(self._training, self.recipe), "the training text")

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        return open_tokenizer(self.recipe.base)

    @cached_property
    def _training(self) -> dict[str, list[str]]:
        assert isinstance(self.data, TextData)
        return _training_texts(self.data, self._tokenizer)

    def _index(self, texts: Sequence[str], name: str) -> TrainedOn:
        """Once for all models that were trained on these texts; warns of held-out text that stands in them."""
        digest = blake2b(digest_size=16)
        for text in texts:
            digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
        key = digest.hexdigest()
        if key not in self._indexed:
            assert isinstance(self.data, TextData)
            index = TrainingText(texts)
            shares = {part: index.overlap(_decoded(self._tokenizer, self.data.texts(part, held=True))) for part in PARTS}
            self._indexed[key] = TrainedOn(text=index, held_out=shares["style"])
            self.warnings += [
                f"{share:.1%} of the held-out {part} text stands word for word in {name} (in runs of 20 characters): the loss measured on "
                "it looks too good"
                for part, share in shares.items() if share > OVERLAP
            ]  # fmt: skip
        return self._indexed[key]


def choose_recipe(found: Sequence[Found], data: Path | Recipe | None, stage: str | None, base: str | None) -> Recipe:
    """Whose data section is measured on, as a recipe of one stage: `data`, or the first MODEL that is a stage.

    stage: its name, in `data`; base: replaces the recipe's, where that lies elsewhere
    Raises UserError for models without data, and for an unknown stage.
    """
    recipe = load_recipe(data) if isinstance(data, Path) else data
    if recipe is None:
        recipe = next((recipe for each in found if (recipe := stage_recipe(each)) is not None), None)
    if recipe is None:
        raise UserError("--data", got="nothing, and no MODEL that is a stage", expected="a recipe, whose held-out text is measured on")
    names = [each.name for each in recipe.stages]
    if stage is not None and stage not in names:
        raise UserError("--stage", got=repr(stage), expected="a stage of the recipe", do=did_you_mean(stage, names))
    chosen = recipe.stages[names.index(stage) if stage is not None else 0]
    return recipe.model_copy(update={"stages": [chosen], "base": base or recipe.base})


def measured_on(recipe: Recipe, held_out: Path | None) -> Recipe:
    """The recipe with this file as what is held out; None keeps its own. Raises UserError for a recipe of text."""
    if held_out is None:
        return recipe
    (stage,) = recipe.stages
    if stage.data.format not in ("chat", "branches"):
        expected = "chat or branches"
        raise UserError("--held-out", got=f"data.format {stage.data.format}", expected=expected, do="set data.validation in a recipe")
    data = stage.data.model_copy(update={"validation": (str(held_out),)})
    return recipe.model_copy(update={"stages": [stage.model_copy(update={"data": data})]})


def stage_recipe(found: Found) -> Recipe | None:
    """The recipe of a MODEL that is a stage; None for others. Raises UserError where it can't be read."""
    path = None if found.stack is None else found.stack.parent / "recipe.yaml"
    return load_recipe(path) if path is not None and path.is_file() else None


def same_place(one: str, other: str) -> bool:
    """Do two names mean one base?"""
    places = [Path(base_path(name)) for name in (one, other)]
    return places[0] == places[1] or (all(place.is_dir() for place in places) and places[0].samefile(places[1]))


def _same_tokens(one: str, other: str) -> bool:
    return same_place(one, other) or hash_file(tokenizer_file(one)) == hash_file(tokenizer_file(other))


def _training_texts(data: TextData, tokenizer: Tokenizer) -> dict[str, list[str]]:
    return {part: _decoded(tokenizer, data.texts(part, held=False)) for part in PARTS}


def _trained(texts: dict[str, list[str]], recipe: Recipe) -> list[str]:
    """Those that are trained on: general text may be there for validation only."""
    return texts["style"] + (texts["general"] if recipe.stages[0].data.general_ratio else [])


def _decoded(tokenizer: Tokenizer, texts: Iterable[np.ndarray]) -> list[str]:
    return [tokenizer.decode(ids.tolist(), skip_special_tokens=False) for ids in texts]


def _cut(tokenizer: Tokenizer, text: str, context: int | None) -> Iterator[np.ndarray]:
    """The text's tokens, in several pieces where the context is too short for all. A window may begin or end inside a character."""
    ids = np.array(tokenizer.encode(text.strip("\ufffd"), add_special_tokens=False).ids, np.int32)
    size = context or max(1, len(ids))
    return (ids[start : start + size] for start in range(0, len(ids), size))
