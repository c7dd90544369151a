"""Chat data: whole conversations are held out, equal rows together; nothing is cut; all that is not used is named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from stylora.errors import UserError
from stylora.samples.chat import ChatFormat
from stylora.samples.chat_data import prepare_chat
from stylora.samples.objective import Objective, check_kind
from stylora.samples.settings import Data
from stylora.samples.template import ChatTemplate

CHATML = """{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""


@pytest.fixture
def form(tokenizer):
    return make_form(tokenizer, CHATML)


def make_form(tokenizer, source):
    template = ChatTemplate(source, special=["<|im_start|>", "<|im_end|>"], variables={})
    return ChatFormat(template, tokenizer.backend_tokenizer, tokenizer.eos_token)


def write(path: Path, rows: list[object]) -> str:
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows), encoding="utf-8")
    return str(path)


def pair(number: int) -> dict[str, str]:
    return {"prompt": f"第{number}问", "completion": "答" * (1 + number % 5)}


def prepare(form, train, **settings):
    return prepare_chat(Data(format="chat", train=train, **settings), form=form, context=512)


def told(data) -> list[list[int]]:
    return [data.sample(index).forest.ids.tolist() for index in range(len(data))]


def test_epochs_hold_every_conversation_once(form, tmp_path):
    data = prepare(form, write(tmp_path / "rows.jsonl", [pair(n) for n in range(40)]), validation=0.1, seed=3)
    assert len(data) == 36 and len(data.validation_samples["answers"]) == 4
    first, second = data.epoch(0), data.epoch(1)
    assert sorted(first) == sorted(second) == list(range(36)) and first.tolist() != second.tolist()
    assert data.epoch(0).tolist() == first.tolist()
    assert data.lengths.tolist() == [len(data.sample(i)) for i in range(36)]
    assert {data.part(i) for i in range(36)} == {"answers"} and data.source(0).startswith((tmp_path / "rows.jsonl").as_posix() + ":")
    assert data.branches is None
    summary = data.summary
    assert (summary.conversations, summary.held, summary.answers, summary.trees) == (36, 4, 36, 0)
    assert summary.epoch_tokens == data.lengths.sum()
    assert summary.epoch_answer_tokens == sum(data.sample(i).edges.weight.sum() for i in range(36))
    assert summary.warnings == () and json.dumps(summary.as_json())


def test_the_split_is_the_seeds_and_equal_rows_stay_together(form, tmp_path):
    rows = [pair(n % 20) for n in range(60)]
    path = write(tmp_path / "rows.jsonl", rows)
    sides = {}
    for seed in (0, 0, 1):
        data = prepare(form, path, validation=0.2, seed=seed)
        held = [sample.forest.ids.tolist() for sample in data.validation_samples["answers"]]
        assert len(held) == 12 and len(data) == 48, "a fifth of the different ones, each three times"
        assert not {tuple(ids) for ids in held} & {tuple(ids) for ids in told(data)}
        assert sides.setdefault(seed, held) == held
    assert sides[0] != sides[1]
    ids = [prepare(form, path, validation=0.0).sample_id(i) for i in range(60)]
    assert len(set(ids)) == 60 and len({name for name, _ in ids}) == 20 and {copy for _, copy in ids} == {0, 1, 2}
    assert all(0 <= name < 2**63 for name, _ in ids)
    assert len(prepare(form, path, validation=0.0).validation_samples["answers"]) == 0
    assert len(prepare(form, write(tmp_path / "one.jsonl", [pair(1)]), validation=0.5)) == 1, "never all of it"


def test_a_file_of_its_own_is_held_out(form, tmp_path):
    write(tmp_path / "train.jsonl", [pair(n) for n in range(6)])
    held = write(tmp_path / "val.jsonl", [pair(n) for n in range(4, 8)])
    data = prepare(form, str(tmp_path), validation=[held])
    assert len(data) == 6 and len(data.validation_samples["answers"]) == 4, "the file in the same folder is not trained on"
    assert data.validation_characters["answers"] == [5, 1, 2, 3]
    assert data.summary.warnings[0].startswith("2 held-out conversations also stand in the training data")
    with pytest.raises(UserError, match="missing.jsonl"):
        prepare(form, str(tmp_path), validation=["missing.jsonl"])


