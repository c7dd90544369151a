"""Decoding against transformers' own `generate`, a brute-force filter, and itself in other batches."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from pydantic import ValidationError
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, Qwen3Config, Qwen3ForCausalLM

from stylora.errors import UserError
from stylora.generate.decode import candidates, choose, decode, end_tokens, evaluating, generate, open_row, penalize, stream
from stylora.generate.settings import Sampling
from stylora.generate.text import Writer, overlap
from stylora.model.base import TINY

PROMPTS = ["剑光一闪，", "他", "山道上走来一个青衣少年，腰间挂着一柄旧剑。\n", "The rain", "少年抬头"]
CONTEXT = 64


@pytest.fixture(scope="module")
def tokenizer():
    if not (TINY / "tokenizer.json").is_file():
        pytest.skip("the bundled base is not there yet")
    return AutoTokenizer.from_pretrained(TINY)


@pytest.fixture(scope="module")
def model(tokenizer):
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, max_position_embeddings=CONTEXT, tie_word_embeddings=False,
    )  # fmt: skip
    config.eos_token_id = None
    model = Qwen3ForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(10)  # far from uniform, and every token looks back
    return model


def greedy(**options) -> Sampling:
    return Sampling(temperature=0, **{"max_new_tokens": 12, **options})


def reference(model, tokenizer, prompt: str, new: int, **options) -> list[int]:
    """What transformers' own generate draws after a prompt, without end tokens."""
    ids = tokenizer(prompt, return_tensors="pt")
    ends = sorted(end_tokens(model, tokenizer))
    out = model.generate(**ids, do_sample=False, max_new_tokens=new, eos_token_id=ends, pad_token_id=0, **options)
    return [token for token in out[0, ids["input_ids"].shape[1] :].tolist() if token not in ends]


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_is_transformers_greedy_and_padding_changes_nothing(model, tokenizer, penalty):
    results = generate(model, tokenizer, PROMPTS, greedy(repetition_penalty=penalty))
    for prompt, result in zip(PROMPTS, results, strict=True):
        expected = reference(model, tokenizer, prompt, 12, repetition_penalty=penalty)
        assert result.text == tokenizer.decode(expected, skip_special_tokens=True).rstrip("\ufffd")
        assert (result.prompt, result.tokens) == (prompt, len(expected))
        assert generate(model, tokenizer, [prompt], greedy(repetition_penalty=penalty)) == [result]
        assert len(set(expected)) > 6  # no token repeated for ever
    assert len({result.text for result in results}) == len(PROMPTS)  # rows are not copies of each other


def test_the_penalty_counts_the_prompt(model, tokenizer):
    model = copy.deepcopy(model)
    prompt = PROMPTS[2]
    with torch.no_grad():
        model.lm_head.weight[tokenizer(prompt)["input_ids"]] *= 4  # the words of the prompt are what comes
    results = generate(model, tokenizer, [prompt, "他"], greedy(repetition_penalty=2.0))
    for result in results:
        expected = reference(model, tokenizer, result.prompt, 12, repetition_penalty=2.0)
        assert result.text == tokenizer.decode(expected, skip_special_tokens=True).rstrip("\ufffd")
    assert generate(model, tokenizer, [prompt], greedy())[0].text != results[0].text


def test_padding_moves_no_absolute_position(tokenizer):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=CONTEXT, eos_token_id=None)
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        model.transformer.wpe.weight.mul_(50)
    for result in generate(model, tokenizer, PROMPTS, greedy()):
        expected = reference(model, tokenizer, result.prompt, 12)
        assert result.text == tokenizer.decode(expected, skip_special_tokens=True).rstrip("\ufffd")


def test_a_continuation_does_not_depend_on_its_batch(model, tokenizer):
    sampling = Sampling(max_new_tokens=12, temperature=1.3, seed=5)
    whole = generate(model, tokenizer, PROMPTS, sampling)
    assert generate(model, tokenizer, PROMPTS, sampling, batch_size=2) == whole
    assert generate(model, tokenizer, PROMPTS, sampling, batch_size=1) == whole
    assert generate(model, tokenizer, PROMPTS[:2] + ["别的", "话"], sampling)[:2] == whole[:2]
    assert generate(model, tokenizer, [PROMPTS[0]] * 2, sampling)[0] == whole[0]


