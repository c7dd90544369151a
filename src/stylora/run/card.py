"""The README.md of an export: a model card as the hub reads it, from what the runs left behind.

    ---
    base_model, library_name, pipeline_tag, language, license, tags
    ---
    what it is made of, what it learned from, what was measured, how it was trained, how it is used

What nobody wrote down is said to be missing, not made up: the licence is the base's where its own card names one, else the user's to
choose. Knows files and plain values, no models.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import yaml
from huggingface_hub import metadata_load

from stylora.model.tokenizer_file import optional_file
from stylora.recipe.recipe import Recipe, load_recipe

from .card_use import use
from .folder import EVALUATION, StageFolder, parent_stage
from .open import Found
from .runs import read_object, read_rows

OF_LICENCE = ("license", "license_name", "license_link")
PLACES = {"train", "general", "validation", "general_validation", "path", "frozen", "output_dir"}
"""keys of a recipe that name files; of those the names are told, and not where they lay"""


def model_card(told: Mapping[str, Any], found: Found, *, name: str, base_path: str) -> str:
    """The whole README.md.

    told: what export.json says; found: what was exported; name: of its folder; base_path: the folder or hub id that the base opens from
    """
    stages = {layer.name: stage for layer in found.layers if (stage := parent_stage(layer.folder)) is not None}
    recipes = {called: load_recipe(stage.recipe) for called, stage in stages.items()}
    base_card = base_metadata(found.base)
    parts = [
        header(told, found, base_card), f"# {name}", made_of(told), data_section(told, stages, recipes), figures(told, found, stages),
        recipe_section(recipes), use(told, found, name, base_path, recipes), licence_section(base_card),
    ]  # fmt: skip
    return "\n\n".join(part for part in parts if part) + "\n"


def base_metadata(base: str) -> dict[str, Any]:
    """What the head of the base's own card says; empty where there is none that can be read."""
    card = optional_file(base, "README.md")
    try:
        return (card and metadata_load(card)) or {}
    except (UnicodeDecodeError, ValueError, yaml.YAMLError):  # somebody else's file
        return {}


def header(told: Mapping[str, Any], found: Found, base_card: Mapping[str, Any]) -> str:
    """What the hub reads."""
    merged = told["as"] == "merged"
    values: dict[str, Any] = {
        "base_model": PurePath(found.base).name if Path(found.base).is_dir() else found.base,
        "base_model_relation": "finetune" if merged else "adapter",
        "library_name": "transformers" if merged else "peft", "pipeline_tag": "text-generation",
    }  # fmt: skip
    values |= {key: base_card[key] for key in ("language", *OF_LICENCE) if key in base_card}
    values["tags"] = ["stylora", "lora"]
    lines = [yaml.safe_dump(values, allow_unicode=True, sort_keys=False).rstrip()]
    lines += [f"# {key}: the base's card names none; choose one" for key in ("language", "license") if key not in base_card]
    return "\n".join(["---", *lines, "---"])


def made_of(told: Mapping[str, Any]) -> str:
    """Base, adapters, and how near the export is to them."""
    what = {
        "concat": "One LoRA that holds all of the adapters below at their weights, exactly",
        "svd": f"One LoRA of rank {told.get('rank')} that holds the adapters below as nearly as that rank can",
        "merged": "A whole model, with the adapters below added to the weights of the base",
    }[told["as"]]
    rows = ["| | weight | rank | hash of its weights |", "|---|---|---|---|", f"| {told['base']} (base) | | | |"]
    for each in told["adapters"]:
        rows.append(f"| {each['name']} ({each['type']}) | {each['weight']:g} | {each.get('r', '')} | `{each['hash']}` |")
    same = told["comparison"]
    whose = "what was approximated" if "svd" in told else "the adapters themselves"
    lines = [f"{what}. Numbers are saved in {told['dtype']}.", "\n".join(rows),
             f"Written by stylora {told['version']}. Read again from disk, its logits on {same['prompts']} prompts are those of {whose} "
             f"within {same['largest']:.2g} (computed in {same['precision']})."]  # fmt: skip
    if "svd" in told:
        svd = told["svd"]
        lines.append(f"Lost by the smaller rank: {svd['error']:.2%} of the update (Frobenius norm), at most {svd['worst_error']:.2%} of "
                     f"one module's; logits differ from the adapters' by up to {svd['largest_logit_difference']:.3g}.")  # fmt: skip
    if told["trained_in_4bit"]:
        lines.append("Trained on the base in 4 bits. On the base in whole weights, as here, its logits differ from those.")
    lines += [f"**Changed after training:** {line}" for line in told["forced"]]
    return "\n\n".join(lines)


# ------------------------------------------------------------------------------------------------------ data and figures


