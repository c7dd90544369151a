"""`inspect` against samples built by hand from the same windows, and its drawing against the text it was made from."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from rich.console import Console
from tokenizers import Tokenizer, models

from stylora.forest import MASK, pack
from stylora.model.tokenizer_file import TINY, hash_file
from stylora.recipe.recipe import load_recipe
from stylora.run import inspect as page
from stylora.run.plan import FIM_EXTRA
from stylora.samples.objective import build_sample, read_vocabulary
from stylora.samples.text import prepare_text

OBJECTIVES = {
    "clm": "{kind: clm}", "span": "{kind: span}", "words": "{kind: span, whole_words: true, mask_ratio: 0.3}",
    "fim": "{kind: fim, fim_rate: 1}", "middle": "{kind: fim, fim_rate: 1, loss: middle}",
}  # fmt: skip


def by_hand(path, cache, epoch: int):
    """The samples of an epoch in training order, from the windows and the objective alone."""
    stage = load_recipe(path).stages[0]
    tokenizer = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    data = prepare_text(
        stage.data, tokenizer=tokenizer, tokenizer_hash=hash_file(TINY / "tokenizer.json"), words=stage.objective.whole_words, context=512,
        cache=cache,
    )  # fmt: skip
    vocabulary = read_vocabulary(tokenizer)
    for index in data.epoch(epoch).tolist():
        yield data.source(index), data.ids(index), build_sample(
            stage.objective, data.ids(index), vocabulary=vocabulary, key=(stage.train.seed, epoch, *data.sample_id(index)),
            word_starts=data.word_starts(index),
        )  # fmt: skip


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_samples_are_those_of_training(command, recipe_file, cache, kind):
    path = recipe_file(objective=OBJECTIVES[kind])
    found = json.loads(command("inspect", path, "--samples", 3, "--epoch", 1, "--json").out)
    expected = [sample for _, (*_, sample) in zip(range(4), by_hand(path, cache, 1), strict=False)]
    assert len(found["samples"]) == 3
    for shown, sample in zip(found["samples"], expected[:3], strict=True):
        assert shown["ids"] == sample.forest.ids.tolist()
        assert [edge[:2] for edge in shown["edges"]] == np.stack([sample.edges.source, sample.edges.target], 1).tolist()
        assert sum(count for kind, count in shown["counts"].items() if kind != "ahead") == len(shown["ids"]) == len(shown["texts"])
        assert all(text == "" for token, text in zip(shown["ids"], shown["texts"], strict=True) if token == MASK)
    step, (batch,) = found["step"], pack(expected, tokens_per_microbatch=8192)  # samples_per_step is 4
    assert step["tokens"] == sum(map(len, expected)) and step["edges"] == sum(len(sample.edges) for sample in expected)
    assert step["weight"] == pytest.approx(sum(sample.edges.weight.sum() for sample in expected))
    width = max(map(len, expected))
    assert step["microbatches"] == [{"rows": 4, "row_tokens": width, "tokens": batch.tokens, "masked": False}]
    assert step["padding"] == pytest.approx(1 - step["tokens"] / (4 * width))


def test_epochs_differ_and_the_same_epoch_does_not(command, recipe_file):
    path = recipe_file(objective=OBJECTIVES["span"])
    first, again, other = (command("inspect", path, "--epoch", epoch, "--json").out for epoch in (0, 0, 1))
    assert first == again != other


def test_the_drawing_is_the_text(command, recipe_file, cache):
    """Without colours, what is trained is underlined by a combining mark; without the marks it is the window's text."""
    path = recipe_file()
    out = command("inspect", path, "--samples", 1).out
    source, ids, _ = next(iter(by_hand(path, cache, 0)))
    _, drawn, *_ = re.split(r"^sample \d.*$|\n\ntraining", out, flags=re.MULTILINE)
    text = Tokenizer.from_file(str(TINY / "tokenizer.json")).decode(ids.tolist(), skip_special_tokens=False)
    plain = drawn.replace(page.UNDERLINE, "").replace("\n", "").replace("↵", "\n")
    inside = text.strip("\ufffd")  # a window may begin and end within a character
    assert inside in plain and len(plain) - len(inside) < 40 and f"《{source}》" in out
    assert drawn.count(page.UNDERLINE) >= len(inside) - 3  # all but the first token is trained


