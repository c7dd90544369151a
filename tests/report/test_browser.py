"""The page in a real browser, from a file: it renders, asks the network for nothing, says nothing on the console, and keeps text text."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.report.browser import Browser, find_chromium
from tests.report.made import HOSTILE, evaluation, model, stage, three_way, two_stages

from stylora.report.page import page

CHROMIUM = find_chromium()
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here; CHROMIUM names one")


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    assert CHROMIUM is not None
    found = Browser(CHROMIUM, tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A run of two stages whose second name, prompt, sample and evaluation are attacks."""
    stages = two_stages(
        name=HOSTILE, samples=[(0, {HOSTILE: HOSTILE}), (10, {HOSTILE: HOSTILE}), (20, {HOSTILE: HOSTILE + "end"})],
        evaluation=evaluation(model(HOSTILE, 5.5, 5.02), warnings=[HOSTILE]), recipe_text=HOSTILE,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("a page") / "报告.html"
    path.write_text(page(stages, title=HOSTILE, language="en", version="0.1.0"), encoding="utf-8")
    return path


def quiet(browser: Browser, address) -> None:
    """Nothing on the console, nothing asked for but the page itself."""
    assert browser.complaints() == []
    assert browser.requests() == [address.resolve().as_uri()]


@pytest.mark.parametrize("width", [1200, 390])
@pytest.mark.parametrize("dark", [False, True])
def test_it_renders_quietly(browser, report, width, dark):
    browser.open(report, width=width, dark=dark)
    assert browser.run("document.querySelectorAll('svg.plot').length") == 8
    assert browser.run("[...document.querySelectorAll('svg.plot')].every(svg => svg.getBoundingClientRect().width > 200)")
    assert browser.run("document.documentElement.scrollWidth") == width, "nothing stands out to the right"
    ground = browser.run("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(19, 21, 23)" if dark else "rgb(247, 246, 243)")
    ink = browser.run("getComputedStyle(document.querySelector('svg.plot text')).fill")
    assert ink == ("rgb(157, 166, 174)" if dark else "rgb(91, 99, 107)"), "plots follow the colours of the page"
    quiet(browser, report)


def test_text_of_the_run_is_text(browser, report):
    browser.open(report)
    assert browser.run("document.title") == f"{HOSTILE} · stylora"
    assert browser.run("document.querySelectorAll('img').length") == 0
    assert browser.run("document.querySelectorAll('script').length") == 2
    for place in ("h1", "pre:last-of-type", ".prose b", "svg.plot text"):
        told = browser.run(f"[...document.querySelectorAll({place!r})].map(one => one.textContent)")
        assert any(HOSTILE in text for text in told), place
    quiet(browser, report)


def test_a_script_that_gets_in_does_not_run(browser, tmp_path):
    """The complement of escaping: the page's policy stops what is not its own, and the browser would tell."""
    path = tmp_path / "page.html"
    text = page([stage()], title="x", language="en", version="0.1.0")
    path.write_text(text.replace("</main>", "<script>document.title='taken over'</script><img src='http://127.0.0.1:9/x.png'></main>"),
                    encoding="utf-8")  # fmt: skip
    browser.open(path)
    assert browser.run("document.title") == "x · stylora"
    assert len(browser.complaints()) >= 2


def test_the_language_changes(browser, report):
    browser.open(report)
    shown = "document.body.innerText"
    assert "Training loss" in browser.run(shown) and "训练损失" not in browser.run(shown)
    browser.run("document.querySelector('[data-language=zh]').click()")
    assert "训练损失" in browser.run(shown) and "Training loss" not in browser.run(shown)
    quiet(browser, report)


def test_the_slider_shows_one_evaluation(browser, report):
    browser.open(report)
    shown = "[...document.querySelectorAll('[data-entry]')].filter(one => one.offsetParent).map(one => one.innerText)"
    last = browser.run(shown)
    assert len(last) == 1 and last[0].endswith("end")
    browser.run("const slide = document.querySelector('.slider input'); slide.value = 0; slide.dispatchEvent(new Event('input'))")
    (first,) = browser.run(shown)
    assert "step 10" in first and "剑光一闪，第10步" in first
    quiet(browser, report)


def test_a_pointer_is_told_the_figures_under_it(browser, report):
    browser.open(report, height=4000)
    assert browser.run("[...document.querySelectorAll('.tip')].every(tip => tip.hidden)")
    box = browser.run("(() => { const b = document.querySelector('#held_out_style svg').getBoundingClientRect();"
                      " return [b.left, b.top, b.width, b.height] })()")  # fmt: skip
    browser.move(box[0] + box[2] * 0.55, box[1] + box[3] * 0.5)
    tip = browser.run("document.querySelector('#held_out_style .tip').innerText")
    assert tip == "style · step 40: 4.700 (perplexity 110)"
    browser.run("document.documentElement.lang = 'zh'")
    browser.move(box[0] + box[2] * 0.55, box[1] + box[3] * 0.45)
    assert browser.run("document.querySelector('#held_out_style .tip').innerText") == "style · 第 40 步：4.700（困惑度 110）"
    browser.move(5, 5)
    assert browser.run("document.querySelector('#held_out_style .tip').hidden")
    quiet(browser, report)


@pytest.mark.parametrize("width", [1200, 390])
def test_a_stack_and_its_parts_render_quietly(browser, tmp_path, width):
    """Bars are as long as their shares, and the answers to a question open at a click."""
    path = tmp_path / "page.html"
    path.write_text(page([stage(three_way=three_way())], title="x", language="en", version="0.1.0"), encoding="utf-8")
    browser.open(path, width=width)
    assert browser.run("document.documentElement.scrollWidth") == width
    shares = browser.run("[...document.querySelectorAll('.three-way tbody tr:nth-child(3) .share')].map(one =>"
                         " one.firstChild.getBoundingClientRect().width / one.getBoundingClientRect().width)")  # fmt: skip
    assert shares == pytest.approx([0.97, 0.97, 0.78, 0.85], abs=0.01)
    shown = "[...document.querySelectorAll('.three-way .text')].filter(one => one.checkVisibility()).length"
    assert browser.run(shown) == 5
    browser.run("document.querySelectorAll('.three-way summary')[1].click()")
    assert browser.run(shown) == 10
    quiet(browser, path)


def test_a_comparison_renders_quietly(browser, tmp_path):
    runs = [stage(run=f"r{number}", group=number, general=(5.0,) + (5.1 + number / 10,) * 6) for number in range(10)]
    path = tmp_path / "compare.html"
    path.write_text(page(runs, title="x", language="zh", version="0.1.0", compared=True), encoding="utf-8")
    for width in (1200, 390):
        browser.open(path, width=width)
        assert browser.run("document.documentElement.scrollWidth") == width
        assert "没有被其他运行同时在两方面超过的：r0" in browser.run("document.body.innerText")
        quiet(browser, path)
