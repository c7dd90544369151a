"""The contenders of the `branches` comparison, each as it runs in its own process: a random model and one task in, figures out.

All of them get the same random model, the same trunk and the same branches of Zipf-distributed ids.

    isolated, columnar     `decode_branches`: the trunk read once, all branches one column further at every forward
    sequential             `generate` of transformers, one branch after the other, its cache its own
    own sequential         `decode_branches` on one branch after the other
    generate               `generate` on a batch, every row trunk and prompt, padded on the left
    ..., copied            the same two on copies of a cache that holds the trunk: what could be written by hand

    forest                 `Steps` and `ForestModel` on one tree, as `stylora train` uses them
    own separate           the same on a row for every branch, so that nothing is shared
    separate               the causal model called with `labels`, as `Trainer` does

A contender has one short turn before the clock runs: decoders draw two tokens for every branch of a short trunk, trainers learn one
micro-batch.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel, PreTrainedTokenizerFast, Qwen2Config
from transformers.generation.stopping_criteria import StoppingCriteria, StoppingCriteriaList

from stylora.forest import Sample, chain, edges
from stylora.generate.branches import Task, decode_branches
from stylora.generate.settings import Sampling
from stylora.model.adapter import Adapter, attach
from stylora.model.base import decoder_of
from stylora.model.device import Device, choose_device, keep_freed_memory
from stylora.model.forest_model import ForestModel, to_tensors
from stylora.model.proofs import prove_base
from stylora.model.rope_2d import install
from stylora.samples.branch_settings import Branches
from stylora.samples.branches import Branch, Tree, tree_sample
from stylora.train.steps import Steps

from .branches import Settings, task
from .report import Json, PeakMemory, answer
from .style import IGNORED, ZIPF_SHIFT

ISOLATED = Branches(visibility="isolated", rope_2d_ratio=0)
COLUMNAR = Branches(visibility="columnar", rope_2d_ratio=0.5)
PAD = 0
WARM = 64  # tokens of the trunk that a decoder's first turn reads

Drawn = tuple[list[list[int]], float]
"""The tokens of every branch, and the seconds from the first one drawn to the last."""


def measure(asked: Json) -> Json:
    """Decode or train once under the clock; or, as a proof, everything that has to come to the same."""
    settings, device = Settings(**asked["settings"]), choose_device(asked["settings"]["precision"])
    if asked["variant"]["part"] == "proof":
        return {"tokens": proved("tokens", list(DECODERS), settings), "loss": proved("loss", list(TRAINERS), settings)}
    torch.manual_seed(settings.seed)
    model = AutoModelForCausalLM.from_config(Qwen2Config(**settings.model), dtype=device.dtype).to(device.device).eval()
    model.requires_grad_(False)
    keep_freed_memory()  # for all
    part = {"decode": _decode, "train": _train}[asked["variant"]["part"]]
    return part(asked, settings, model, device) | {"device": device.why}


def proved(figure: str, contenders: list[str], settings: Settings) -> Json:
    """A figure of every contender but the columnar ones, which compute something else."""
    part, at_once = "decode" if figure == "tokens" else "train", min(2, settings.branches)
    names = [name for name in contenders if "columnar" not in name]
    return {name: measure(task(name, settings, part=part, at_once=at_once))[figure] for name in names}


def drawn_ids(settings: Settings, lengths: list[int]) -> list[np.ndarray]:
    """int32 arrays of these lengths: frequency ~ 1 / (rank + 2.7), ranks shuffled over the vocabulary; the padding id is left out."""
    random = np.random.default_rng(settings.seed)
    weight = 1 / (np.arange(settings.model["vocab_size"] - 1) + ZIPF_SHIFT)
    rank = 1 + random.permutation(len(weight))
    return [rank[random.choice(len(weight), size=length, p=weight / weight.sum())].astype(np.int32) for length in lengths]


def prompt_lengths(settings: Settings) -> list[int]:
    """Of every branch, evenly from least to most."""
    least, most = settings.prompts
    return np.linspace(least, most, settings.branches).round().astype(int).tolist()


class PeakCache:
    """The most bytes of keys and values that a forward returned, `beside` them those that were kept for copying."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.most, self.beside = 0, 0
        decoder_of(model).register_forward_hook(self._look)

    def _look(self, _module: Any, _inputs: Any, output: Any) -> None:
        if output.past_key_values is not None:
            self.most = max(self.most, self.beside + held(output.past_key_values))