def test_a_long_row_is_refused_and_never_cut(form, tmp_path):
    rows = [pair(1), {"prompt": "问", "completion": "长" * 100}, "{", pair(2)]
    whole = prepare(form, write(tmp_path / "rows.jsonl", rows), validation=0.0)
    longest = int(whole.lengths.max())
    assert len(whole) == 3 and longest > 300
    assert len(prepare(form, str(tmp_path / "rows.jsonl"), validation=0.0, max_length=longest)) == 3
    data = prepare(form, str(tmp_path / "rows.jsonl"), validation=0.0, max_length=longest - 1)
    assert len(data) == 2 and told(data) == [ids for ids in told(whole) if len(ids) < longest]
    assert [(reject.origin.rpartition(":")[2], reject.reason.partition(" (")[0]) for reject in data.rejects] == [
        ("2", f"{longest} tokens, more than {longest - 1}; an answer is never cut"), ("3", "not valid JSON"),
    ]  # fmt: skip
    messages = [{"role": "user", "content": "问"}, {"role": "assistant", "content": "长" * 100}]
    assert data.rejects[0].as_json()["row"] == {"messages": messages}
    with pytest.raises(UserError, match="data.max_length: got 513 tokens, expected at most 512 tokens, the context of the base"):
        prepare(form, str(tmp_path / "rows.jsonl"), max_length=513)


def test_nothing_left_names_the_first_reasons(form, tmp_path):
    path = write(tmp_path / "rows.jsonl", ["{", {"messages": []}])
    reasons = "rows.jsonl:1: not valid JSON.*rows.jsonl:2: `messages` is empty"
    with pytest.raises(UserError, match=f"data.train: got no usable conversation .*{reasons}"):
        prepare(form, path)


def test_a_record_of_several_paths_is_one_sample(tokenizer, tmp_path):
    turns = [{"role": role, "content": text} for role, text in (("user", "一"), ("assistant", "二"), ("user", "三"), ("assistant", "四"))]
    path = write(tmp_path / "rows.jsonl", [{"messages": turns}, pair(1)])
    anew = "+ (message.content if loop.last or message.role == 'user' else '略') +"
    form = make_form(tokenizer, CHATML.replace("+ message.content +", anew))
    data = prepare(form, path, validation=0.0)
    assert len(data) == 2 and data.summary.trees == 1 and data.summary.answers == 3
    sample = data.sample(0)
    assert not sample.forest.is_chain and data.lengths[0] == len(sample) and set(sample.edges.weight.tolist()) == {1.0}
    assert data.branches is not None and data.branches.endswith("rows.jsonl:1")
    last = prepare(form, path, validation=0.0, turns="last")
    assert last.branches is None and last.summary.answers == 2 and last.fingerprint != data.fingerprint
    assert data.proof() == "answers decode to answer + stop: 3 of 2 rows"


def test_the_fingerprint_is_of_what_is_trained(form, tmp_path):
    rows = [pair(n) for n in range(10)]
    prints = {
        name: prepare(form, write(tmp_path / f"{name}.jsonl", changed), seed=seed).fingerprint
        for name, changed, seed in (
            ("a", rows, 0), ("copy", rows, 0), ("seed", rows, 1), ("less", rows[:-1], 0),
            ("weight", [*rows[:-1], {"messages": [
                {"role": "user", "content": rows[-1]["prompt"]}, {"role": "assistant", "content": rows[-1]["completion"], "weight": 2},
            ]}], 0),
        )
    }  # fmt: skip
    assert prints["a"] == prints["copy"] and len(set(prints.values())) == 4


def test_characters_and_edges_of_the_held_out(form, tmp_path):
    data = prepare(form, write(tmp_path / "rows.jsonl", [pair(n) for n in range(10)]), validation=0.3)
    for sample, count in zip(data.validation_samples["answers"], data.validation_characters["answers"], strict=True):
        assert len(sample.edges) == 3 * count + 1, "three bytes a character, and the stop token"
        assert np.all(sample.edges.weight == 1)


# ------------------------------------------------------------------------------------- forms of answers, groups, fractions


def alias(number: int, wording: int) -> dict[str, str]:
    name = "".join(chr(0x4E00 + (number * 7919 + k * 131) % 9000) for k in range(8))
    return {"prompt": ("{}", "{}？", "请问{}", "{}是哪种")[wording].format(name), "completion": f" L{number % 3} ", "alias": name}