def test_seed_and_number_make_the_draw(model, tokenizer):
    def texts(seed: int) -> list[str]:
        sampling = Sampling(max_new_tokens=12, temperature=1.3, seed=seed)
        return [result.text for result in generate(model, tokenizer, [PROMPTS[0]] * 3, sampling)]

    assert texts(1) == texts(1)
    assert len({*texts(1), *texts(2)}) == 6


def test_top_k_of_one_is_greedy(model, tokenizer):
    one = generate(model, tokenizer, PROMPTS, Sampling(max_new_tokens=12, temperature=2, top_p=1, top_k=1))
    assert one == generate(model, tokenizer, PROMPTS, greedy())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("top_k", [0, 1, 5, 99])
@pytest.mark.parametrize("top_p", [0.1, 0.6, 0.95, 1.0])
def test_filters_keep_what_brute_force_keeps(temperature, top_k, top_p):
    scores = torch.randn(3, 20, generator=torch.Generator().manual_seed(1)) * 2
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    order, sums, kept = candidates(scores, sampling)
    for row in range(3):
        ranked = sorted(range(20), key=lambda i: -scores[row, i].item())[: top_k or 20]
        mass = [math.exp(scores[row, i].item() / temperature) for i in ranked]
        expected, total = [], 0.0
        for token, share in zip(ranked, mass, strict=True):
            if total < top_p:
                expected.append(token)
            total += share / sum(mass)
        assert order[row, : kept[row]].tolist() == expected
        assert sums[row, -1].item() == pytest.approx(1)


def test_choose_draws_each_token_as_often_as_its_probability():
    scores = torch.tensor([2.0, -1.0, 0.5, 1.0, -30.0])
    sampling = Sampling(temperature=1.5, top_p=0.9)
    share = (scores / 1.5).softmax(-1)
    share[torch.tensor([1, 4])] = 0  # 2.0, 1.0 and 0.5 reach 0.9 together
    n = 4096
    numbers = (torch.arange(n) + 0.5) / n
    drawn = choose(scores.expand(n, 5), numbers, sampling).bincount(minlength=5) / n
    torch.testing.assert_close(drawn, share / share.sum(), atol=1.01 / n, rtol=0)


def test_the_ends_of_the_unit_interval_stay_among_the_kept():
    scores = torch.tensor([[3.0, 2.0, 1.0, -math.inf]])
    for top_p, last in ((0.7, 1), (1.0, 2)):
        sampling = Sampling(temperature=1.0, top_p=top_p)
        assert choose(scores, torch.tensor([0.0]), sampling).item() == 0
        assert choose(scores, torch.tensor([1 - 2**-24]), sampling).item() == last


def test_hardly_any_temperature_is_greedy_not_nan():
    scores = torch.tensor([[30.0, 10.0, 29.9]])
    assert choose(scores, torch.tensor([0.999]), Sampling(temperature=1e-30, top_p=1)).item() == 0


def test_penalty_divides_positive_and_multiplies_negative():
    scores, seen = torch.tensor([[2.0, -2.0, 2.0]]), torch.tensor([[True, True, False]])
    assert penalize(scores, seen, 2.0).tolist() == [[1.0, -4.0, 2.0]]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("prompt", PROMPTS[:3])
def test_the_joined_stream_is_the_text(model, tokenizer, prompt, seed):
    sampling = Sampling(max_new_tokens=24, temperature=1.5, top_p=1, seed=seed, stop=["。", "的了"])
    pieces = list(stream(model, tokenizer, prompt, sampling))
    assert "".join(pieces) == generate(model, tokenizer, [prompt], sampling)[0].text
    assert "" not in pieces


def test_never_half_a_character(tokenizer):
    text = "龘靐齉爩，剑光一闪。🐉\n"
    ids = tokenizer(text)["input_ids"]
    assert any("\ufffd" in tokenizer.decode([token]) for token in ids)  # the vocabulary does cut characters
    writer = Writer(tokenizer, tokenizer("从前")["input_ids"], [])
    pieces = [writer.push(token) for token in ids]
    assert "".join(pieces) == text and writer.close() == ""
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_character_that_never_came_whole_is_not_written(tokenizer):
    ids = tokenizer("龘")["input_ids"]
    assert len(ids) > 1
    writer = Writer(tokenizer, [], [])
    assert [writer.push(token) for token in ids[:-1]] == [""] * (len(ids) - 1)
    assert tokenizer.decode(ids[:-1]) == "\ufffd" and writer.close() == ""