def test_masks_show_what_they_hide(command, recipe_file):
    path = recipe_file(objective=OBJECTIVES["span"])
    found = json.loads(command("inspect", path, "--samples", 1, "--json").out)
    out = command("inspect", path, "--samples", 1).out
    (sample,) = found["samples"]
    masked = sum(token == MASK for token in sample["ids"])
    assert masked > 0 and 0 < out.count("▢") <= masked
    for kind, count in sample["counts"].items():
        assert (f"{count} {kind} (" in out) == (count > 0)


def test_colours_only_on_a_terminal(command, recipe_file, cache, monkeypatch):
    command("data", recipe_file())  # skips where the base is not there
    found = page.inspect(load_recipe(recipe_file(objective=OBJECTIVES["span"])), samples=1, console=Console(stderr=True), cache=cache)
    terminal, pipe = (Console(force_terminal=forced, width=120, color_system="truecolor" if forced else None) for forced in (True, False))
    with terminal.capture() as coloured, pipe.capture() as plain:
        page.show(found, terminal)
        page.show(found, pipe)
    assert "\x1b[" in coloured.get() and page.UNDERLINE not in coloured.get()
    assert "\x1b[" not in plain.get() and page.UNDERLINE in plain.get()
    stripped = re.sub(r"\x1b\[[\d;]*m", "", coloured.get())
    assert stripped == plain.get().replace(page.UNDERLINE, "")


def test_packed_rows_are_told(command, recipe_file):
    out = command("inspect", recipe_file(train="{samples_per_step: 8, row_tokens: 512}"), "--json").out
    (batch,) = json.loads(out)["step"]["microbatches"]
    assert batch["masked"] and batch["rows"] < 8 and batch["row_tokens"] <= 512
    assert "if the base is proved" in command("inspect", recipe_file(train="{samples_per_step: 8, row_tokens: 512}")).out


def test_html(command, recipe_file, tmp_path):
    target = tmp_path / "样本.html"
    ran = command("inspect", recipe_file(objective=OBJECTIVES["fim"]), "--samples", 2, "--html", target)
    assert ran.code == 0
    written = target.read_text(encoding="utf-8")
    assert written.count("<section>") == 2 and "<script" not in written
    assert "<|fim_prefix|>" not in written and "&lt;|fim_prefix|&gt;" in written


def test_refusals(refused, recipe_file, tmp_path):
    told = refused("inspect", recipe_file(train="{samples_per_step: 4, num_train_epochs: 2}"), "--epoch", 2)
    assert told.startswith("--epoch: got 2, expected 0 to 1")
    base = tmp_path / "base"
    base.mkdir()
    Tokenizer(models.WordLevel({"一": 0, "。": 1}, unk_token="一")).save(str(base / "tokenizer.json"))
    (base / "config.json").write_text("{}", encoding="utf-8")
    assert "objective.kind: got fim" in refused("inspect", recipe_file(objective=OBJECTIVES["fim"]), f"base={base}")


def test_fim_needs_room_for_its_sentinels(refused, command, recipe_file):
    context = json.loads((TINY / "config.json").read_text(encoding="utf-8"))["max_position_embeddings"]
    path = recipe_file(objective=OBJECTIVES["fim"], data="min_window: 16")
    told = refused("inspect", path, f"data.window={context - FIM_EXTRA + 1}")
    assert f"and {FIM_EXTRA} fill-in-the-middle tokens, expected at most {context} tokens" in told
    assert command("inspect", path, f"data.window={context - FIM_EXTRA}").code == 0