def test_groups_lie_on_one_side_and_a_torn_split_is_told(form, tmp_path):
    path = write(tmp_path / "rows.jsonl", [alias(n, w) for n in range(30) for w in range(4)])
    torn = prepare(form, path, validation=0.2, answers="label")
    assert (torn.summary.groups, torn.summary.compared) == (0, 24) and torn.summary.near_copies > 12
    (told_,) = torn.summary.warnings
    assert told_.startswith("the split leaks: ") and "; set data.group_by to the key of the rows" in told_
    whole = prepare(form, path, validation=0.2, answers="label", group_by="alias")
    train, held = ({row.group for row in rows} for rows in (whole.train_rows, whole.held_rows))
    assert (len(train), len(held), train & held) == (24, 6, set()) and None not in train | held
    assert (whole.summary.groups, whole.summary.warnings) == (30, ()) and whole.summary.near_copies < 8
    assert (len(whole.train_rows), len(whole.held_rows)) == (len(whole), whole.summary.held)
    with pytest.raises(UserError, match="data.group_by: got 'alais', which no row has"):
        prepare(form, path, group_by="alais")
    renamed = [{**{k: v for k, v in alias(n, w).items() if k != "alias"}, "group": n} for n in range(30) for w in range(4)]
    again = prepare(form, write(tmp_path / "again.jsonl", renamed), validation=0.2)
    assert again.summary.groups == 30 and not {row.group for row in again.train_rows} & {row.group for row in again.held_rows}
    one = prepare(form, write(tmp_path / "one.jsonl", [{**pair(n), "group": "A"} for n in range(4)]), validation=0.5)
    assert len(one) == 4 and one.summary.warnings[0].startswith("nothing is held out: all rows are equal or of one group")


def test_files_of_their_own_that_share_groups_are_told(form, tmp_path):
    train = write(tmp_path / "train.jsonl", [alias(n, 0) for n in range(8)])
    held = write(tmp_path / "val.jsonl", [alias(n, 3) for n in range(6, 10)])
    assert prepare(form, train, validation=[held], group_by="alias").summary.warnings == (
        "2 held-out conversations are of groups that also stand in the training data: they tell nothing about unseen ones",
    )  # fmt: skip
    held = write(tmp_path / "val.jsonl", [alias(n, 1) for n in range(6)])
    (told_,) = prepare(form, train, validation=[held]).summary.warnings
    assert told_.startswith("the split leaks: 100% of 6 held-out") and told_.endswith("hold out rows that were made from something else")


def test_a_fraction_is_part_of_a_larger_one_and_holds_out_the_same(form, tmp_path):
    path = write(tmp_path / "rows.jsonl", [pair(n) for n in range(40)])
    whole = prepare(form, path, validation=0.1)
    used = {fraction: prepare(form, path, validation=0.1, fraction=fraction) for fraction in (0.25, 0.5, 1.0)}
    assert [len(data) for data in used.values()] == [9, 18, 36] and used[1.0].fingerprint == whole.fingerprint
    origins = [[row.origin for row in data.train_rows] for data in used.values()]
    assert set(origins[0]) < set(origins[1]) < set(origins[2]) and origins[0] == [name for name in origins[2] if name in origins[0]]
    assert len({data.fingerprint for data in used.values()}) == 3
    assert all(data.held_rows == whole.held_rows for data in used.values())
    assert used[0.25].summary.conversations == 9 and sorted(used[0.25].epoch(0)) == list(range(9))


def test_labels_are_counted_and_contradictions_named(form, tmp_path):
    rows = [{"prompt": f"问{chr(0x4E00 + n * 37)}", "completion": f" {'甲乙丙'[min(n % 5, 2)]}\n"} for n in range(20)]
    path = write(tmp_path / "rows.jsonl", [*rows, {**rows[0], "completion": "丁"}, rows[0]])
    data = prepare(form, path, validation=0.0, answers="label")
    assert list(data.summary.balance.items()) == [("丙", 12), ("甲", 5), ("乙", 4), ("丁", 1)]
    name = (tmp_path / "rows.jsonl").as_posix()
    assert data.summary.contradictions == ((f"{name}:1", f"{name}:22", f"{name}:21"),)
    assert data.summary.warnings == (
        f"1 question with different answers, of which a model can learn one: {name}:1, {name}:22, {name}:21",
    )  # fmt: skip
    assert json.loads(json.dumps(data.summary.as_json()))["balance"]["丁"] == 1
    assert prepare(form, path, validation=0.0).summary.balance == {}, "texts are not counted"