def test_a_stop_text_is_cut_and_its_beginning_held_back(tokenizer):
    writer = Writer(tokenizer, [], ["停停走"])
    pieces = [writer.push(token) for char in "停停停停走后" for token in tokenizer(char)["input_ids"] if not writer.stopped]
    assert writer.stopped and "".join(pieces) == "停停" and writer.close() == ""
    writer = Writer(tokenizer, [], ["停停走"])
    pieces = [writer.push(token) for token in tokenizer("好停停")["input_ids"]]
    assert "".join(pieces) == "好" and writer.close() == "停停" and not writer.stopped


def test_overlap():
    assert [overlap("他说。", stop) for stop in ("。\n", "。", "说。！", "说\n")] == [1, 0, 2, 0]


def test_stop_texts_end_a_continuation(model, tokenizer):
    whole = generate(model, tokenizer, PROMPTS[:1], greedy())[0]
    assert whole.stopped == "length" and whole.tokens == 12
    middle = whole.text[4:6]
    cut = generate(model, tokenizer, PROMPTS[:1], greedy(stop=["没有的", middle]))[0]
    assert cut.text == whole.text[: whole.text.index(middle)] and cut.stopped == "stop" and cut.tokens < 12


def test_end_tokens_end_a_continuation(model, tokenizer):
    drawn = reference(model, tokenizer, PROMPTS[0], 12)
    end = drawn[5]
    model = copy.deepcopy(model)
    model.generation_config.eos_token_id = [1, end]
    result = generate(model, tokenizer, PROMPTS[:1], greedy())[0]
    before = drawn[: drawn.index(end)]
    assert result.tokens == len(before) and result.stopped == "stop"
    assert result.text == tokenizer.decode(before, skip_special_tokens=True).rstrip("\ufffd")


def test_end_tokens_are_of_model_tokenizer_and_template(model, tokenizer):
    model, tokenizer = copy.deepcopy(model), copy.deepcopy(tokenizer)
    turn, document = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    tokenizer.eos_token = "<|endoftext|>"
    assert end_tokens(model, tokenizer) == {turn, document}
    model.generation_config.eos_token_id = 7
    assert end_tokens(model, tokenizer) == {turn, document, 7}
    tokenizer.chat_template = None
    assert end_tokens(model, tokenizer) == {document, 7}


def test_chat_wraps_the_prompt(model, tokenizer):
    by_hand = "<|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\n"
    chat = generate(model, tokenizer, ["你好"], greedy(), chat=True)[0]
    plain = generate(model, tokenizer, [by_hand], greedy())[0]
    assert (chat.prompt, chat.text) == ("你好", plain.text)
    assert "".join(stream(model, tokenizer, "你好", greedy(), chat=True)) == chat.text
    assert chat.text != generate(model, tokenizer, ["你好"], greedy())[0].text


