"""Rows in tokens: the drawing of the module, the invariants of a forest, what is learned, and that a branch is as if it were alone."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.samples.test_templates import SHAPES, Base
from tokenizers import Tokenizer, normalizers, processors

from stylora.errors import UserError
from stylora.forest import build_trie, parents, visible
from stylora.model.tokenizer_file import TINY
from stylora.samples.branch_rows import BadRow, parse_row
from stylora.samples.branch_settings import Branches
from stylora.samples.branches import Begun, Branch, BranchFormat, Tree, tree_sample
from stylora.samples.chat import ChatFormat
from stylora.samples.template import ChatTemplate

STOP = "<|im_end|>"
TOKENIZER = Tokenizer.from_file(str(TINY / "tokenizer.json"))
STOP_ID = TOKENIZER.token_to_id(STOP)
CHATML = """{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
# Empty thoughts stand before the last answer alone, as Qwen3 has it.
FORGETFUL = """{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.role == 'assistant' and loop.last %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{{- message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
SYSTEM = {"role": "system", "content": "只看文章回答。渡口早上七点开船，晚上六点收船。"}
SETTINGS = [Branches(rope_2d_ratio=0), Branches(branch_stride=4), Branches(branch_stride=4, positions="add")]


def make_form(layout: Branches = SETTINGS[0], tokenizer: Tokenizer = TOKENIZER, template: str | None = CHATML) -> BranchFormat:
    chat = None
    if template is not None:
        chat = ChatFormat(ChatTemplate(template, special=["<|im_start|>", STOP], variables={}), tokenizer, STOP)
    return BranchFormat(tokenizer, layout, eos_token=STOP, chat=chat)


FORM = make_form()


def asked(question: str, answer: str) -> list[dict]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def tree_of(row: dict, form: BranchFormat = FORM) -> Tree:
    return form.tree(parse_row(row, "rows.jsonl:1"))


def drawn_branch(*ids: int) -> Branch:
    """fork, answer..., with an edge onto each and onto the stop token 0."""
    return Branch(
        ids=np.array(ids, np.int32), source=np.arange(len(ids), dtype=np.int32), target=np.array([*ids[1:], 0], np.int32),
        weight=np.ones(len(ids), np.float32), characters=len(ids) - 1,
    )  # fmt: skip


A, B, C, D, E, FORK, STOPS = 1, 2, 3, 4, 5, 6, 0
DRAWN = Tree(
    trunk=np.array([A, B], np.int32), branches=(drawn_branch(FORK, C, D), drawn_branch(FORK, E)), trunk_characters=2, stop=STOPS,
    quoted=False,
)  # fmt: skip


def test_the_drawing():
    sample = tree_sample(DRAWN, Branches(branch_stride=1))
    forest = sample.forest
    assert forest.ids.tolist() == [A, B, FORK, C, D, FORK, E]
    assert forest.time.tolist() == [0, 1, 2, 3, 4, 2, 3]
    assert forest.branch.tolist() == [0, 0, 1, 1, 1, 2, 2]
    assert forest.end.tolist() == [7, 7, 5, 5, 5, 7, 7]
    assert forest.root.tolist() == [0] * 7
    edges = list(zip(forest.ids[sample.edges.source].tolist(), sample.edges.target.tolist(), strict=True))
    assert edges == [(FORK, C), (C, D), (D, STOPS), (FORK, E), (E, STOPS)]
    assert sample.edges.source.tolist() == [2, 3, 4, 5, 6] and sample.edges.weight.tolist() == [1] * 5
    assert visible(forest).astype(int).tolist() == [
        [1, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0],
        [1, 1, 0, 0, 0, 1, 0],
        [1, 1, 0, 0, 0, 1, 1],
    ]


@pytest.mark.parametrize(("layout", "numbers", "coordinates"), [
    (Branches(branch_stride=8), None, [0, 0, 8, 8, 8, 16, 16]),
    (Branches(branch_stride=8, positions="add"), None, [0, 0, 0, 0, 0, 8, 8]),
    (Branches(branch_stride=8, rope_2d_ratio=0), None, [0] * 7),
    (Branches(branch_stride=8), [1], [0, 0, 8, 8]),  # counted among those that are read
    (Branches(branch_stride=8), [], [0, 0]),
])  # fmt: skip
def test_coordinates_count_the_branches_that_are_read(layout, numbers, coordinates):
    sample = tree_sample(DRAWN, layout, numbers=numbers)
    assert sample.forest.branch.tolist() == coordinates
    assert all(column.dtype == np.int32 for column in vars(sample.forest).values())
    assert (sample.edges.source.dtype, sample.edges.target.dtype, sample.edges.weight.dtype) == (np.int32, np.int32, np.float32)


def test_the_trunk_is_learned_only_when_told_and_alone_with_its_end():
    read = tree_sample(DRAWN, SETTINGS[0])
    learned = tree_sample(DRAWN, SETTINGS[0], train_on_main=True)
    assert (learned.edges.source[0], learned.edges.target[0]) == (0, B)
    assert learned.edges.source[1:].tolist() == read.edges.source.tolist(), "the trunk goes on, so it has no stop token"
    alone = tree_sample(tree_of({"text": "渡口在东边。"}), SETTINGS[0])
    assert alone.forest.is_chain
    assert alone.edges.target.tolist() == [*alone.forest.ids[1:].tolist(), STOP_ID]
    assert alone.edges.source.tolist() == list(range(len(alone)))


def test_a_source_of_minus_one_is_the_last_of_the_trunk():
    bare = Branch(ids=np.array([C], np.int32), source=np.array([-1, 0], np.int32), target=np.array([C, STOPS], np.int32),
                  weight=np.ones(2, np.float32), characters=1)  # fmt: skip
    tree = Tree(trunk=DRAWN.trunk, branches=(bare, bare), trunk_characters=2, stop=STOPS, quoted=False)
    assert tree_sample(tree, SETTINGS[0]).edges.source.tolist() == [1, 2, 1, 3]


def test_a_prompt_is_read_and_the_fork_stands_where_there_is_none():
    tree = tree_of({"main": "渡口在东边。", "branches": [{"prompt": "问：几点开船？\n答：", "answer": "七点。"}, "晚上六点收船。"]})
    prompt, answer = (TOKENIZER.encode(text).ids for text in ("问：几点开船？\n答：", "七点。"))
    assert tree.trunk.tolist() == TOKENIZER.encode("渡口在东边。").ids
    assert tree.branches[0].ids.tolist() == prompt + answer
    assert tree.branches[0].source.tolist() == list(range(len(prompt) - 1, len(prompt) + len(answer)))
    assert tree.branches[0].target.tolist() == [*answer, STOP_ID]
    last = TOKENIZER.encode("晚上六点收船。").ids
    assert tree.branches[1].ids.tolist() == [FORM.fork, *last] and FORM.fork == TOKENIZER.encode("\n").ids[0]
    assert tree.branches[1].target.tolist() == [*last, STOP_ID] and tree.branches[1].source.tolist() == list(range(len(last) + 1))
    assert (tree.trunk_characters, [branch.characters for branch in tree.branches], tree.longest) == (6, [3, 7], len(prompt + answer))


@st.composite
def rows(draw) -> dict:
    """Rows of texts, as anyone may write them."""
    text = st.text("船渡口早上七点 \nabQ9，。𠮷é", min_size=1, max_size=12).filter(str.strip)
    branch = st.one_of(text, st.fixed_dictionaries({"prompt": text, "answer": text}))
    return {"main": draw(text), "branches": draw(st.lists(branch, min_size=1, max_size=6))}


@settings(max_examples=60, deadline=None)
@given(rows(), st.sampled_from(SETTINGS), st.booleans())
def test_a_row_is_a_forest_and_teaches_its_answers(row, layout, train_on_main):
    tree = tree_of(row)
    sample = tree_sample(tree, layout, train_on_main=train_on_main)
    forest, total, at = sample.forest, len(sample), len(tree.trunk)
    assert (forest.time[:at] == np.arange(at)).all() and (forest.end[:at] == total).all() and (forest.branch[:at] == 0).all()
    assert forest.time.tolist().count(0) == 1, "one root, by which a model tells trees apart"
    above = parents(forest)
    for number, branch in enumerate(tree.branches):
        own = slice(at, at + len(branch.ids))
        assert forest.ids[own].tolist() == branch.ids.tolist()
        assert forest.time[own].tolist() == list(range(len(tree.trunk), len(tree.trunk) + len(branch.ids)))
        assert (forest.end[own] == own.stop).all() and (forest.branch[own] == layout.coordinate(number)).all()
        assert above[at] == len(tree.trunk) - 1
        at = own.stop
    assert at == total
    for branch, raw in zip(tree.branches, row["branches"], strict=True):
        assert branch.target[-1] == STOP_ID and STOP_ID not in branch.ids
        assert TOKENIZER.decode(branch.target[:-1].tolist()) == (raw if isinstance(raw, str) else raw["answer"])


@settings(max_examples=60, deadline=None)
@given(rows(), st.sampled_from(SETTINGS))
def test_a_tree_teaches_what_its_branches_teach_one_by_one(row, layout):
    tree = tree_of(row)
    alone = [tree_sample(tree, layout, numbers=[number]) for number in range(len(tree.branches))]
    separate = sum((lessons(sample) for sample in alone), Counter())
    assert lessons(tree_sample(tree, layout)) == separate
    assert lessons(build_trie([tree_sample(tree, layout)])) == separate, "and where equal branches merge"


def lessons(sample) -> Counter:
    """(the tokens on the way to a source, what is predicted there) -> weight: what a model that reads along the branches is taught."""
    above, found = parents(sample.forest), Counter()
    for source, target, weight in zip(*(column.tolist() for column in vars(sample.edges).values()), strict=True):
        way, at = [], source
        while at >= 0:
            way.append(int(sample.forest.ids[at]))
            at = above[at]
        found[tuple(way[::-1]), target] += weight
    return found


def test_equal_branches_merge_only_at_equal_coordinates():
    tree = tree_of({"main": "甲", "branches": ["乙丙", "乙丙"]})
    apart, merged = (build_trie([tree_sample(tree, layout)]) for layout in (SETTINGS[1], SETTINGS[0]))
    assert len(apart) == len(tree_sample(tree, SETTINGS[1])) > len(merged)
    assert set(merged.edges.weight.tolist()) == {2.0} and set(apart.edges.weight.tolist()) == {1.0}


# ------------------------------------------------------------------------------------------------------------ messages


def test_messages_are_the_templates_own_words():
    branches = [asked("几点开船？", "七点。"), asked("几点收船？", "六点。") + asked("谢谢", "不客气。")]
    tree = tree_of({"main": [SYSTEM], "branches": branches})
    for branch, turns in zip(tree.branches, branches, strict=True):
        text = FORM.chat.template.render([SYSTEM, *turns]).text
        whole = TOKENIZER.encode(text).ids
        assert [*tree.trunk.tolist(), *branch.ids.tolist()] == whole[: len(tree.trunk) + len(branch.ids)]
        said = [turn["content"] for turn in turns if turn["role"] == "assistant"]
        learned = TOKENIZER.decode(branch.target.tolist(), skip_special_tokens=False)
        assert learned == "".join(answer + STOP for answer in said) and branch.characters == sum(map(len, said))
    words = TOKENIZER.decode(tree.trunk.tolist(), skip_special_tokens=False)
    assert words.startswith(f"<|im_start|>system\n{SYSTEM['content']}<|im_end|>\n<|im_start|>user")


def test_the_trunk_of_messages_does_not_depend_on_the_branches():
    odd = [asked("\n\n几点？", "七点。"), asked("a", "b"), asked(" 7", "8"), asked("。", "？")]
    trunks = {tuple(tree_of({"main": [SYSTEM], "branches": [turns]}).trunk.tolist()) for turns in odd}
    assert len(trunks) == 1


@pytest.mark.parametrize("row", [
    {"main": "渡口在东边。", "branches": [{"prompt": "问：几点开船？\n答：", "answer": "七点。"}, "晚上六点收船。"]},
    {"main": [SYSTEM], "branches": [asked("几点开船？", "七点。"), asked("几点收船？", "六点。")]},
], ids=["texts", "messages"])  # fmt: skip
@pytest.mark.parametrize("template", [CHATML, FORGETFUL], ids=["chatml", "forgetful"])
def test_decoding_begins_with_the_tokens_of_training(row, template):
    form = make_form(template=template)
    tree = tree_of(row, form)
    openings = [each[:1] if isinstance(each, list) else "" if isinstance(each, str) else each["prompt"] for each in row["branches"]]
    trunk, ids = form.opened(row["main"], openings)
    assert trunk.tolist() == tree.trunk.tolist()
    for branch, opening in zip(tree.branches, ids, strict=True):
        thoughts = TOKENIZER.encode("<think>\n\n</think>\n\n").ids if template == FORGETFUL and isinstance(row["main"], list) else []
        first = int(branch.source[0]) + 1 + len(thoughts)
        assert opening.tolist() == branch.ids[:first].tolist()


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_public_templates(shape, tokenizer):
    """Trunk and branch are together what the conversation is in chat training, and decoding begins with the tokens before an answer."""
    base = Base(shape, tokenizer)
    form = BranchFormat(base.theirs.backend_tokenizer, SETTINGS[0], eos_token=shape.eos, chat=base.form)
    for main in ([SYSTEM], [SYSTEM, *asked("看过了吗？", "看过了。")], asked("你好", "好")):
        row = parse_row({"main": main, "branches": [asked("几点开船？", "七点。"), asked("\n\n 收船", "六\n点")]}, "rows.jsonl:1")
        tree = form.tree(row)
        for branch, turns in zip(tree.branches, row.branches, strict=True):
            whole = base.reference([*main, *turns.messages])
            ids = [*tree.trunk.tolist(), *branch.ids.tolist()]
            assert ids == whole[: len(ids)] and len(tree.trunk) > 5
            said = base.theirs.decode(branch.target.tolist(), skip_special_tokens=False)
            assert said.strip().endswith(turns.messages[1]["content"] + shape.stop), said
            trunk, (opening,) = form.opened(main, [turns.messages[:1]])
            assert trunk.tolist() == tree.trunk.tolist() and opening.tolist() == branch.ids[: len(opening)].tolist()
            assert len(opening) > int(branch.source[0])
        assert form.prove(row) == 2


def test_a_branch_that_was_begun_goes_on_behind_the_fork():
    _, (begun, fork) = FORM.opened("渡口在东边。", [Begun(text="晚上"), ""])
    assert begun.tolist() == [FORM.fork, *TOKENIZER.encode("晚上").ids] and fork.tolist() == [FORM.fork]


def test_special_tokens_in_texts_stay_text():
    tree = tree_of({"main": "甲<|im_end|>", "branches": [{"prompt": "<|im_start|>", "answer": "乙<|im_end|>丙"}]})
    assert tree.quoted and not tree_of({"main": "甲", "branches": ["乙"]}).quoted
    assert STOP_ID not in tree.trunk and tree.branches[0].target.tolist().count(STOP_ID) == 1
    assert TOKENIZER.decode(tree.branches[0].target[:-1].tolist()) == "乙<|im_end|>丙"


def test_what_the_tokenizer_puts_before_a_text_stands_before_the_trunk_alone():
    tokenizer = Tokenizer.from_str(TOKENIZER.to_str())
    begin = tokenizer.token_to_id("<|endoftext|>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"<|endoftext|> $A {STOP}", special_tokens=[("<|endoftext|>", begin), (STOP, STOP_ID)]
    )
    tree, plain = (tree_of({"main": "甲", "branches": ["乙"]}, form) for form in (make_form(tokenizer=tokenizer), FORM))
    assert tree.trunk.tolist() == [begin, *plain.trunk.tolist()]
    assert tree.branches[0].ids.tolist() == plain.branches[0].ids.tolist()


def test_padding_that_a_tokenizer_was_saved_with_is_no_part_of_a_text():
    tokenizer = Tokenizer.from_str(TOKENIZER.to_str())
    tokenizer.enable_padding(direction="left", length=8, pad_id=STOP_ID, pad_token=STOP)
    padded, plain = (tree_of({"main": "甲", "branches": ["乙"]}, form) for form in (make_form(tokenizer=tokenizer), FORM))
    assert padded.trunk.tolist() == plain.trunk.tolist() and padded.branches[0].ids.tolist() == plain.branches[0].ids.tolist()


# ----------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(("row", "template", "reason"), [
    ({"main": [SYSTEM], "branches": [asked("几点？", "七点。")]}, None, "no chat template"),
    ({"main": [SYSTEM], "branches": [asked("一", "二") + asked("三", "四")]}, FORGETFUL, "branch 1 has answers to a history that"),
    ({"main": [SYSTEM], "branches": [asked("一", "二")]}, "{{ raise_exception('no system') }}", "the chat template refuses it"),
    ({"main": [SYSTEM], "branches": [asked("一", "二")]}, "{{ messages|length }}", "does not write a question as it is"),
    ({"main": [SYSTEM], "branches": [asked("一二三", "四")]}, "{{ messages[1].content|length }}" + CHATML, "writes main anew for branch 1"),
])  # fmt: skip
def test_rows_that_a_template_cannot_write(row, template, reason):
    with pytest.raises(BadRow) as error:
        tree_of(row, make_form(template=template))
    assert reason in str(error.value)


def test_openings_of_another_kind_than_the_trunk_are_refused():
    for main, opening in (("甲", [{"role": "user", "content": "乙"}]), ([SYSTEM], "乙"), ([SYSTEM], Begun(text="乙"))):
        with pytest.raises(BadRow):
            FORM.opened(main, [opening])


def test_a_text_that_a_normaliser_takes_away_is_refused():
    tokenizer = Tokenizer.from_str(TOKENIZER.to_str())
    tokenizer.normalizer = normalizers.Replace("空", "")
    form = make_form(tokenizer=tokenizer)
    for row, what in (
        ({"main": "空", "branches": ["乙"]}, "main"), ({"main": "甲", "branches": ["乙", "空"]}, "the answer of branch 2"),
        ({"main": "甲", "branches": [{"prompt": "空", "answer": "乙"}]}, "the prompt of branch 1"), ({"text": "空空"}, "main"),
    ):  # fmt: skip
        with pytest.raises(BadRow, match=f"{what} has no token"):
            tree_of(row, form)


def test_the_fork_is_one_token():
    assert make_form(Branches(fork="<|fim_pad|>")).fork == TOKENIZER.token_to_id("<|fim_pad|>")
    with pytest.raises(UserError, match=r"branches\.fork: got '天地玄黄', which is \d tokens"):
        make_form(Branches(fork="天地玄黄"))


@pytest.mark.parametrize("eos", [None, "</s>"])
def test_a_base_without_a_stop_token_is_refused(eos):
    with pytest.raises(UserError, match="base: got .*eos_token"):
        BranchFormat(TOKENIZER, SETTINGS[0], eos_token=eos, chat=None)


def test_the_proof_decodes_what_is_learned_and_notices_what_is_lost():
    rows = [
        {"main": "甲", "branches": ["Ab 乙", {"prompt": "问", "answer": "丙\n"}]}, {"text": "甲乙 Cd"},
        {"main": [SYSTEM], "branches": [asked("几点？", "Seven.")]},
    ]  # fmt: skip
    assert [FORM.prove(parse_row(row, "rows.jsonl:1")) for row in rows] == [2, 1, 1]
    lossy = Tokenizer.from_str(TOKENIZER.to_str())
    lossy.normalizer = normalizers.Lowercase()
    for row in rows:
        with pytest.raises(UserError, match="rows.jsonl:1"):
            make_form(tokenizer=lossy).prove(parse_row(row, "rows.jsonl:1"))