def test_json_is_learned_in_one_form_and_what_is_none_is_refused(form, tmp_path):
    good, same = '{"b":1,"a":["\\u516c"]}', '{"a": ["公"], "b": 1}'
    rows = [{"prompt": "甲", "completion": good}, {"prompt": "乙", "completion": "公交车"}, {"prompt": "甲", "completion": same}]
    path = write(tmp_path / "rows.jsonl", rows)
    data = prepare(form, path, validation=0.0, answers="json")
    assert told(data)[0] == told(data)[1] and data.train_rows[0].messages[1]["content"] == same
    (reject,) = data.rejects
    assert reject.origin.endswith("rows.jsonl:2") and reject.reason.startswith("the answer of message 2 is no JSON: Expecting value")
    assert not data.summary.contradictions and prepare(form, path, validation=0.0).summary.contradictions
    assert data.proof() == "answers decode to answer + stop: 2 of 2 rows"


def test_a_label_that_is_asked_for_and_never_taught_is_told(form, tmp_path):
    train = write(tmp_path / "train.jsonl", [{"prompt": f"问{chr(0x4E00 + n * 37)}", "completion": "甲乙"[n % 2]} for n in range(6)])
    asked = [{"prompt": f"{chr(0x7000 + n * 41)}呢", "completion": label} for n, label in enumerate(["甲", "丙 ", "丁", "乙"])]
    held = write(tmp_path / "held.jsonl", asked)
    (warning,) = prepare(form, train, validation=[held], answers="label").summary.warnings
    assert warning == (
        "2 held-out conversations have answers that no training row has, and that can't be learned; "
        f"the first is {(tmp_path / 'held.jsonl').as_posix()}:2"
    )
    assert prepare(form, train, validation=[held]).summary.warnings == (), "a text may be new"
    write(tmp_path / "held.jsonl", asked[:2])
    (warning,) = prepare(form, train, validation=[held], answers="label").summary.warnings
    assert warning.startswith("1 held-out conversation has an answer that")
    write(tmp_path / "held.jsonl", asked[:1])
    assert prepare(form, train, validation=[held], answers="label").summary.warnings == ()


def test_a_training_file_that_is_held_out_leaves_nothing_to_learn(form, tmp_path):
    path = write(tmp_path / "rows.jsonl", [pair(n) for n in range(4)])
    with pytest.raises(UserError, match="data.train: got only files that are held out, expected a file of training rows beside them"):
        prepare(form, path, validation=[path])
    write(tmp_path / "broken.jsonl", ["{"])
    with pytest.raises(UserError, match="data.train: got no usable conversation .*broken.jsonl:1: not valid JSON"):
        prepare(form, str(tmp_path), validation=[path])


# ------------------------------------------------------------------------------------------------------- settings


def test_settings_of_the_other_format_are_refused():
    with pytest.raises(UserError, match="data.window: got a value, expected only settings that format `chat` reads: answers, chat_"):
        Data(format="chat", train="x", window=256)
    with pytest.raises(UserError, match="data.turns: got a value, expected only settings that format `novels` reads"):
        Data(train="x", turns="last")
    for name, value in (("answers", "json"), ("group_by", "alias"), ("fraction", 0.5)):
        with pytest.raises(UserError, match=f"data.{name}: got a value, expected only settings that format `text` reads"):
            Data(format="text", train="x", **{name: value})
    for fraction in (0, 1.5):
        with pytest.raises(ValidationError, match="fraction"):
            Data(format="chat", train="x", fraction=fraction)
    with pytest.raises(UserError, match="data.train: got a mapping of styles"):
        Data(format="chat", train={"a": {"train": "x"}})
    with pytest.raises(ValidationError, match="'all' or 'last'"):
        Data(format="chat", train="x", turns="first")


@pytest.mark.parametrize("values", [{}, {"format": "text"}, {"format": "chat", "max_length": 9, "turns": "last", "group_by": "a"}])
def test_settings_load_as_they_are_written(values):
    data = Data(train="x", **values)
    written = data.model_dump(mode="json")
    assert Data(**written) == data and ("window" in written) == (data.format != "chat") == ("turns" not in written)


@pytest.mark.parametrize(("kind", "form", "fits"), [
    (None, "chat", True), ("answers", "chat", True), ("clm", "chat", False), (None, "novels", True), ("span", "text", True),
    ("answers", "text", False),
])  # fmt: skip
def test_answers_are_of_conversations(kind, form, fits):
    objective = Objective() if kind is None else Objective(kind=kind)
    if fits:
        check_kind(objective, form)
    else:
        with pytest.raises(UserError, match=f"objective.kind: got {kind}"):
            check_kind(objective, form)
    assert Objective(**objective.model_dump()) == objective
