"""The page: one HTML file that asks the network for nothing, in both languages, from the plain values of some stages.

Every text of a run (its names, samples, prompts, recipe) is escaped by jinja2 wherever it stands. A content security policy lets only
this page's own script run, known by its hash; so even a mistake here could not make a run's text a program.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from . import written
from .colours import CURVES, style_sheet
from .evaluated import together
from .figures import STRETCHES
from .panel import Panel, Track, tracks
from .panels import panels
from .plot import pointed, to_svg
from .reading import comparison, ends, reading
from .stage import Stage
from .three_way import compared as compared_parts
from .told import data_rows, differences, environment_rows, flat, unlike_held_out
from .words import LANGUAGES, STATES, Said, Text, both, part_name, word

HERE = Path(__file__).parent
SHOWN = 40  # evaluations whose samples are on the page
SHOWN_REJECTS = 5


def page(stages: Sequence[Stage], *, title: str, language: str, version: str, compared: bool = False) -> str:
    """The whole file.

    stages: each behind the one it goes on from; language: shown at first, `en` or `zh`; compared: runs beside each other, not one
    """
    script = (HERE / "page.js").read_text(encoding="utf-8")
    plots = panels(stages, compared=compared)
    found = tracks(stages, compared=compared)
    parts = {part: part_name(part) for stage in stages for part in stage.parts}
    rendered = template().render(
        title=title, language=language, version=version, compared=compared, tracks=found, ends=[] if compared else ends(stages),
        policy=policy(script), script=Markup(script),
        styles=Markup(style_sheet() + (HERE / "page.css").read_text(encoding="utf-8")),
        reading=comparison([track.stage for track in found], [track.name for track in found]) if compared else reading(stages),
        parts=list(parts.items()), parts_by_name=parts,
        plots=[(panel, Markup(to_svg(panel)), legend(panel)) for panel in plots],
        pointers=embedded({panel.key: pointed(panel) for panel in plots}), stretches=STRETCHES,
        samples=samples(found, compared=compared), measured=together(found), three_way=compared_parts(found),
        data=alike(found, [data_rows(track.stage) for track in found]), rejects=SHOWN_REJECTS, unlike=unlike_held_out(stages),
        asked=[(track, list(flat(track.stage.asked))) for track in found], differing=differences(found),
        environments=alike(found, [list(environment_rows(track.stage)) for track in found]), states=STATES,
        foreign_origin=any(stage.origin is not None and not stage.origin.is_base for stage in stages),
    )  # fmt: skip
    return rendered.encode("utf-8", "backslashreplace").decode("utf-8")  # half a surrogate pair, as a damaged file may hold, is no text


def template() -> Template:
    """page.html.jinja with what it calls: t a word, say a text, w figures, colour a curve's."""
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )  # fmt: skip
    words = {"t": lambda key, *values, **named: say(word(key, *values, **named)), "say": say}
    environment.globals |= words | {"w": written, "colour": colour_class}
    return environment.get_template("page.html.jinja")


def alike(found: Sequence[Track], tables: Sequence[list[Any]]) -> list[tuple[list[Track], list[Any]]]:
    """Each table once, with the stages it is true of."""
    different = [table for number, table in enumerate(tables) if table not in tables[:number]]
    return [([track for track, other in zip(found, tables, strict=True) if other == table], table) for table in different]


def say(text: Text) -> Markup:
    """Both languages, of which the page shows one; or the text alone where they are the same."""
    said = both(text)
    if len(set(said)) == 1:
        return Markup("{}").format(said.en)
    return Markup("").join(Markup('<span class="{0}" lang="{0}">{1}</span>').format(code, said.of(code)) for code in LANGUAGES)


def colour_class(number: int) -> str:
    """CSS classes of a curve's colour; one that begins anew is told apart by `again`."""
    return f"curve-{number % len(CURVES)}" + (" again" if number >= len(CURVES) else "")


def embedded(value: Any) -> Markup:
    """JSON that may stand inside a `<script>` element: no `<` is left that could end it."""
    return Markup(json.dumps(value, ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c").replace("&", "\\u0026"))


def policy(script: str) -> str:
    """What the page may load and run: nothing but itself."""
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    return f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"


def legend(panel: Panel) -> list[tuple[str, int, Said]]:
    """(look, colour, text) of everything on a plot that needs a name."""
    names = {(both(line.name), line.colour): line.look for line in panel.lines if line.look not in ("faint", "rings")}
    found = [("frontier" if look == "frontier" else "line", colour, name) for (name, colour), look in names.items()]
    found = found if len(found) > 1 or panel.plane else []
    if any(line.look == "faint" for line in panel.lines):
        colour = panel.lines[0].colour if not found else 6
        found += [("faint", colour, word("each_step")), *([("line", colour, word("smoothed"))] if not found else [])]
    if any(line.look == "rings" for line in panel.lines):
        found.append(("rings", 6, word("weights")))
    return found + [(kind, 6, word(kind)) for kind in dict.fromkeys(mark.kind for mark in panel.marks) if kind not in ("stage", "origin")]


# -------------------------------------------------------------------------------------------------------------- samples


def samples(found: Sequence[Track], *, compared: bool) -> dict[str, Any]:
    """The fixed prompts, continued: `entries`, the evaluations that are shown, and for each prompt the text before training and one for
    each entry, None where it was not continued.

    For one run the entries are its evaluations, of which the page shows one at a time; compared, they are one of each stage.
    """
    prompts = dict.fromkeys(prompt for track in found for _, texts in track.stage.samples for prompt in texts)
    shown = [entry for track in found for entry in (_last(track) if compared else _chosen(track))]
    groups = []
    for prompt in prompts:
        before = next((texts[prompt] for track in found for step, texts in track.stage.samples if step == 0 and prompt in texts), None)
        groups.append({"prompt": prompt, "before": before, "texts": [texts.get(prompt) for _, _, texts in shown]})
    entries = [{"label": label, "colour": track.colour} for track, label, _ in shown]
    there = sum(1 for track in found for step, _ in track.stage.samples if step)
    return {"entries": entries, "groups": groups, "left_out": None if compared or len(shown) == there else (len(shown), there)}


def _chosen(track: Track) -> Iterator[tuple[Track, Said, Mapping[str, str]]]:
    """At most SHOWN evaluations of a stage, evenly spread, the last among them; without the one before a first stage."""
    rows = [(step, texts) for step, texts in track.stage.samples if step]
    every = max(1, -(-len(rows) // SHOWN))
    for step, texts in rows[::-1][::every][::-1]:
        yield track, _labelled(track, step), texts


def _last(track: Track) -> Iterator[tuple[Track, Said, Mapping[str, str]]]:
    rows = [(step, texts) for step, texts in track.stage.samples if step]
    chosen = next(((step, texts) for step, texts in rows if step == track.stage.kept), rows[-1] if rows else None)
    if chosen is not None:
        yield track, _labelled(track, chosen[0]), chosen[1]


def _labelled(track: Track, step: int) -> Said:
    at = word("step_number", written.whole(step))
    return Said(f"{track.name} · {at.en}", f"{track.name} · {at.zh}")


