"""What `stylora export` prints: what was written, how near it is to the stack, what a server has to be told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console


def show(told: dict[str, Any], folder: Path, console: Console) -> None:
    """told: what export.json says"""
    for heading, line in _lines(told, folder):
        console.print(f"{heading:<10} {line}", markup=False, highlight=False)


def _lines(told: dict[str, Any], folder: Path) -> Iterator[tuple[str, str]]:
    parts = " + ".join(f"{each['name']} x {each['weight']:g}" for each in told["adapters"])
    kind = f"a whole model, {told['dtype']}" if told["as"] == "merged" else f"one LoRA of rank {told['rank']}, {told['dtype']}"
    yield "exported", f"{folder}: {kind}, {told['bytes'] / 1e6:,.1f} MB, of {told['base']} + {parts}"
    if "svd" in told:
        svd = told["svd"]
        yield "lost", f"{svd['error']:.2%} of the update, at most {svd['worst_error']:.2%} of one module's ({svd['worst_module']})"
        yield "", f"logits differ from the stack's by up to {svd['largest_logit_difference']:.3g}"
    same, by = told["comparison"], "transformers" if told["as"] == "merged" else "peft"
    whose = "those of the update that was shrunk" if "svd" in told else "the stack's"
    how = f"{same['largest']:.2g} ({same['precision']}, {same['allowed']:.2g} allowed)"
    yield "checked", f"read again by plain {by}; logits of {same['prompts']} prompts are {whose} within {how}"
    if "rank" in told:
        rank = told["vllm_max_lora_rank"]
        yield "serve", f"vLLM needs --max-lora-rank {rank}" if rank else "vLLM takes ranks up to 512: use --as svd --rank N for it"
