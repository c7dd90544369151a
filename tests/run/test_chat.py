"""Conversations through the commands: `data`, `inspect` and `train` on the bundled base read the same rows and say the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from stylora.errors import UserError
from stylora.forest import build_trie
from stylora.model.tokenizer_file import TINY, chat_template, special_tokens
from stylora.recipe.recipe import load_recipe
from stylora.run.plan import open_tokenizer, plan_steps, read_data
from stylora.samples.objective import read_vocabulary

SYSTEM = "把车型归一。只输出一个名称。"
MESSY = Path(__file__).parents[3] / "shared" / "corpus" / "messy"
NAMES = ["公交车", "大巴", "小轿车", "出租车", "摩托", "货车", "垃圾车", "校车", "房车", "皮卡", "卡车", "电动车"]


@pytest.fixture
def rows(tmp_path) -> Path:
    path = tmp_path / "rows.jsonl"
    lines = [
        json.dumps({"messages": [
            {"role": "system", "content": SYSTEM}, {"role": "user", "content": name}, {"role": "assistant", "content": f"Bus {n}"},
        ]}, ensure_ascii=False)
        for n, name in enumerate(NAMES)
    ]  # fmt: skip
    path.write_text("\n".join([*lines, '{"messages": []}', "{"]), encoding="utf-8")
    return path


@pytest.fixture
def chat_recipe(tmp_path, rows) -> Path:
    path = tmp_path / "chat.yaml"
    path.write_text(
        f"base: tiny\nstages:\n  - name: tasks\n    data: {{format: chat, train: '{rows.as_posix()}', validation: 0.2}}\n"
        "    adapter: {r: 4, alpha: 8}\n    prompts: []\n"
        "    train: {samples_per_step: 4, max_steps: 2, save_strategy: 'no', eval_strategy: 'no', report_to: none}\n",
        encoding="utf-8",
    )
    return path


def test_data_names_what_it_refuses(command, rows, chat_recipe):
    shown = command("data", rows).out
    assert f"refused    {rows.as_posix()}:13: `messages` is empty" in shown and f"{rows.as_posix()}:14: not valid JSON" in shown
    found = json.loads(command("data", chat_recipe, "--json").out)
    assert (found["conversations"], found["held"], found["answers"]) == (10, 2, 10)
    assert [reject["where"].rpartition(":")[2] for reject in found["rejects"]] == ["13", "14"]
    assert found["data"]["format"] == "chat" and "window" not in found["data"]


def test_labels_are_counted_and_the_split_is_told(command, rows, chat_recipe):
    shown = command("data", chat_recipe, "data.answers=label", "data.validation=0.2").out
    assert shown.count("label            1  10.0%  Bus ") == 10 and "copies     0 of 2 held-out conversations" in shown
    found = json.loads(command("data", chat_recipe, "--json", "data.answers=label").out)
    assert sum(found["balance"].values()) == 10 and (found["near_copies"], found["compared"], found["contradictions"]) == (0, 2, [])
    many = [{"prompt": f"问{n}", "completion": f"L{n % 30}", "group": n % 40} for n in range(60)] + [{"prompt": "问0", "completion": "L1"}]
    rows.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in many), encoding="utf-8")
    shown = command("data", chat_recipe, "data.answers=label", "data.validation=0").out
    assert "... and 10 more; `stylora data --json` counts them all" in shown
    assert "groups     40 by the key `group`, each on one side of a split" in shown
    assert f"warning    1 question with different answers, of which a model can learn one: {rows.as_posix()}:1" in shown
    rows.write_text(rows.read_text(encoding="utf-8").replace('"group"', '"alias"'), encoding="utf-8")
    shown = command("data", chat_recipe, "data.group_by=alias").out
    assert "groups     40 by the key `alias`, each on one side of a split" in shown
    assert "data.group_by: got 'ailas', which no row has" in command("data", chat_recipe, "data.group_by=ailas").err


@pytest.mark.skipif(not MESSY.is_dir(), reason="the shared corpus is not there")
def test_every_bad_row_of_a_messy_file_is_told_and_the_good_ones_are_read(command):
    found = json.loads(command("data", MESSY / "20_bad_chat.jsonl", "--json", "data.validation=0").out)
    refused = {int(reject["where"].rpartition(":")[2]): reject["reason"] for reject in found["rejects"]}
    assert {4, 5, 6, 7, 8, 9, 10, 11, 12, 24} <= refused.keys() and all(refused.values())
    assert found["conversations"] + len(refused) == 24 and found["answers"] >= found["conversations"] >= 13
    found = json.loads(command("data", MESSY / "22_json_array_not_jsonl.json", "--json", "data.validation=0").out)
    assert (found["conversations"], found["rejects"]) == (6, [])


def test_inspect_draws_the_trie_and_what_it_saves(command, chat_recipe):
    found = json.loads(command("inspect", chat_recipe, "--json", "--samples", 4).out)
    step = found["step"]
    assert step["samples"] == 4 and step["forest_tokens"] < 0.6 * step["tokens"] and step["microbatches"][0]["masked"]
    assert step["tokens"] == sum(len(sample["ids"]) for sample in found["samples"])
    shown = command("inspect", chat_recipe, "--samples", 4).out
    assert f"sharing    {step['forest_tokens']} tokens are computed, {1 - step['forest_tokens'] / step['tokens']:.0%} saved" in shown
    assert f"together  {step['forest_tokens']} tokens instead of {step['tokens']}" in shown
    assert shown.partition("together")[2].count("把车型归一") == 1


def test_steps_are_tries_where_the_base_keeps_branches_apart(chat_recipe):
    recipe = load_recipe(chat_recipe)
    tokenizer = open_tokenizer("tiny")
    data = read_data(recipe, tokenizer)
    stage, vocabulary = recipe.stages[0], read_vocabulary(tokenizer)
    shared = plan_steps(stage, data, vocabulary, packs=True)[0]
    apart = plan_steps(stage, data, vocabulary, packs=False)[0]
    samples = [data.sample(index) for index in data.epoch(0)[:4].tolist()]
    assert shared.forest_tokens == len(build_trie(samples)) < apart.forest_tokens == apart.tokens == shared.tokens
    assert shared.weight == apart.weight == sum(sample.edges.weight.sum() for sample in samples)
    assert not any(batch.causal for batch in shared.batches) and all(batch.causal for batch in apart.batches)


def test_training_runs_and_its_recipe_loads_again(command, chat_recipe, tmp_path):
    out = tmp_path / "run"
    assert command("train", chat_recipe, f"output_dir={out}").code == 0
    lines = [json.loads(line) for line in (out / "tasks" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert any("eval/answers" in line or "eval_answers" in line for line in lines), lines
    again = load_recipe(next((out / "tasks").glob("recipe.yaml")))
    assert again.stages[0].data == load_recipe(chat_recipe).stages[0].data


def test_mistakes(refused, chat_recipe, tmp_path, rows):
    assert "objective.kind: got clm, expected answers" in refused("inspect", chat_recipe, "objective.kind=clm")
    assert "data.window: got a value" in refused("inspect", chat_recipe, "data.window=64")
    assert "data.max_length: got 4096 tokens, expected at most 2048" in refused("data", chat_recipe, "data.max_length=4096")
    base = tmp_path / "plain"
    base.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (base / name).write_bytes((TINY / name).read_bytes())
    message = refused("data", chat_recipe, f"base={base}")
    assert "which has no chat template, expected a base that was made for chat; use its instruct version" in message


def test_trees_need_a_base_that_keeps_branches_apart(chat_recipe, tmp_path):
    talk = [{"role": role, "content": text} for role, text in (("user", "一"), ("assistant", "二"), ("user", "三"), ("assistant", "四"))]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": talk}), encoding="utf-8")
    base = tmp_path / "forgetful"
    base.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (base / name).write_bytes((TINY / name).read_bytes())
    (base / "tokenizer_config.json").write_text(
        json.dumps({
            "eos_token": {"content": "<|im_end|>"},
            "chat_template": [{"name": "default", "template": (
                "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content if loop.last or m.role == 'user' else '' }}<|im_end|>\n"
                "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
            )}],
        }),
        encoding="utf-8",
    )  # fmt: skip
    recipe = load_recipe(chat_recipe, [f"base={base}", "data.validation=0"])
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    data = read_data(recipe, tokenizer)
    with pytest.raises(UserError, match="rows.jsonl:1: got a conversation whose history .* set data.turns: last"):
        plan_steps(recipe.stages[0], data, read_vocabulary(tokenizer), packs=False)
    assert not plan_steps(recipe.stages[0], data, read_vocabulary(tokenizer), packs=True)[0].batches[0].causal
    last = load_recipe(chat_recipe, [f"base={base}", "data.validation=0", "data.turns=last"])
    assert plan_steps(last.stages[0], read_data(last, tokenizer), read_vocabulary(tokenizer), packs=False)[0].batches[0].causal


def test_the_template_of_a_base_without_importing_it():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(TINY)
    assert chat_template("tiny") == tokenizer.chat_template
    assert special_tokens("tiny") == {"eos_token": tokenizer.eos_token, "pad_token": tokenizer.pad_token}


def test_conversations_are_held_to_the_base_too(chat_recipe):
    tokenizer = Tokenizer.from_file(str(TINY / "tokenizer.json"))
    held = load_recipe(chat_recipe, ["objective={kl: {beta: 0.1, sample: 0.5}}"])
    step, again = (plan_steps(held.stages[0], read_data(held, tokenizer), read_vocabulary(tokenizer), packs=True)[0] for _ in range(2))
    assert 0 < step.anchor_weight == again.anchor_weight < step.weight
    plain = load_recipe(chat_recipe)
    assert plan_steps(plain.stages[0], read_data(plain, tokenizer), read_vocabulary(tokenizer), packs=True)[0].anchor_weight == 0
    general = load_recipe(chat_recipe, ["objective={kl: {on: general}}"])
    with pytest.raises(UserError, match="objective.kl.on: got general, expected edges or all"):
        plan_steps(general.stages[0], read_data(general, tokenizer), read_vocabulary(tokenizer), packs=True)
