"""The page as HTML: complete in both languages, self-contained, of bearable size, and nothing of a run's text becomes more than text."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from tests.report.made import HOSTILE, evaluation, held_out_line, model, stage, two_stages

from stylora.report import page as module
from stylora.report.page import SHOWN, page
from stylora.report.stage import Origin
from stylora.report.words import WORDS

VOID = {"meta", "link", "br", "input", "img"}


class Reader(HTMLParser):
    """Elements with their attributes, texts with the elements they stand in, and what is not closed as it was opened."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[tuple[str, ...], str]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def handle_data(self, data):
        self.texts.append((tuple(self.open), data))

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def visible(self) -> str:
        return "".join(data for path, data in self.texts if not {"script", "style", "title"} & set(path))


def written(*stages, **changes) -> str:
    return page(stages, **{"title": "wuxia", "language": "en", "version": "0.1.0"} | changes)


def hostile(**changes):
    """A stage whose every text is an attack."""
    told = evaluation(model(HOSTILE, 5.5, 5.0, checkpoint=HOSTILE), warnings=[HOSTILE])
    told["models"][1]["samples"] = [{"prompt": HOSTILE, "text": HOSTILE, "stopped": False}]
    values = {
        "run": HOSTILE, "name": HOSTILE, "base": HOSTILE, "environment": {"device": HOSTILE, HOSTILE: HOSTILE, "proofs": [HOSTILE]},
        "samples": [(0, {HOSTILE: HOSTILE}), (10, {HOSTILE: HOSTILE}), (20, {HOSTILE: HOSTILE})], "troubles": [HOSTILE],
        "recipe": {"data": {"train": HOSTILE, HOSTILE: [HOSTILE]}}, "asked": {"prompts": [HOSTILE]}, "recipe_text": HOSTILE,
        "rejects": [{"where": HOSTILE, "reason": HOSTILE}], "evaluation": told,
    }  # fmt: skip
    return stage(**values | changes)


def test_nothing_of_a_runs_text_becomes_an_element_or_a_script():
    for text in (
        written(hostile(), title=HOSTILE),
        written(hostile(), hostile(group=1, recipe={"data": {"train": "x"}}), title=HOSTILE, compared=True, language="zh"),
    ):
        found = Reader(text)
        assert not found.named("img")
        assert [attributes.get("type") for attributes in found.named("script")] == ["application/json", None]
        assert not any(key.startswith("on") for _, attributes in found.elements for key in attributes)
        assert found.visible().count(HOSTILE) > 15 and found.named("title")
        scripts = ["".join(data for path, data in found.texts if path[-1:] == ("script",))]
        assert "taken over" in scripts[0], "names are among the tips"
        assert text.count("</script") == 2


def test_json_inside_the_page_is_what_was_put_there():
    value = {"x": [HOSTILE, "\u2028", "风格", 1.5, "&lt;"]}
    embedded = str(module.embedded(value))
    assert json.loads(embedded) == value and "<" not in embedded and "&" not in embedded


def test_the_page_needs_nothing_from_elsewhere():
    found = Reader(written(*two_stages(), hostile()))
    for tag, attributes in found.elements:
        for key in ("src", "href", "srcset", "action", "poster", "data", "xlink:href"):
            value = attributes.get(key)
            assert value is None or value.startswith(("#", "data:,")), (tag, key, value)
        assert "url(" not in (attributes.get("style") or "").replace("url(#", "")
    styles = "".join(data for path, data in found.texts if path[-1:] == ("style",))
    assert "url(" not in styles and "@import" not in styles
    (policy,) = [one["content"] for one in found.named("meta") if one.get("http-equiv")]
    assert policy is not None and policy.startswith("default-src 'none';") and "script-src 'sha256-" in policy and "http" not in policy


def test_both_languages_are_there_and_one_is_shown():
    for language in ("en", "zh"):
        found = Reader(written(*two_stages(), language=language))
        assert found.named("html")[0]["lang"] == language
    visible = found.visible()
    for said in ("Training loss", "训练损失", "风格困惑度下降", "Style perplexity fell", "takes back 75 %", "追回了其遗忘的 75 %"):
        assert said in visible
    spans = [attributes.get("class") for attributes in found.named("span")]
    assert spans.count("en") == spans.count("zh") > 50


def test_no_word_is_without_a_place_and_no_place_without_a_word():
    source = Path(module.__file__).parent
    files = [path for path in [*source.glob("*.py"), source / "page.html.jinja"] if path.name != "words.py"]
    text = "".join(path.read_text(encoding="utf-8") for path in files)
    named = set(re.findall(r"""\b(?:t|word)\(\s*"(\w+)\"""", text)) | set(re.findall(r'WORDS\["(\w+)"', text))
    assert named <= set(WORDS), named - set(WORDS)
    assert {key for key in WORDS if f'"{key}"' not in text} == set()


