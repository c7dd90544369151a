"""Fixtures of the whole suite: a small tokenizer, random models of many architectures, and hypothesis' way of drawing samples.

Torch and transformers are imported inside the fixtures: tests of the layers below never pay for them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import strategies as st

from stylora.forest import MASK, Sample, chain, edges

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"  # before anything imports torch: two workers with two threads each would wait for one another
VOCABULARY = 320
"""Rows of every random model's embedding; the tokenizer has fewer words, as Qwen's has."""


@pytest.fixture(scope="session")
def tokenizer():
    """Byte-level BPE without a merge: one token a byte, ChatML and FIM tokens behind them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    plain = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    plain.decoder = decoders.ByteLevel()
    plain.add_special_tokens(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>"]
    )
    return PreTrainedTokenizerFast(tokenizer_object=plain, eos_token="<|im_end|>", pad_token="<|endoftext|>")


@pytest.fixture(scope="session")
def random_model() -> Callable:
    """`random_model("Qwen3", seed=0, attention=None, **config)`: a causal LM of that architecture, 2 layers of width 32."""
    import torch
    import transformers

    torch.set_num_threads(1)  # at this size a second thread only waits
    small = dict(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        head_dim=8, max_position_embeddings=256, pad_token_id=0, bos_token_id=1, eos_token_id=2, use_cache=False,
    )  # fmt: skip
    mixed = dict(sliding_window=8, layer_types=["sliding_attention", "full_attention"])
    hybrid = dict(
        layer_types=["linear_attention", "full_attention"], linear_num_value_heads=4, linear_num_key_heads=2,
        linear_key_head_dim=8, linear_value_head_dim=8,
    )  # fmt: skip
    experts = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, shared_expert_intermediate_size=32)
    special = {
        "Mistral": dict(sliding_window=8), "Gemma2": {**mixed, "final_logit_softcapping": 1.0}, "Gemma3Text": mixed,
        "Granite": dict(logits_scaling=4.0), "Qwen3Next": {**hybrid, **experts}, "Qwen3_5Text": hybrid,
    }  # fmt: skip

    def build(kind: str, *, seed: int = 0, attention: str | None = None, **changes):
        torch.manual_seed(seed)
        config = getattr(transformers, kind + "Config")(**{**small, **special.get(kind, {}), **changes})
        return transformers.AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()

    return build


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory, random_model, tokenizer) -> Path:
    """A random Qwen3 with its tokenizer, saved as a base."""
    folder = tmp_path_factory.mktemp("base") / "小 base"
    random_model("Qwen3").save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def sample_lists() -> st.SearchStrategy[list[Sample]]:
    """1 to 7 chains over few tokens: fresh, branching off an earlier one, or the very same; masks, several edges from one source."""
    token = st.sampled_from([MASK, 3, 4, 5, 200])

    @st.composite
    def lists(draw) -> list[Sample]:
        paths: list[list[int]] = []
        for _ in range(draw(st.integers(1, 7))):
            stem = draw(st.sampled_from(paths)) if paths and draw(st.integers(0, 3)) else []
            stem = stem[: draw(st.integers(0, len(stem)))]
            paths.append(stem + draw(st.lists(token, min_size=0 if stem else 1, max_size=9)))
        return [_with_edges(draw, path) for path in paths]

    return lists()


def _with_edges(draw, path: list[int]) -> Sample:
    one = st.tuples(
        st.integers(0, len(path) - 1), st.sampled_from([3, 4, 5, 200]), st.sampled_from([0.5, 1.0, 2.0])
    )
    drawn = draw(st.lists(one, min_size=1, max_size=8))
    columns = list(zip(*drawn, strict=True))
    return Sample(forest=chain(path), edges=edges(columns[0], columns[1], np.array(columns[2], np.float32)))
