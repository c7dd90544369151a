"""The shipped prompts: enough of them, no two alike, no word of a period."""

from __future__ import annotations

from stylora.evaluate.prompts import PROMPTS


def test_the_shipped_prompts_are_neutral_and_different():
    assert len(PROMPTS) == len(set(PROMPTS)) == 32
    assert len({prompt[:2] for prompt in PROMPTS}) >= 28
    assert not set("剑侠曰之乎者兮") & set("".join(PROMPTS)) and all(4 <= len(prompt) <= 10 for prompt in PROMPTS)