def held(cache: Any) -> int:
    """Bytes of its tensors."""
    return sum(part.numel() * part.element_size() for layer in cache.layers for part in (layer.keys, layer.values))


# ----------------------------------------------------------------------------------------------------------- decoding


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """What a decoder is handed. new: tokens to draw for each branch"""

    model: PreTrainedModel
    trunk: np.ndarray
    prompts: list[np.ndarray]
    new: int
    cache: PeakCache


def _decode(asked: Json, settings: Settings, model: PreTrainedModel, device: Device) -> Json:
    trunk, *prompts = drawn_ids(settings, [settings.trunk, *prompt_lengths(settings)])
    decoder, cache = DECODERS[asked["contender"]], PeakCache(model)
    model.get_output_embeddings().register_forward_pre_hook(whole_copy)
    model.generation_config.eos_token_id = None  # nothing stops a branch but its length
    model.generation_config.pad_token_id = PAD
    if asked["contender"] == "columnar":
        install(model, COLUMNAR)
    with torch.inference_mode():
        decoder(Decoding(model=model, trunk=trunk[:WARM], prompts=prompts, new=2, cache=cache))
        memory, cache.most, cache.beside = PeakMemory(), 0, 0
        before = reset_peak(device)
        started = time.perf_counter()
        tokens, after = decoder(Decoding(model=model, trunk=trunk, prompts=prompts, new=settings.new, cache=cache))
        seconds = time.perf_counter() - started
    assert [len(each) for each in tokens] == [settings.new] * settings.branches, [len(each) for each in tokens]
    return {
        "seconds": seconds, "seconds_after_prefill": after, "cache_mb": cache.most / 1e6,
        "memory_above_model_mb": memory.above() if before is None else torch.cuda.max_memory_allocated() / 1e6 - before, "tokens": tokens,
    }  # fmt: skip


def whole_copy(_head: Any, inputs: Any) -> Any:
    """What the head is given, laid out anew. `generate` slices the last column out of a row, and torch 2.13 multiplies such a slice in bf16
    on a CPU forty times slower than a copy of it; without this the comparison would be of that."""
    return (inputs[0].clone(memory_format=torch.contiguous_format),)


def reset_peak(device: Device) -> float | None:
    """MB held on the GPU, its peak set back to that; None without one."""
    if device.device.type != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated() / 1e6


def ours(job: Decoding, branches: Branches, prompts: list[np.ndarray]) -> Drawn:
    """Everything at once, by `decode_branches`."""
    tokens: list[list[int]] = [[] for _ in prompts]
    task, at = Task(trunk=job.trunk, openings=prompts, limits=None, seeds=None), []
    sampling = Sampling(temperature=0, max_new_tokens=job.new, top_p=1.0)
    for piece in decode_branches(job.model, every_id(job.model), [task], sampling, branches=branches):
        at.append(time.perf_counter())
        tokens[piece.branch].append(piece.token)
    return tokens, at[-1] - at[0]


def own_sequential(job: Decoding) -> Drawn:
    every = [ours(job, ISOLATED, [prompt]) for prompt in job.prompts]
    return [tokens for drawn, _ in every for tokens in drawn], sum(after for _, after in every)


_TOKENIZERS: dict[int, PreTrainedTokenizerFast] = {}


def every_id(model: PreTrainedModel) -> PreTrainedTokenizerFast:
    """A tokenizer that decodes every id of the model to a text and knows no end of text; made once."""
    words = model.config.vocab_size
    if words not in _TOKENIZERS:
        vocabulary = {str(number): number for number in range(words)}
        _TOKENIZERS[words] = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="0")))
    return _TOKENIZERS[words]


