"""The drawings, letter by letter."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stylora.forest import MASK, Sample, build_trie, chain, edges, join
from stylora.forest.draw import columns, count_kinds, tokens_html, tree_text, visibility_text, written

WORDS = ["你", "好", "，", "世", "界", "朋", "友", "。", "\n", "刀", "<script>", "the "]


def piece(token: int) -> str:
    return WORDS[token]


def marks(kind: str, text: str) -> str:
    """Kinds as brackets: [trained], (masked), <ahead>, context."""
    return {"trained": f"[{text}]", "masked": f"({text})", "ahead": f"<{text}>", "context": text}[kind]


def learned(ids: list[int], after: int, **more) -> Sample:
    """A chain whose tokens from index `after` on are learned."""
    return Sample(forest=chain(ids), edges=edges(range(after - 1, len(ids) - 1), ids[after:]), **more)


def noised(ids: list[int], places: dict[int, int]) -> Sample:
    """A chain with some inputs replaced; the originals there are learned."""
    read = np.array(ids)
    read[list(places)] = list(places.values())
    return Sample(forest=chain(read), edges=edges([p - 1 for p in places], [ids[p] for p in places]))


FORK = build_trie([learned([0, 1, 2, 3, 4], 3), learned([0, 1, 2, 5, 6], 3)])
NOTHING = edges([], [])


def test_visibility_of_a_shared_prefix():
    trie = build_trie([Sample(forest=chain(ids), edges=NOTHING) for ids in ([1, 1, 2, 3], [1, 1, 4, 5])])
    assert visibility_text(trie.forest, ["s", "s", "u1", "a1", "u2", "a2"]).splitlines() == [
        "s   #.....",
        "s   ##....",
        "u1  ###...",
        "a1  ####..",
        "u2  ##..#.",
        "a2  ##..##",
    ]


def test_visibility_of_packed_documents():
    packed = join([Sample(forest=chain([7] * n), edges=NOTHING) for n in (2, 3)])
    assert visibility_text(packed.forest).splitlines() == ["#....", "##...", "..#..", "..##.", "..###"]


def test_wide_labels_line_up():
    assert visibility_text(chain([1, 2]), ["剑", "a"]).splitlines() == ["剑  #.", "a   ##"]


def test_a_tree_with_one_fork():
    assert tree_text(FORK, piece).splitlines() == ["你好，", "├─ 世界", "└─ 朋友"]
    assert tree_text(FORK, piece, style=marks).splitlines() == ["你好，", "├─ [世][界]", "└─ [朋][友]"]


def test_forks_below_forks_and_several_trees():
    rows = [[0, 1, 2], [0, 1, 7, 3], [0, 1, 7, 4], [0, 5], [9, 7]]
    forest = build_trie([Sample(forest=chain(ids), edges=NOTHING) for ids in rows])
    assert tree_text(forest, piece) == "你\n├─ 好\n│  ├─ ，\n│  └─ 。\n│     ├─ 世\n│     └─ 界\n└─ 朋\n\n刀。"


def test_paragraphs_are_folded_beside_their_branch_lines():
    long = [0, 1, 3, 4] * 4
    forest = build_trie([Sample(forest=chain([7, *ids]), edges=NOTHING) for ids in (long, [9, *long])])
    assert tree_text(forest, piece, width=24).splitlines() == [
        "。",
        "├─ 你好世界你好世界你好",
        "│  世界你好世界",
        "└─ 刀你好世界你好世界你",
        "   好世界你好世界",
    ]


def test_words_are_not_cut_unless_longer_than_a_line():
    the = Sample(forest=chain([11] * 6), edges=NOTHING)
    assert tree_text(the, piece, width=22).splitlines() == ["the the the the the ", "the "]
    assert tree_text(chain_of(["ab", "c" * 45]), ["ab", "c" * 45].__getitem__, width=20, style=lambda kind, text: f"[{text}]") == (
        "[ab]" + f"[{'c' * 18}]\n[{'c' * 20}]\n[{'c' * 7}]"
    )


def chain_of(words: list[str]) -> Sample:
    return Sample(forest=chain(range(len(words))), edges=NOTHING)


def test_masked_tokens_show_what_they_hide():
    sample = noised([0, 1, 2, 3, 4], {1: MASK, 3: 9, 4: 4})
    assert tree_text(sample, piece, style=marks) == "你(▢{好})，(刀{世})[界]"
    assert count_kinds(sample) == {"trained": 1, "masked": 2, "context": 2, "ahead": 0}


def test_two_noisings_of_one_text():
    sample = build_trie([noised([0, 1, 2], {1: MASK}), noised([0, 1, 2], {2: MASK})])
    # 好 stands beside the mask that hides it, so the one edge is its own: it is trained, and the mask hides nothing more
    assert tree_text(sample, piece, style=marks).splitlines() == ["你", "├─ (▢)，", "└─ [好](▢{，})"]


def test_a_target_after_the_last_token_is_ahead():
    sample = Sample(forest=chain([0, 1]), edges=edges([0, 1], [1, 7]))
    assert tree_text(sample, piece, style=marks) == "你[好]<。>"
    assert count_kinds(sample) == {"trained": 1, "masked": 0, "context": 1, "ahead": 1}


def test_an_answer_that_ends_where_another_goes_on_is_a_way_of_its_own():
    short = Sample(forest=chain([0, 1]), edges=edges([0, 1], [1, 7]))
    sample = build_trie([short, learned([0, 1, 2, 3], 1)])
    assert tree_text(sample, piece, style=marks).splitlines() == ["你[好]", "├─ [，][世]", "└─ <。>"]


def test_a_root_is_read_only_unless_it_is_a_mask():
    assert count_kinds(noised([0, 1], {1: 1}))["context"] == 1
    assert count_kinds(Sample(forest=chain([MASK, 1]), edges=NOTHING)) == {
        "trained": 0, "masked": 1, "context": 1, "ahead": 0,
    }  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=1, max_size=5), st.data())
def test_every_token_is_drawn_once_and_every_target_is_told(rows, data):
    samples = []
    for ids in rows:
        places = data.draw(st.lists(st.integers(0, len(ids) - 1), unique=True))
        targets = data.draw(st.lists(st.integers(0, 7), min_size=len(places), max_size=len(places)))
        samples.append(Sample(forest=chain(ids), edges=edges(places, targets)))
    trie = build_trie(samples)
    counts = count_kinds(trie)
    assert counts["trained"] + counts["masked"] + counts["context"] == len(trie)
    drawn: dict[str, list[str]] = {}

    def note(kind: str, text: str) -> str:
        drawn.setdefault(kind, []).append(text)
        return text

    tree_text(trie, "abcdwxyz".__getitem__, style=note)
    assert {kind: len(texts) for kind, texts in drawn.items()} == {kind: n for kind, n in counts.items() if n}
    for source, target in zip(trie.edges.source.tolist(), trie.edges.target.tolist(), strict=True):
        assert any("abcdwxyz"[target] in text for kind in drawn if kind != "context" for text in drawn[kind]), (source, target)


BYTES = {0: "剑".encode()[:2], 1: "剑".encode()[2:], 2: b"\xe5", 3: "光".encode(), 4: "龘".encode()[:1], 5: "龘".encode()[1:]}


@pytest.mark.parametrize(
    ("ids", "trained", "expected"),
    [
        ([3, 0, 1, 3], [], "光剑光"),  # the parts of one character meet
        ([3, 0, 1, 3], [1, 2], "光[剑]光"),
        ([3, 0, 1, 3], [2], "光‹E5 89›[‹91›]光"),  # not across kinds
        ([3, 2, 3], [1], "光[‹E5›]光"),
        ([2, 1, 4, 5], [], "‹E5›‹91›龘"),
    ],
)
def test_parts_of_characters(ids, trained, expected):
    sample = Sample(forest=chain(ids), edges=edges([i - 1 for i in trained], [ids[i] for i in trained]))
    assert tree_text(sample, BYTES.__getitem__, style=marks) == expected


def test_parts_of_a_hidden_character_meet_too():
    sample = Sample(forest=chain([3, MASK, MASK, 3]), edges=edges([0, 1], [0, 1]))
    assert tree_text(sample, BYTES.__getitem__, style=marks) == "光(▢▢{剑})光"
    one = Sample(forest=chain([3, MASK, 1]), edges=edges([0], [0]))
    assert tree_text(one, BYTES.__getitem__, style=marks) == "光(▢{‹E5 89›})‹91›"


def test_nothing_shown_can_move_a_cursor():
    assert written("a\nb\tc\x1b[31m\u202e\u200b\r\x9b") == "a↵b⇥c‹U+001B›[31m‹U+202E›‹U+200B›‹U+000D›‹U+009B›"
    assert written("剑 光".encode() + b"\xff\xe5") == "剑 光‹FF E5›"


def test_columns():
    assert [columns(text) for text in ("ab", "剑光", "，", "e\u0301", "↵")] == [2, 4, 2, 1, 1]


class Page(HTMLParser):
    """The tags of a page in order, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag not in ("meta", "br"):
            self.open.append(tag)
        assert not any(name.startswith("on") or name in ("src", "href") for name, _ in attrs)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data