def test_figures_stand_in_the_headline_and_in_tables():
    visible = Reader(written(*two_stages())).visible()
    figures = ("403 → 148", "−63.2 %", "148 → 154", "+4.1 %", "3 min 12 s", "2026-01-02 03:04", "CPU", "tiny", "12 windows, 1,800 tokens")
    for told in figures:
        assert told in visible, told
    for step, loss in ((0, "6.000"), (40, "4.700"), (60, "5.160")):
        assert re.search(rf"\b{step}\b", visible) and loss in visible


def test_rows_of_branches_are_not_called_windows():
    visible = Reader(written(stage(held_out=[held_out_line(0, {"branches": 6.0})]))).visible()
    assert "12 rows, 1,800 tokens" in visible and "12 行，1,800 个 token" in visible and "windows" not in visible and "窗口" not in visible


def test_samples_before_and_at_each_evaluation():
    found = Reader(written(stage()))
    entries = [attributes for attributes in found.named("article") if "data-entry" in attributes]
    assert len(entries) == 6 and ["hidden" in entry for entry in entries] == [True] * 5 + [False]
    visible = found.visible()
    assert visible.count("剑光一闪") == 7 and all(f"，第{step}步" in visible for step in range(0, 61, 10))
    (slider,) = found.named("input")
    assert (slider["min"], slider["max"], slider["value"]) == ("0", "5", "5")


def test_of_hundreds_of_evaluations_some_samples_are_shown_and_that_is_said():
    many = stage(samples=[(step, {"雨": f"第{step}步"}) for step in range(301)])
    found = Reader(written(many))
    shown = sum("data-entry" in attributes for attributes in found.named("article"))
    assert 20 < shown <= SHOWN and "第300步" in found.visible()
    assert f"{shown} of 300 evaluations are shown." in found.visible()


def test_compared_runs_have_their_last_samples_side_by_side():
    runs = [stage(run="a"), stage(run="b", group=1, metric="eval/style")]
    found = Reader(written(*runs, compared=True))
    visible = found.visible()
    assert not found.named("input") and visible.count("，第0步") == 1
    assert "，第60步" in visible and "，第40步" in visible and "，第50步" not in visible


def test_differing_settings_come_first_and_equal_ones_not_at_all():
    recipes = [{"name": name, "base": "tiny", "train": {"learning_rate": rate, "seed": 1}} for name, rate in (("a", 1e-4), ("b", 2e-4))]
    visible = Reader(written(*(stage(run=one["name"], group=n, recipe=one) for n, one in enumerate(recipes)), compared=True)).visible()
    table = visible[visible.index("Settings that differ") : visible.index("Set otherwise than by default")]
    assert "train.learning_rate" in table and "0.0001" in table and "0.0002" in table and "seed" not in table and "tiny" not in table
    same = Reader(written(stage(run="a"), stage(run="b", group=1), compared=True)).visible()
    assert "The recipes are the same." in same


def test_texts_that_differ_are_told():
    told = "These were held out of different texts"
    one = stage(run="a")
    shorter = [{**line, "style": {key: column[:-1] for key, column in line["style"].items()}} for line in one.held_out]
    assert told in written(one, stage(run="b", group=1, held_out=shorter), compared=True)
    assert told not in written(one, stage(run="b", group=1), compared=True)


def test_an_origin_that_is_no_base_is_told():
    told = "A base was not measured for every stage"
    assert told not in written(stage())
    assert told in written(stage(origin=Origin(losses={"style": 6.0, "general": 5.0}, is_base=False)))


@pytest.mark.parametrize(
    "odd",
    [
        {"rows": [], "origin": None, "held_out": [], "samples": []}, {"rows": [{"step": 1, "loss": float("nan")}], "origin": None},
        {"state": "empty", "step": 0, "steps": None, "environment": {}, "recipe": {}, "asked": {}, "recipe_text": "", "seconds": None},
        {"samples": [(0, {"雨": "\ud800\x00"}), (5, {"雪": ""})]}, {"recipe": {"data": None}, "environment": {"proofs": None}, "when": ""},
    ],
    ids=["no figures", "no number", "nothing yet", "half a character", "odd sections"],
)  # fmt: skip
def test_odd_runs_have_a_page(odd):
    text = written(stage(**odd))
    text.encode("utf-8")
    Reader(text)
    Reader(written(stage(**odd), stage(run="b", group=1), compared=True))


def test_a_long_run_has_a_small_page():
    """Ten thousand logged steps, two hundred evaluations."""
    random = 0.5
    rows = []
    for step in range(10_001):
        random = (random * 3.9 * (1 - random)) or 0.5
        rows.append({"step": step, "loss": 3 + random, "grad_norm": 1 + random, "learning_rate": 1e-4, "ce": 3 + random, "kl": random})
        if step % 50 == 0:
            rows.append({"step": step, "eval/style": 4 + random, "eval/general": 4 - random})
    text = written(stage(rows=rows, held_out=[], beta=0.1, origin=Origin(losses={"style": 4.5, "general": 3.5})))
    assert len(text.encode("utf-8")) < 1_500_000
    assert "Long curves are drawn thinned: the lowest and the highest of each of 300 equal stretches." in text
    assert "Long curves" not in written(stage())


def test_the_same_run_gives_the_same_bytes():
    assert written(*two_stages()) == written(*two_stages())