class Times(StoppingCriteria):
    """When each token was drawn; stops nothing."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        self.at.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def hugging_face(job: Decoding, prompts: list[np.ndarray], cache: DynamicCache | None = None) -> Drawn:
    """`generate` on trunk + prompt of every row. What is padded stands between trunk and prompt where a cache holds the trunk already."""
    width, trunk = max(map(len, prompts)), job.trunk.tolist()
    rows, mask = [], []
    for prompt in prompts:
        gap = width - len(prompt)
        rows.append(trunk + [PAD] * gap + prompt.tolist() if cache is not None else [PAD] * gap + trunk + prompt.tolist())
        mask.append([1] * len(trunk) + [0] * gap + [1] * len(prompt) if cache is not None else [0] * gap + [1] * (len(trunk) + len(prompt)))
    ids, times = torch.tensor(rows, device=job.model.device), Times()
    generate: Any = job.model.generate  # its own types end in a module's attribute
    whole = generate(
        input_ids=ids, attention_mask=torch.tensor(mask, device=ids.device), max_new_tokens=job.new, do_sample=False,
        past_key_values=DynamicCache(config=job.model.config) if cache is None else cache, stopping_criteria=StoppingCriteriaList([times]),
    )  # fmt: skip
    return whole[:, ids.shape[1] :].tolist(), times.at[-1] - times.at[0]


def one_by_one(job: Decoding, *, copied: bool = False) -> Drawn:
    """Branch after branch, with a cache each."""
    trunk = read_trunk(job) if copied else None
    every = [hugging_face(job, [prompt], copy.deepcopy(trunk)) for prompt in job.prompts]
    return [tokens for drawn, _ in every for tokens in drawn], sum(after for _, after in every)


def batch_of_copies(job: Decoding) -> Drawn:
    """The trunk read once, its cache repeated for every row."""
    cache = read_trunk(job)
    job.cache.beside = 0  # the rows are all there is from now on
    cache.batch_repeat_interleave(len(job.prompts))
    return hugging_face(job, job.prompts, cache)


def read_trunk(job: Decoding) -> DynamicCache:
    """The trunk's keys and values, which stay while copies of them are used."""
    ids = torch.from_numpy(job.trunk[None].astype(np.int64)).to(job.model.device)
    cache = DynamicCache(config=job.model.config)
    job.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    job.cache.beside = held(cache)
    return cache


DECODERS: dict[str, Callable[[Decoding], Drawn]] = {
    "isolated": lambda job: ours(job, ISOLATED, job.prompts),
    "columnar": lambda job: ours(job, COLUMNAR, job.prompts),
    "sequential": one_by_one,
    "own sequential": own_sequential,
    "generate": lambda job: hugging_face(job, job.prompts),
    "sequential, copied": lambda job: one_by_one(job, copied=True),
    "generate, copied": batch_of_copies,
}


# ----------------------------------------------------------------------------------------------------------- training


@dataclass(frozen=True, kw_only=True)
class Training:
    """What a trainer is handed. branches: ids of each; prompts: how many of them are read only; at_once: rows of a micro-batch"""

    model: PreTrainedModel
    settings: Settings
    device: Device
    trunk: np.ndarray
    branches: list[np.ndarray]
    prompts: list[int]
    at_once: int
    tokens: list[int] = field(default_factory=list)

    @property
    def learned(self) -> int:
        return sum(len(ids) - read for ids, read in zip(self.branches, self.prompts, strict=True))


Backward = Callable[[bool], float]
"""whole step, or one micro-batch to warm up -> the loss; gradients are left on the parameters"""


def _train(asked: Json, settings: Settings, model: PreTrainedModel, device: Device) -> Json:
    lengths = [settings.learned] * settings.branches
    trunk, *branches = drawn_ids(settings, [settings.trunk, *lengths])
    job = Training(
        model=model, settings=settings, device=device, trunk=trunk, branches=branches, prompts=prompt_lengths(settings),
        at_once=asked["variant"].get("at_once", 1),
    )  # fmt: skip
    backward = TRAINERS[asked["contender"]](job)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=settings.learning_rate, fused=True)
    memory, before = PeakMemory(), reset_peak(device)
    backward(False)
    optimizer.zero_grad(set_to_none=True)
    job.tokens.clear()
    started, losses = time.perf_counter(), []
    for _ in range(settings.steps):
        losses.append(backward(True))  # a number, so a GPU has done its work
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    if before is not None:
        torch.cuda.synchronize()
    return {
        "seconds": (time.perf_counter() - started) / settings.steps, "tokens_per_step": sum(job.tokens) / settings.steps,
        "memory_above_model_mb": memory.above() if before is None else torch.cuda.max_memory_allocated() / 1e6 - before,
        "loss": losses,
    }  # fmt: skip