def test_a_page():
    page = tokens_html([FORK, noised([0, 1, 2, 8, 7], {1: MASK, 2: 9})], piece, "一页")
    body = page[page.index("<section>") :]
    assert body == (
        "<section>\n<h2>1 <small>7 tokens: 4 trained · 3 context</small></h2>\n"
        '<p style="--ways: 0">你好，</p>\n'
        '<p style="--ways: 1"><span class="trained">世</span><span class="trained">界</span></p>\n'
        '<p style="--ways: 1"><span class="trained">朋</span><span class="trained">友</span></p>\n'
        "</section>\n"
        "<section>\n<h2>2 <small>5 tokens: 2 masked · 3 context</small></h2>\n"
        '<p style="--ways: 0">你<ruby class="masked">▢<rt>好</rt></ruby><ruby class="masked">刀<rt>，</rt></ruby>↵<br>。</p>\n'
        "</section>\n</body>\n</html>\n"
    )
    told = dict(re.findall(r'<li><span class="\w+">(\w+)</span> <b>(\d+)</b>', page))
    assert told == {"trained": "4", "masked": "2", "context": "6", "ahead": "0"}
    assert not Page(page).open


@pytest.mark.parametrize("kind", ["trained", "masked", "context", "ahead"])
def test_text_stays_text(kind):
    evil = "<script>alert('&amp;')</script><!-- \" "
    sample = {
        "trained": Sample(forest=chain([0, 1]), edges=edges([0], [1])),
        "masked": Sample(forest=chain([0, 1]), edges=edges([0], [2])),
        "context": Sample(forest=chain([0, 1]), edges=NOTHING),
        "ahead": Sample(forest=chain([0]), edges=edges([0], [1])),
    }[kind]
    assert count_kinds(sample)[kind]
    page = Page(tokens_html([sample], ["a", evil, evil].__getitem__, evil))
    assert page.text.count(evil) == {"masked": 4}.get(kind, 3)  # twice the title
    assert "script" not in page.tags


def test_a_page_is_alone():
    page = tokens_html([FORK], piece, "x")
    assert not re.search(r"https?:|url\(|@import|<script|<link|<img", page)
    assert "prefers-color-scheme: dark" in page and '<meta charset="utf-8">' in page
