"""What is said to the model is what its template makes of the conversation; and every command, with what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.run.stacked import CHATML, FP32, write_chat_base, write_stacks
from transformers import AutoTokenizer

from stylora.errors import UserError
from stylora.run.conversation import COMMANDS, Talk
from stylora.run.folder import write_json
from stylora.run.loaded import LoadedModel

TEMPLATES = Path(__file__).parents[1] / "samples" / "templates"


@pytest.fixture(scope="module")
def base(tmp_path_factory, base_folder) -> Path:
    return write_chat_base(base_folder, tmp_path_factory.mktemp("chat") / "base")


@pytest.fixture(scope="module")
def stacks(tmp_path_factory, base) -> Path:
    """`instruct` was taught with a system prompt, `letters` with another, `style` without conversations."""
    folder = write_stacks(base, tmp_path_factory.mktemp("stacks"))
    write_json(folder / "instruct" / "task.json", {"system": "写武侠。"})
    write_json(folder / "letters" / "task.json", {"system": "写信。"})
    return folder


@pytest.fixture(scope="module")
def loaded(base) -> LoadedModel:
    return LoadedModel(str(base), FP32)


@pytest.fixture
def stacked(stacks) -> LoadedModel:
    return LoadedModel(str(stacks / "instruct"), FP32)


def talk_with(loaded: LoadedModel, *, system: str | None = None, seed: int = 0, new: int = 40) -> Talk:
    return Talk(loaded, system=system, seed=seed, max_new_tokens=new)


def refused(talk: Talk, line: str) -> str:
    """What is said of a command that changes nothing."""
    before = (talk.exchanges[:], talk.system, talk.seed, talk.number, talk.bare, talk.over, talk.loaded.weights, talk.loaded.found)
    with pytest.raises(UserError) as error:
        talk.command(line)
    after = (talk.exchanges, talk.system, talk.seed, talk.number, talk.bare, talk.over, talk.loaded.weights, talk.loaded.found)
    assert before == after
    return str(error.value)


# ------------------------------------------------------------------------------------------------------- what is asked


@settings(max_examples=20)
@given(st.lists(st.tuples(st.text("剑ab \n", min_size=1, max_size=3), st.text("光。", min_size=1, max_size=3)), max_size=4), st.booleans())
def test_the_tokens_are_those_of_transformers(base, loaded, said, systemic):
    talk = talk_with(loaded, system="你是剑客。" if systemic else "")
    talk.exchanges = list(said)
    messages = [{"role": "system", "content": "你是剑客。"}] if systemic else []
    for question, answer in said:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    messages.append({"role": "user", "content": "然后？"})
    tokenizer = AutoTokenizer.from_pretrained(base)
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert talk.ask("然后？").ids == expected


def test_special_tokens_that_a_user_writes_stay_text(base, loaded):
    tokenizer = AutoTokenizer.from_pretrained(base)
    ids = talk_with(loaded).ask("<|im_end|>").ids
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_end|>")) == 1  # the template's own
    assert tokenizer.decode(ids).count("<|im_end|>") == 2


def test_a_stage_is_asked_as_it_was_taught(stacks, stacked):
    assert talk_with(stacked).messages() == [{"role": "system", "content": "写武侠。"}]
    assert talk_with(stacked, system="").messages() == []
    assert talk_with(stacked, system="你好").messages() == [{"role": "system", "content": "你好"}]
    assert talk_with(LoadedModel(str(stacks / "style"), FP32)).messages() == []


def test_thoughts_of_earlier_answers_are_left_to_the_template(base_folder, tmp_path):
    template = (TEMPLATES / "qwen3.jinja").read_text(encoding="utf-8")
    base = write_chat_base(base_folder, tmp_path / "base", template)
    tokenizer = AutoTokenizer.from_pretrained(base)
    stacks = write_stacks(base, tmp_path / "stacks")
    write_json(stacks / "instruct" / "task.json", {})
    write_json(stacks / "letters" / "task.json", {"reasoning": True, "chat_template_kwargs": {"enable_thinking": True}})
    opened = "<|im_start|>assistant\n"
    for name, end in (("instruct", "<think>\n\n</think>\n\n"), ("letters", opened), ("style", opened)):
        talk = talk_with(LoadedModel(str(stacks / name), FP32))
        talk.keep("一", "<think>\n想\n</think>\n\n二")
        text = tokenizer.decode(talk.ask("三").ids)
        assert "想" not in text and "二" in text and text.endswith(end), name


def test_the_oldest_exchanges_are_left_out_once_there_is_no_room(loaded):
    talk = talk_with(loaded, system="你")
    seen = []
    for number in range(8):
        asked = talk.ask(f"{number} " + "问" * 12)
        assert len(asked.ids) + 40 <= loaded.base.context
        seen.append((asked.left_out, talk.left_out))
        talk.keep(f"{number} " + "问" * 12, "答")
    assert [left_out for left_out, _ in seen].count(True) == 1 and seen[-1][1] > 1
    assert [count for _, count in seen] == sorted(count for _, count in seen)
    assert talk.messages()[0] == {"role": "system", "content": "你"} and len(talk.messages()) == 17  # nothing is forgotten
    first = next(number for number, (left_out, _) in enumerate(seen) if left_out)
    assert seen[first - 1] == (False, 0) and len(talk._ids("7 " + "问" * 12, talk.left_out - 1)) + 40 > loaded.base.context


def test_a_question_that_does_not_fit_is_refused_and_nothing_is_lost(loaded):
    talk = talk_with(loaded)
    talk.keep("一", "二")
    with pytest.raises(UserError, match=r"^question: got 3\d\d tokens, expected at most 255, one less than the model's"):
        talk.ask("问" * 100)
    assert (talk.exchanges, talk.left_out, talk.number) == ([("一", "二")], 0, 0)
    assert talk.ask("问" * 70).left_out  # less room than for a whole answer, with nothing older to leave out


def test_what_the_template_refuses_is_told(base_folder, tmp_path):
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    base = write_chat_base(base_folder, tmp_path / "base", refuses + CHATML)
    with pytest.raises(UserError, match="^question: got the chat template refuses it: System role not supported"):
        talk_with(LoadedModel(str(base), FP32), system="你").ask("好")


def test_no_template_no_conversation(base_folder):
    with pytest.raises(UserError, match="no chat template"):
        talk_with(LoadedModel(str(base_folder), FP32))


def test_every_answer_has_a_number_of_its_own(loaded):
    talk = talk_with(loaded, seed=3)
    assert [talk.ask("一").number, talk.ask("一").number] == [0, 1]
    talk.keep("一", "二")
    talk.command("/undo")
    assert talk.ask("一").number == 2
    assert talk.command("/seed 7") == "seed 7" and (talk.seed, talk.ask("一").number) == (7, 0)


def test_an_answer_without_words_is_none(loaded):
    talk = talk_with(loaded)
    assert not talk.keep("一", " \n") and talk.exchanges == []
    assert talk.keep("一", " 二\n") and talk.exchanges == [("一", " 二\n")]


# -------------------------------------------------------------------------------------------------------- the commands


def test_weights_by_name(stacked):
    talk = talk_with(stacked)
    assert talk.command("/style 0.5") == "style has weight 0.5"
    assert talk.command("/instruct   -1e-1") == "instruct has weight -0.1"
    assert stacked.weights == {"style": 0.5, "instruct": -0.1}
    for line in ("/style", "/style viel", "/style nan", "/style inf", "/style 0.5 0.6"):
        assert refused(talk, line).startswith("/style: got ") and refused(talk, line).endswith("as in /style 0.5")


def test_unknown_commands_are_told_with_the_nearest(stacked):
    talk = talk_with(stacked)
    assert refused(talk, "/stlye 0.5") == "/stlye: got no command, expected one of those of /help; did you mean '/style'?"
    assert refused(talk, "/rest").endswith("did you mean '/reset'?")
    assert "one of: /base" in refused(talk, "/") and "one of: /base" in refused(talk, "/usr/bin 是什么")


def test_stack_shows_and_swaps_and_what_is_refused_changes_nothing(stacks, stacked):
    talk = talk_with(stacked)
    talk.keep("一", "二")
    talk.command("/style 0.5")
    shown = talk.command("/stack").splitlines()
    assert [line.split()[:3] for line in shown[1:]] == [["style", "weight", "0.5"], ["instruct", "weight", "1"]]
    assert "nowhere" in refused(talk, f"/stack {stacks / 'nowhere'}")
    assert "expected" in refused(talk, f"/stack {stacks}@stile=1") and talk.system == "写武侠。"
    shown = talk.command(f"/stack {stacks / 'letters'}@style=0.2")
    assert stacked.weights == {"style": 0.2, "letters": 1} and "weight 0.2" in shown
    assert talk.system == "写信。" and talk.exchanges == [("一", "二")]
    talk.command("/system 我的")
    talk.command(f"/stack {stacks / 'instruct'}")
    assert talk.system == "我的"  # what was asked for stays


def test_a_stack_whose_task_is_broken_is_not_put_on(stacks, stacked, tmp_path, base):
    broken = write_stacks(base, tmp_path / "broken")
    (broken / "letters" / "task.json").write_text("{", encoding="utf-8")
    assert "broken file" in refused(talk_with(stacked), f"/stack {broken / 'letters'}")


def test_base_pauses_the_adapters(stacked, loaded):
    talk = talk_with(stacked)
    assert "off" in talk.command("/base") and talk.bare and "adapters off" in talk.command("/stack")
    assert "on" in talk.command("/base") and not talk.bare
    assert "no adapters" in refused(talk_with(loaded), "/base")


def test_system_reset_undo_help_exit(stacked):
    talk = talk_with(stacked)
    assert talk.command("/system") == "system prompt: 写武侠。"
    assert talk.command("/system 一 二\n三") == "system prompt: 一 二\n三" and talk.system == "一 二\n三"
    assert talk.command('/system ""') == "no system prompt" == talk.command("/system")
    assert refused(talk, "/undo").startswith("/undo: got nothing said yet")
    talk.exchanges, talk.left_out = [("一", "二"), ("三", "四")], 2
    assert talk.command("/undo") == "taken back: 三" and talk.exchanges == [("一", "二")] and talk.left_out == 1
    talk.command("/reset")
    assert (talk.exchanges, talk.left_out, talk.system) == ([], 0, "")
    told = talk.command("/help")
    assert all(f"/{word}" in told for word in COMMANDS) and "style, instruct" in told
    assert talk.command("/exit") == "" and talk.over


@pytest.mark.parametrize("given", ["", "x", "-1", "1.5", "²"])
def test_seeds_are_numbers(loaded, given):
    assert refused(talk_with(loaded, seed=4), f"/seed {given}").startswith("/seed: got ")


def test_saved_rows_are_appended(loaded, tmp_path):
    talk, file = talk_with(loaded, system="你"), tmp_path / "我的 talks.jsonl"
    assert "nothing said yet" in refused(talk, f"/save {file}") and not file.exists()
    talk.exchanges, talk.left_out = [("一", "二\n三"), ("四", "五")], 1
    file.write_text('{"messages": []}', encoding="utf-8")  # without an end of line
    assert talk.command(f"/save {file}") == f"saved 2 exchanges to {file}"
    talk.command(f"/save {file}")
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    said = [("system", "你"), ("user", "一"), ("assistant", "二\n三"), ("user", "四"), ("assistant", "五")]
    assert rows == [{"messages": []}, *[{"messages": [{"role": role, "content": text} for role, text in said]}] * 2]
    assert refused(talk, "/save").endswith("a file that ends in .jsonl") and "recipe.yaml" in refused(talk, "/save recipe.yaml")
    assert "no such file" in refused(talk, f"/save {tmp_path / 'nowhere' / 'a.jsonl'}")
    (tmp_path / "folder.jsonl").mkdir()
    assert "is a directory" in refused(talk, f"/save {tmp_path / 'folder.jsonl'}")
