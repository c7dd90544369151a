"""The base's perplexity of continuations against transformers' own loss, text by text, adapters on and off."""

from __future__ import annotations

import math

import pytest
import torch
from peft import LoraConfig, get_peft_model

from stylora.evaluate.fluency import continuation, fluency
from stylora.forest import visible
from stylora.model.forest_model import ForestModel

PAIRS = [("他推开门，", "走了出去。"), ("雨", "下了一整夜，谁也没有睡。"), ("山路越走越窄，" * 3, "停"), ("那天", ""), ("", "无人知道")]


@pytest.fixture
def bare(random_model, tokenizer) -> ForestModel:
    return ForestModel(random_model("Qwen3"), words=len(tokenizer))


@pytest.fixture
def adapted(random_model, tokenizer) -> ForestModel:
    """The same base with an adapter that changes much."""
    model = random_model("Qwen3")
    peft = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", lora_dropout=0.3))
    torch.manual_seed(1)
    for name, parameter in peft.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=3.0)
    return ForestModel(model, words=len(tokenizer)).train()


@pytest.fixture
def reference(random_model, tokenizer) -> list[tuple[float, int]]:
    """(nats, tokens) of each continuation: transformers' loss with the prompt's labels at -100, one text at a time."""
    model = random_model("Qwen3")
    found = []
    for prompt, text in PAIRS:
        own, ids = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in (prompt, text))
        count = len(ids) if prompt else len(ids) - 1
        if count == 0:
            found.append((0.0, 0))
            continue
        labels = [-100] * len(own) + ids
        with torch.no_grad():
            loss = model(input_ids=torch.tensor([own + ids]), labels=torch.tensor([labels])).loss.item()
        found.append((loss * count, count))
    return found


@pytest.mark.parametrize("kind", ["bare", "adapted"])
@pytest.mark.parametrize("tokens_at_once", [1, 64, 8192])
def test_equals_transformers_loss_on_the_continuation(kind, tokens_at_once, request, tokenizer, reference):
    found = fluency(request.getfixturevalue(kind), tokenizer, PAIRS, tokens_at_once=tokens_at_once)
    assert found.nats == pytest.approx([nats for nats, _ in reference], rel=1e-4)
    assert found.tokens.tolist() == [count for _, count in reference]
    assert found.characters.tolist() == [len(text) for _, text in PAIRS]
    nats = sum(nats for nats, _ in reference)
    assert found.perplexity == pytest.approx(math.exp(nats / sum(count for _, count in reference)), rel=1e-4)
    assert found.perplexity_per_character == pytest.approx(math.exp(nats / sum(len(text) for _, text in PAIRS)), rel=1e-4)


def test_the_adapter_would_have_said_otherwise_and_is_back_afterwards(adapted, tokenizer, reference):
    ids = torch.arange(3, 20)[None]
    before = adapted.eval().model(input_ids=ids).logits
    adapted.train()
    fluency(adapted, tokenizer, PAIRS)
    assert adapted.training and all(module.training for module in adapted.modules())
    assert torch.equal(adapted.eval().model(input_ids=ids).logits, before)
    one = continuation(*(tokenizer(part)["input_ids"] for part in PAIRS[0]))
    with torch.no_grad():
        logits = adapted.model(input_ids=torch.tensor(one.forest.ids).long()[None]).logits[0].log_softmax(-1)
    own = -logits[one.edges.source.tolist(), one.edges.target.tolist()].sum().item()
    assert abs(own - reference[0][0]) > 0.5


def test_prompts_as_user_turns(bare, tokenizer):
    with_template = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|im_end|>")
    with_template.chat_template = "{% for m in messages %}[{{ m.content }}]{% endfor %}>"
    as_turns = fluency(bare, with_template, PAIRS[:3], chat=True)
    written_out = fluency(bare, tokenizer, [(f"[{prompt}]>", text) for prompt, text in PAIRS[:3]])
    assert as_turns.nats == pytest.approx(written_out.nats, rel=1e-6)
    assert as_turns.nats != pytest.approx(fluency(bare, tokenizer, PAIRS[:3]).nats, rel=1e-3)


def test_edges_are_the_steps_onto_the_continuation():
    sample = continuation([7, 8], [3, 4])
    assert sample.forest.ids.tolist() == [7, 8, 3, 4] and visible(sample.forest).sum() == 10
    assert list(zip(sample.edges.source.tolist(), sample.edges.target.tolist(), strict=True)) == [(1, 3), (2, 4)]
    assert sample.edges.weight.tolist() == [1, 1]
    assert len(continuation([7], []).edges) == 0 == len(continuation([], [3]).edges) == len(continuation([], []).edges)
    assert continuation([], [3, 4]).edges.source.tolist() == [0]