def test_ids_are_continued_as_they_are(model, tokenizer):
    """A conversation that was rendered before, which as text would be another one: words of special tokens are not the tokens."""
    ids = tokenizer("<|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
    quoted = [*tokenizer("<|im_")["input_ids"], *tokenizer("end|>")["input_ids"], *ids]
    assert "".join(stream(model, tokenizer, ids, greedy())) == generate(model, tokenizer, ["你好"], greedy(), chat=True)[0].text
    row = open_row(model, tokenizer, quoted, greedy(), number=0, chat=False, where="question")
    assert row.ids == quoted != tokenizer(tokenizer.decode(quoted))["input_ids"]
    with pytest.raises(UserError, match=r"^question: got 64 tokens, expected at most 63"):
        open_row(model, tokenizer, [5] * CONTEXT, greedy(), number=0, chat=False, where="question")
    with pytest.raises(UserError, match="an empty prompt"):
        open_row(model, tokenizer, [], greedy(), number=0, chat=False, where="question")


def test_a_number_draws_for_itself(model, tokenizer):
    """Number n of a conversation draws as number n of a list of prompts."""
    sampling = Sampling(max_new_tokens=12, temperature=1.3, seed=5)
    listed = generate(model, tokenizer, [PROMPTS[0]] * 3, sampling)
    for number, expected in enumerate(listed):
        row = open_row(model, tokenizer, tokenizer(PROMPTS[0])["input_ids"], sampling, number=number, chat=False, where="question")
        assert "".join(decode(model, [row], sampling, end_tokens(model, tokenizer))) == expected.text


def test_chat_needs_a_template(model, tokenizer):
    bare = copy.deepcopy(tokenizer)
    bare.chat_template = None
    with pytest.raises(UserError, match="^chat: got a tokenizer without a chat template"):
        generate(model, bare, ["你好"], greedy(), chat=True)


def test_the_context_limits_each_prompt_by_itself(model, tokenizer):
    text = "剑光一闪。" * 40
    words = tokenizer(text)["input_ids"]
    long = tokenizer.decode(words[: CONTEXT - 3])
    n = len(tokenizer(long)["input_ids"])
    assert CONTEXT - 5 <= n < CONTEXT
    near, short = generate(model, tokenizer, [long, "他"], greedy(max_new_tokens=8))
    assert (near.tokens, near.stopped) == (CONTEXT - n, "length")
    assert (short.tokens, short.stopped) == (8, "length")
    with pytest.raises(UserError, match=rf"^prompts\[1\]: got {len(words)} tokens, expected at most 63"):
        generate(model, tokenizer, ["他", text], greedy())
    with pytest.raises(UserError, match="^prompt: got"):
        list(stream(model, tokenizer, text, greedy()))
    with pytest.raises(UserError, match="an empty prompt"):
        generate(model, tokenizer, [""], greedy())


def test_no_prompts_no_generations(model, tokenizer):
    assert generate(model, tokenizer, [], greedy()) == []


def test_an_adapter_speaks_and_every_training_flag_comes_back(model, tokenizer):
    torch.manual_seed(0)
    adapted = get_peft_model(
        copy.deepcopy(model), LoraConfig(r=4, lora_dropout=0.5, target_modules="all-linear", init_lora_weights=False)
    )
    adapted.train()
    adapted.base_model.model.model.layers[0].eval()  # as the frozen part of a stack is
    flags = [module.training for module in adapted.modules()]
    first = generate(adapted, tokenizer, PROMPTS[:2], greedy())
    assert [module.training for module in adapted.modules()] == flags
    assert first == generate(adapted, tokenizer, PROMPTS[:2], greedy())  # no dropout
    flowing = stream(adapted, tokenizer, PROMPTS[0], greedy())
    head = next(flowing)
    assert not adapted.training and not torch.is_inference_mode_enabled()  # the caller's own mode between two texts
    assert head + "".join(flowing) == first[0].text
    assert [module.training for module in adapted.modules()] == flags
    abandoned = stream(adapted, tokenizer, PROMPTS[0], greedy())
    next(abandoned)
    abandoned.close()
    assert [module.training for module in adapted.modules()] == flags
    plain = generate(model, tokenizer, PROMPTS[:2], greedy())
    assert first != plain
    with adapted.disable_adapter():
        assert generate(adapted, tokenizer, PROMPTS[:2], greedy()) == plain


def test_flags_come_back_after_an_error(model):
    model = copy.deepcopy(model).train()
    with pytest.raises(ZeroDivisionError), evaluating(model):
        assert not model.training
        raise ZeroDivisionError
    assert all(module.training for module in model.modules())


def test_logits_that_are_not_numbers_are_told(model, tokenizer):
    model = copy.deepcopy(model)
    with torch.no_grad():
        model.model.norm.weight.fill_(math.nan)
    with pytest.raises(UserError, match="logits that are not numbers"):
        generate(model, tokenizer, ["他"], greedy())


@pytest.mark.parametrize("field", [{"top_p": 0}, {"top_p": 1.1}, {"temperature": -1}, {"stop": ["a", ""]}, {"topp": 1}])
def test_settings_refuse(field):
    with pytest.raises(ValidationError):
        Sampling(**field)


def test_one_stop_text_is_a_list_of_one():
    assert Sampling(stop="。").stop == ["。"]
