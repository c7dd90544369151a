"""The part of a model card that says how an export is used: a program with transformers, one with vLLM, and a server's command line.

What is asked is the stage's first prompt: by the chat template, with the system prompt of training, where it learned conversations.
Knows plain values and a stage's folder, no models.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, StrictUndefined

from stylora.recipe.recipe import Recipe

from .folder import parent_stage
from .open import Found
from .task import read_task

TRANSFORMERS = """\
{% if lora %}
from peft import PeftModel
{% endif %}
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({{ folder | py }})
model = AutoModelForCausalLM.from_pretrained({{ (base if lora else folder) | py }}, dtype="auto")
{% if lora %}
model = PeftModel.from_pretrained(model, {{ folder | py }})
{% endif %}
{% if messages %}
messages = {{ messages | py }}
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True{% if kwargs %}, **{{ kwargs | py }}{% endif %}

)
{% else %}
inputs = tokenizer({{ prompt | py }}, return_tensors="pt")
{% endif %}
written = model.generate(**inputs, max_new_tokens=64)
print(tokenizer.decode(written[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
"""
VLLM = """\
from vllm import LLM, SamplingParams
{% if lora %}
from vllm.lora.request import LoRARequest

llm = LLM(model={{ base | py }}, tokenizer={{ folder | py }}, enable_lora=True, max_lora_rank={{ rank }})
adapter = LoRARequest({{ folder | py }}, 1, {{ folder | py }})
{% else %}

llm = LLM(model={{ folder | py }})
{% endif %}
sampling = SamplingParams(max_tokens=64)
{% if messages %}
messages = {{ messages | py }}
answers = llm.chat(messages, sampling{% if lora %}, lora_request=adapter{% endif %}
{%- if kwargs %}, chat_template_kwargs={{ kwargs | py }}{% endif %})
{% else %}
answers = llm.generate({{ prompt | py }}, sampling{% if lora %}, lora_request=adapter{% endif %})
{% endif %}
print(answers[0].outputs[0].text)
"""


def use(told: Mapping[str, Any], found: Found, name: str, base_path: str, recipes: Mapping[str, Recipe]) -> str:
    """told: what export.json says; found: what was exported; name: of its folder; base_path: what the base opens from"""
    top = found.layers[-1]
    stage, recipe = parent_stage(top.folder), recipes.get(top.name)
    task = None if stage is None else read_task(stage.path)
    prompts = recipe.stages[0].prompts if recipe is not None else []
    prompt = prompts[0] if prompts else "剑光一闪" if task is None else "请写一段话。"
    system = [{"role": "system", "content": task.system}] if task is not None and task.system else []
    values = {
        "lora": told["as"] != "merged", "base": base_path, "folder": name, "rank": told.get("vllm_max_lora_rank"), "prompt": prompt,
        "messages": None if task is None else [*system, {"role": "user", "content": prompt}],
        "kwargs": {} if task is None else task.chat_template_kwargs,
    }  # fmt: skip
    lines = ["## Use", "From the folder that this one lies in, with transformers:", _program(TRANSFORMERS, values)]
    if values["lora"] and values["rank"] is None:
        return "\n\n".join([*lines, "vLLM takes adapters up to rank 512, and this one has more: `--as svd --rank N` makes one for it."])
    flags = f"{base_path} --enable-lora --max-lora-rank {values['rank']} --lora-modules {name}={name}" if values["lora"] else name
    return "\n\n".join([*lines, "With vLLM, and as a server:", _program(VLLM, values), f"```bash\nvllm serve {flags}\n```"])


def _program(template: str, values: Mapping[str, Any]) -> str:
    environment = Environment(trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters["py"] = _literal
    return f"```python\n{environment.from_string(template).render(values).strip()}\n```"


def _literal(value: Any) -> str:
    """As Python writes it, with the double quotes of the rest."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