def data_section(told: Mapping[str, Any], stages: Mapping[str, StageFolder], recipes: Mapping[str, Recipe]) -> str:
    """What every adapter read: names of files, and how many samples."""
    lines = ["## Data"]
    for each in told["adapters"]:
        name = each["name"]
        if name not in recipes:
            lines.append(f"- **{name}**: nothing lies beside this adapter that says what it was trained on.")
            continue
        stage = recipes[name].stages[0]
        files = [PurePath(path).name for _, paths, _ in stage.data.styles() for path in paths]
        general = f", general text {', '.join(_names(stage.data.general))}" if stage.data.general and stage.data.general_ratio else ""
        steps = read_object(stages[name].stack, []).get("steps")
        many = f"; {steps:,} steps of {stage.train.samples_per_step} samples" if isinstance(steps, int) else ""
        lines.append(f"- **{name}**: {stage.data.format} from {', '.join(files)}{general}{many}.")
    return "\n".join([lines[0], "", *lines[1:]])


def _names(paths: str | Sequence[str]) -> list[str]:
    return [PurePath(path).name for path in ([paths] if isinstance(paths, str) else paths)]


def figures(told: Mapping[str, Any], found: Found, stages: Mapping[str, StageFolder]) -> str:
    """What was measured: held-out loss of every stage at its first and last evaluation; what `evaluate` found of the whole."""
    rows = [row for name, stage in stages.items() for row in _losses(name, stage)]
    lines = ["| stage | held out | loss before | after |", "|---|---|---|---|", *rows] if rows else []
    evaluation = {} if found.stack is None or not found.as_trained else read_object(found.stack.parent / EVALUATION, [])
    measured = list(_evaluated(evaluation))
    if measured:
        whose = "the adapters, before they were shrunk" if "svd" in told else "this model"
        lines += [""] * bool(lines) + [f"| `stylora evaluate` | {whose} | the base |", "|---|---|---|", *measured]
    return "\n".join(["## Figures", "", *(lines or ["None were measured."])])


def _losses(name: str, stage: StageFolder) -> Iterator[str]:
    rows = [row for row in read_rows(stage.path / "metrics.jsonl", []) if any(key.startswith("eval/") for key in row)]
    for key in dict.fromkeys(key for row in rows for key in row if key.startswith("eval/")):
        values = [row[key] for row in rows if isinstance(row.get(key), int | float)]
        if values:
            yield f"| {name} | {key.removeprefix('eval/')} | {values[0]:.3f} | {values[-1]:.3f} |"


def _evaluated(evaluation: Mapping[str, Any]) -> Iterator[str]:
    """Rows of figures that base and model both have."""
    models = evaluation.get("models", [])
    base = next((each for each in models if each["adapter"] is None), None)
    ours = next((each for each in models if each["adapter"] and each["checkpoint"] is None and each["weight"] == 1), None)
    if base is None or ours is None:
        return
    for part, held in ours["held_out"].items():
        yield f"| perplexity, {part} | {held['perplexity']:.2f} | {base['held_out'][part]['perplexity']:.2f} |"
    for key, label in (("style_score", "style score"), ("distinct_4", "distinct-4"), ("copied", "share that copies")):
        values = [(each["generation"] or {}).get(key) for each in (ours, base)]
        if None not in values:
            told = [value["mean"] if isinstance(value, dict) else value for value in values]
            yield f"| {label} | {told[0]:.3f} | {told[1]:.3f} |"
    for way, found in (ours["task"] or {}).items():
        for key, value in found.items():
            if isinstance(value, float) and key in (base["task"] or {}).get(way, {}):
                yield f"| {key}, {way} | {value:.3f} | {base['task'][way][key]:.3f} |"


def recipe_section(recipes: Mapping[str, Recipe]) -> str:
    """How each stage was trained, where that is known: what its recipe sets otherwise than by default."""
    if not recipes:
        return ""
    told = [_without_places(recipe.model_dump(mode="json", exclude_defaults=True)["stages"][0]) for recipe in recipes.values()]
    text = yaml.safe_dump({"stages": told}, allow_unicode=True, sort_keys=False).rstrip()
    return f"## Training\n\n```yaml\n{text}\n```"


def _without_places(values: Any, key: str = "") -> Any:
    if isinstance(values, dict):
        return {inner: _without_places(value, inner) for inner, value in values.items()}
    if isinstance(values, list):
        return [_without_places(value, key) for value in values]
    return PurePath(values).name if isinstance(values, str) and key in PLACES else values


def licence_section(base_card: Mapping[str, Any]) -> str:
    """Whose it is to choose."""
    if "license" in base_card:
        chosen = f"The header names the licence of the base, {base_card['license']}; whether that may stay is yours to say."
    else:
        chosen = "**Not chosen yet.** The base's card names no licence. Before this is given away, put one into the header above."
    return f"## Licence\n\n{chosen} The rights in the text it was trained on are not touched by it."