def autocast(job: Training) -> torch.autocast:
    return torch.autocast(job.device.device.type, job.device.dtype, enabled=job.device.precision != "fp32")


def by_forest(job: Training, samples: list[Sample], branches: Branches) -> Backward:
    """What `training_step` does with the steps of `stylora train`."""
    settings, model, columnar = job.settings, job.model, branches.visibility == "columnar"
    words = settings.model["vocab_size"]
    proofs = prove_base(model, words=words)
    install(model, branches)
    attach(model, Adapter(r=settings.r, alpha=settings.r), seed=settings.seed)
    forest = ForestModel(model, words=words, head=proofs.head, columnar=columnar).train()
    steps = Steps(
        lambda _epoch: np.arange(len(samples)), lambda index, _epoch: samples[index], samples_per_step=len(samples),
        tokens_per_microbatch=job.at_once * len(samples[0]), row_tokens=None, num_train_epochs=1, max_steps=1, packs=proofs.packs,
        share_prefixes=False,  # a row is a tree already
    )  # fmt: skip

    def backward(whole: bool) -> float:
        step, total = steps[0], 0.0
        for batch in step.batches if whole else step.batches[:1]:
            with autocast(job):
                loss = forest(to_tensors(batch, model.device, divisor=step.weight))
            loss.backward()
            job.tokens.append(batch.ids.size)
            total += float(loss.detach())
        return total

    return backward


def tree(job: Training, branches: Branches) -> Backward:
    """One row: the trunk, then every branch."""
    grown = Tree(
        trunk=job.trunk, trunk_characters=0, stop=PAD, quoted=False,
        branches=tuple(
            Branch(
                ids=ids, source=np.arange(read - 1, len(ids) - 1, dtype=np.int32), target=ids[read:],
                weight=np.ones(len(ids) - read, np.float32), characters=0,
            )
            for ids, read in zip(job.branches, job.prompts, strict=True)
        ),
    )  # fmt: skip
    return by_forest(job, [tree_sample(grown, branches)], branches)


def separate_chains(job: Training) -> Backward:
    """A row for every branch, by the same code."""
    first = len(job.trunk)
    samples = [
        Sample(forest=chain(np.concatenate([job.trunk, ids])), edges=edges(np.arange(first + read - 1, first + len(ids) - 1), ids[read:]))
        for ids, read in zip(job.branches, job.prompts, strict=True)
    ]
    return by_forest(job, samples, ISOLATED)


def with_labels(job: Training) -> Backward:
    """The causal model's own loss on rows that are all of one length, so without padding."""
    peft_model = attach(job.model, Adapter(r=job.settings.r, alpha=job.settings.r), seed=job.settings.seed).train()
    ids = torch.from_numpy(np.stack([np.concatenate([job.trunk, each]) for each in job.branches]).astype(np.int64)).to(job.model.device)
    labels = ids.clone()
    for line, read in zip(labels, job.prompts, strict=True):
        line[: len(job.trunk) + read] = IGNORED

    def backward(whole: bool) -> float:
        total = 0.0
        pieces: list[tuple[Tensor, Tensor]] = list(zip(ids.split(job.at_once), labels.split(job.at_once), strict=True))
        for rows, learned in pieces if whole else pieces[:1]:
            with autocast(job):
                loss = peft_model(input_ids=rows, labels=learned, num_items_in_batch=job.learned, use_cache=False).loss
            loss.backward()
            job.tokens.append(rows.numel())
            total += float(loss.detach())
        return total

    return backward


TRAINERS: dict[str, Callable[[Training], Backward]] = {
    "forest": lambda job: tree(job, ISOLATED),
    "forest, columnar": lambda job: tree(job, COLUMNAR),
    "own separate": separate_chains,
    "separate": with_labels,
}


if __name__ == "__main__":
    answer(measure)
