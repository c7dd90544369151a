"""Data, settings and environment of a run as rows of a table: what was read, what was set, what it ran on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .figures import is_number
from .panel import Track
from .stage import Stage
from .words import Said, Text, part_name, word
from .written import whole

UNTOLD = ("cleaning",)  # of `data`: how, not what; it stands in the whole recipe
NOWHERE = ("name", "output_dir")  # settings in which every run differs and that change nothing


def data_rows(stage: Stage) -> list[tuple[Text, Text]]:
    """What the recipe asked for, and what was held out of it."""
    asked = stage.recipe.get("data")
    rows: list[tuple[Text, Text]] = [
        (key, plain(value)) for key, value in (asked.items() if isinstance(asked, dict) else []) if value is not None and key not in UNTOLD
    ]  # fmt: skip
    for part, sizes in held_out_sizes(stage).items():
        name = part_name(part)
        told = word("held_out_rows", **sizes) if part == "branches" else word("held_out_is", **sizes)
        rows.append((Said(f"held out: {name.en}", f"留出：{name.zh}"), told))
    if stage.rejects:
        rows.append((word("rejects"), whole(len(stage.rejects))))
    return rows


def held_out_sizes(stage: Stage) -> dict[str, dict[str, str]]:
    """part -> how many samples (windows of texts, rows of branches), tokens and characters were held out."""
    first = stage.held_out[0] if stage.held_out else {}
    return {
        part: {"samples": whole(len(found.get("tokens", []))), "tokens": whole(round(sum(found.get("tokens", [])))),
               "characters": whole(round(sum(found.get("characters", []))))}
        for part, found in first.items() if isinstance(found, dict)
    }  # fmt: skip


def unlike_held_out(stages: Sequence[Stage]) -> bool:
    """Was a part held out of texts that differ between stages? Told by the sizes of its samples."""
    seen: dict[str, Any] = {}
    for stage in stages:
        for part, found in (stage.held_out[0] if stage.held_out else {}).items():
            if isinstance(found, dict):
                sizes = (found.get("tokens"), found.get("characters"))
                if seen.setdefault(part, sizes) != sizes:
                    return True
    return False


def environment_rows(stage: Stage) -> Iterator[tuple[Text, Text]]:
    """environment.json, a row for each key; lists of sentences and packages joined."""
    for key, value in stage.environment.items():
        if isinstance(value, dict):
            yield word("packages") if key == "packages" else key, ", ".join(f"{name} {plain(one)}" for name, one in value.items())
        elif isinstance(value, list):
            yield word("proofs") if key == "proofs" else key, "; ".join(map(plain, value))
        else:
            yield word("device") if key == "device" else key, plain(value)


def flat(section: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    """(key, value) of everything in a section, keys joined by dots."""
    for key, value in section.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", plain(value)


def plain(value: Any) -> str:
    """A setting as a recipe would have it."""
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(plain, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {plain(one)}" for key, one in value.items()) + "}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) and is_number(value) else str(value)


def differences(found: Sequence[Track]) -> list[tuple[str, list[str]]]:
    """(key, its value in each stage) of every setting that is not the same in all of them; what a recipe lacks is `–`."""
    each = [dict(flat(track.stage.recipe)) for track in found]
    keys = dict.fromkeys(key for settings in each for key in settings if key not in NOWHERE)
    rows = [(key, [settings.get(key, "–") for settings in each]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


