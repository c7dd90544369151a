"""Conversations on one tree = each of them alone: the loss and every LoRA gradient to 1e-5, from rows through the template to the model.

The reference is plain PEFT and torch's cross-entropy on `labels` with -100, a conversation at a time, in fp32 without dropout.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from stylora.forest import build_trie, pack
from stylora.model.forest_model import ForestModel, to_tensors
from stylora.samples.chat import ChatFormat
from stylora.samples.conversations import conversation
from stylora.samples.template import ChatTemplate

# Drops the thoughts of earlier answers, as Qwen3 does: such a conversation has a path for each answer.
CHATML = """{%- for message in messages %}
{%- set thought = message.reasoning_content if loop.last and message.reasoning_content else '' %}
{{- '<|im_start|>' + message.role + '\\n' + thought + message.content + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""


def talk(system: str | None, *turns: str, **answer: object) -> dict:
    """A row: question, answer, question, answer ...; answer: what else stands in the answers"""
    roles = [{"role": "user"}, {"role": "assistant", **answer}]
    messages = [{**roles[number % 2], "content": text} for number, text in enumerate(turns)]
    return {"messages": [*([{"role": "system", "content": system}] if system else []), *messages]}


S, GAS = "Name the class of the vehicle.", "Name the gas."
CASES = {
    "one shared prompt": [talk(S, "coach", "Bus"), talk(S, "lorry", "Truck"), talk(S, "sedan", "Car")],
    "several prompts": [talk(S, "coach", "Bus"), talk(GAS, "soot", "PM10"), talk(S, "van", "Car"), talk(GAS, "NO", "NOx")],
    "multi-turn": [talk(S, "coach", "Bus", "and a tram?", "Rail"), talk(S, "coach", "Bus", "and a van?", "Car"), talk(S, "van", "Car")],
    "identical prompts, different answers": [talk(S, "coach", "Bus"), talk(S, "coach", "Intercity Bus"), talk(S, "coach", "Bu")],
    "identical rows": [talk(S, "coach", "Bus")] * 3 + [talk(S, "coach", "Bus", weight=0.5)],
    "nothing shared": [talk(None, "a", "b"), {"messages": [{"role": "assistant", "content": "-"}, *talk(None, "c", "d")["messages"]]}],
    "history written anew": [
        talk(S, "coach", "Bus", "and a tram?", "Rail", reasoning_content="hm. "), talk(S, "coach", "Bus", reasoning_content="hm. "),
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def form(tokenizer) -> ChatFormat:
    template = ChatTemplate(CHATML, special=["<|im_start|>", "<|im_end|>"], variables={})
    return ChatFormat(template, tokenizer.backend_tokenizer, tokenizer.eos_token)


@pytest.fixture(scope="module")
def peft_model(random_model):
    """Both matrices random: a fresh B is zero, and with it the gradient of A."""
    peft = get_peft_model(random_model("Qwen3"), LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    for name, parameter in peft.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return peft


def gradients(model) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def apart(peft, paths) -> tuple[float, dict[str, torch.Tensor]]:
    """Each path alone, with labels as every other trainer has them."""
    total = 0.0
    for path in paths:
        logits = peft(input_ids=torch.tensor(path.ids.astype(np.int64))[None]).logits[0]
        loss = logits.new_zeros(())
        for answer in path.answers:
            labels = torch.full((len(path.ids),), -100)
            labels[answer.targets] = torch.tensor(path.ids[answer.targets].astype(np.int64))
            loss = loss + answer.weight * torch.nn.functional.cross_entropy(logits[:-1], labels[1:], reduction="sum")
        loss.backward()
        total += float(loss.detach())
    return total, gradients(peft)


@pytest.mark.parametrize("budget", [70, 4096], ids=["several micro-batches", "one"])
@pytest.mark.parametrize("rows", CASES.values(), ids=CASES)
def test_the_tree_is_the_conversations_one_by_one(rows, budget, form, peft_model):
    read = [conversation(row, origin=f"rows.jsonl:{number}", source="rows") for number, row in enumerate(rows, 1)]
    paths = [form.paths(each) for each in read]
    samples = [form.sample(each) for each in paths]
    expected_loss, expected = apart(peft_model, [path for each in paths for path in each])
    model = ForestModel(peft_model.get_base_model(), words=262)
    loss, batches = 0.0, list(pack(samples, tokens_per_microbatch=budget, share_prefixes=True))
    for batch in batches:
        part = model(to_tensors(batch, torch.device("cpu")))
        part.backward()
        loss += float(part.detach())
    found = gradients(peft_model)
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert found.keys() == expected.keys() and all("lora_" in name for name in found)
    scale = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-5 * gradient.norm() + 3e-7 * scale, name
    if budget == 4096:
        tokens, merged = sum(len(path.ids) for each in paths for path in each), len(build_trie(samples))
        assert len(batches) == 1 and (merged < 0.7 * tokens) == (rows is not CASES["nothing shared"]), "what is shared is computed once"
