"""Pretrain the bundled base `tiny`: a small Chinese Qwen3-architecture model with a byte-level BPE of its own.

    python scripts/pretrain_tiny.py CORPUS_FOLDER --out src/stylora/model/tiny --minutes 60

CORPUS_FOLDER holds `general/*.txt` (prose, one paragraph a line), `chat/*.jsonl` (`messages`) and `parallel/*.jsonl` (`main` +
`branches`, or `text`). `scripts/tiny_split.json` says which works never reach the model. Modern text only: the base must not
know the styles that users of the demo teach it.

One page: tokenizer -> token stream -> model -> training -> folder. Plain PyTorch, fp32 weights under bf16 autocast. Matrices inside the
layers are trained with Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/; `torch.optim.Muon`, with the update scaled
to AdamW's size as in Liu et al. 2025, arXiv 2502.16982), embeddings and norms with AdamW. A tenth of the windows is turned into
prefix-suffix-middle form (Bavarian et al. 2022, arXiv 2207.14255), so that the FIM tokens mean something.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import random
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

VOCABULARY = 6400
ROW = 512
ROWS_PER_STEP = 16
LEARNING_RATE = 2e-3
WARMUP_STEPS = 60
FIM_SHARE = 0.1
SPECIALS = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>",
]  # fmt: skip
MARKUP = ["<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"]
# The pre-tokenizer of Qwen2/2.5/3 (tokenizer.json of Qwen/Qwen3-8B).
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLIT = Path(__file__).with_name("tiny_split.json")
TEMPLATE = Path(__file__).with_name("tiny_chat_template.jinja")


def read_works(corpus: Path) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """`{file: documents}` to train on and to hold out. Chat rows are JSON strings of their messages, marked by a leading NUL."""
    split = json.loads(SPLIT.read_text(encoding="utf-8"))
    excluded = {name for names in split["excluded"].values() for name in names}
    held_files, tail = set(split["held_out_files"]), split["held_out_tail"]
    kept: dict[str, list[str]] = {}
    held: dict[str, list[str]] = {}
    held_text = "".join((corpus / name).read_text(encoding="utf-8") for name in held_files)
    for path in sorted(corpus.glob("general/*.txt")) + sorted(corpus.glob("chat/*")) + sorted(corpus.glob("parallel/*")):
        name = path.relative_to(corpus).as_posix()
        if name in excluded:
            continue
        documents = prose(path) if path.suffix == ".txt" else rows(path)
        if name in held_files:
            held[name] = documents
        elif name in tail["files"]:
            border = round(len(documents) * (1 - tail["share"]))
            kept[name], held[name] = documents[:border], documents[border:]
        elif name in split["held_out_where_quoted"]["files"]:
            quoted = [document.split("\n")[0][:40] in held_text for document in documents]
            kept[name] = [document for document, is_held in zip(documents, quoted, strict=True) if not is_held]
        else:
            kept[name] = documents
    return kept, held


def prose(path: Path, size: int = 3000) -> list[str]:
    """A file of one paragraph a line as documents of about `size` characters, so that an epoch can shuffle them."""
    documents, lines = [], []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        lines.append(line)
        if sum(map(len, lines)) >= size:
            documents.append("".join(lines))
            lines = []
    return [*documents, "".join(lines)] if lines else documents


def rows(path: Path) -> list[str]:
    """Chat rows as NUL + JSON of their messages; trunk and branches as one text each."""
    documents = []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        if "messages" in row:
            documents.append("\0" + json.dumps(row["messages"], ensure_ascii=False))
        else:
            branches = [branch if isinstance(branch, str) else branch["text"] for branch in row.get("branches", [])]
            documents.append("\n".join([row.get("main", row.get("text")), *branches]))
    return documents


def train_tokenizer(texts: list[str], template: str) -> PreTrainedTokenizerFast:
    """A byte-level BPE with Qwen's pre-tokenizer, ChatML and FIM tokens; `<|im_end|>` ends a turn, `<|endoftext|>` pads."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(QWEN_PATTERN), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=VOCABULARY - len(SPECIALS) - len(MARKUP), min_frequency=2, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    ))  # fmt: skip
    bpe.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    bpe.add_tokens([AddedToken(token, special=False, normalized=False) for token in MARKUP])
    assert bpe.get_vocab_size() == VOCABULARY, bpe.get_vocab_size()
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>", additional_special_tokens=SPECIALS,
        chat_template=template, model_max_length=2048, clean_up_tokenization_spaces=False,
    )  # fmt: skip


def encode(tokenizer: PreTrainedTokenizerFast, documents: list[str]) -> list[np.ndarray]:
    """Token ids of each document, `<|endoftext|>` at its end."""
    texts = [
        tokenizer.apply_chat_template(json.loads(d[1:]), tokenize=False) if d.startswith("\0") else d for d in documents
    ]
    end = tokenizer.convert_tokens_to_ids("<|endoftext|>")
    encodings = tokenizer.backend_tokenizer.encode_batch(texts)
    return [np.array([*encoding.ids, end], dtype=np.int32) for encoding in encodings]


def windows(documents: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """One epoch: documents in random order end to end, cut into rows of ROW + 1 ids from a random offset, rows shuffled."""
    stream = np.concatenate([documents[i] for i in rng.permutation(len(documents))])
    stream = stream[rng.integers(ROW) :]
    cut = stream[: len(stream) // (ROW + 1) * (ROW + 1)].reshape(-1, ROW + 1)
    return cut[rng.permutation(len(cut))]


def fill_in_the_middle(row: np.ndarray, rng: np.random.Generator, prefix: int, middle: int, suffix: int) -> np.ndarray:
    """`a b c` -> `<prefix> a <suffix> c <middle> b`, cut to the row's own length."""
    i, j = sorted(rng.integers(1, len(row) - 4, size=2))
    body = row[: len(row) - 3]
    return np.concatenate([[prefix], body[:i], [suffix], body[j:], [middle], body[i:j]]).astype(np.int32)


def keep_freed_memory() -> None:
    """Ask glibc not to return large blocks to the system: page faults cost a third of a step on the CPU otherwise."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        m_trim_threshold, m_mmap_threshold = -1, -3  # malloc.h
        libc.mallopt(m_trim_threshold, 2**31 - 1)
        libc.mallopt(m_mmap_threshold, 2**30)


def build_model() -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    return Qwen3ForCausalLM(Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=256, intermediate_size=704, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=2, head_dim=64, max_position_embeddings=2048, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, initializer_range=0.02,
    ))  # fmt: skip


def optimizers(model: Qwen3ForCausalLM) -> list[torch.optim.Optimizer]:
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    rest = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [
        torch.optim.Muon(matrices, lr=LEARNING_RATE, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0),
    ]


@torch.no_grad()
def nats_per_character(model, tokenizer, held: dict[str, list[str]], limit: int) -> dict[str, float]:
    """Next-token loss on held-out works, summed and divided by their characters: independent of the tokenizer."""
    model.eval()
    result = {}
    for name, documents in held.items():
        nats = characters = 0.0
        for ids in encode(tokenizer, documents[:limit]):
            for start in range(0, len(ids) - 1, ROW):
                row = torch.from_numpy(ids[start : start + ROW + 1].astype(np.int64))[None]
                with torch.autocast("cpu", torch.bfloat16):
                    logits = model(row[:, :-1]).logits
                nats += torch.nn.functional.cross_entropy(logits[0].float(), row[0, 1:], reduction="sum").item()
            characters += len(tokenizer.decode(ids))
        result[name] = round(nats / characters, 4)
    model.train()
    return result


def save(model, tokenizer, out: Path, log: dict) -> None:
    """The folder that `base: tiny` opens: bf16 safetensors, tokenizer, and the curve. The live model stays fp32."""
    out.mkdir(parents=True, exist_ok=True)
    # as Qwen does: a turn ends with <|im_end|>, a document with <|endoftext|>, and generation stops at either
    model.config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.config.dtype = torch.bfloat16
    state = {k: v.to(torch.bfloat16) for k, v in model.state_dict().items() if k != "lm_head.weight"}
    model.save_pretrained(out, state_dict=state)
    tokenizer.save_pretrained(out)
    (out / "training_log.json").write_text(json.dumps(log, ensure_ascii=False, indent=1), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=60.0, help="training time; the schedule follows the speed measured so far")
    parser.add_argument("--steps", type=int, help="a fixed number of steps instead of a time")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    random.seed(0)
    rng = np.random.default_rng(0)

    kept, held = read_works(options.corpus)
    template = TEMPLATE.read_text(encoding="utf-8")
    texts = [json.dumps(json.loads(d[1:]), ensure_ascii=False) if d[0] == "\0" else d for ds in kept.values() for d in ds if d]
    tokenizer = train_tokenizer(texts, template)
    documents = [ids for works in kept.values() for ids in encode(tokenizer, [d for d in works if d])]
    epoch_tokens = sum(map(len, documents))
    model = build_model()
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters:,} parameters, {epoch_tokens:,} tokens an epoch", flush=True)

    fim = [tokenizer.convert_tokens_to_ids(f"<|fim_{part}|>") for part in ("prefix", "middle", "suffix")]
    optims = optimizers(model)
    total, step, tokens = options.steps or 10**9, 0, 0
    started, curve, rows_left = time.time(), [], np.empty((0, ROW + 1), dtype=np.int32)
    while step < total:
        if len(rows_left) < ROWS_PER_STEP:
            rows_left = np.concatenate([rows_left, windows(documents, rng)])
        batch, rows_left = rows_left[:ROWS_PER_STEP], rows_left[ROWS_PER_STEP:]
        batch = np.stack([fill_in_the_middle(row, rng, *fim) if rng.random() < FIM_SHARE else row for row in batch])
        ids = torch.from_numpy(batch.astype(np.int64))
        rate = min(1.0, (step + 1) / WARMUP_STEPS) * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, step / total))))
        for optim in optims:
            for group in optim.param_groups:
                group["lr"] = LEARNING_RATE * rate
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(ids[:, :-1]).logits
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optim in optims:
            optim.step()
            optim.zero_grad()
        step, tokens = step + 1, tokens + ids.numel() - len(ids)
        if options.steps is None and step >= 30:  # re-plan from the measured speed, so that the cosine ends on time
            seconds = time.time() - started
            total = max(step, round(options.minutes * 60 / (seconds / step)))
        if step % 20 == 0:
            curve.append([step, round(loss.item(), 4)])
            speed = tokens / (time.time() - started)
            print(f"step {step}/{total} loss {loss.item():.3f} {speed:,.0f} tokens/s", flush=True)
        if step % 400 == 0 or step == total:
            log = {
                "parameters": parameters, "epoch_tokens": epoch_tokens, "tokens_seen": tokens, "steps": step, "planned_steps": total,
                "held_out_nats_per_character": nats_per_character(model, tokenizer, held, limit=40 if step == total else 8),
                "seconds": round(time.time() - started), "curve": curve,
            }  # fmt: skip
            print(log["held_out_nats_per_character"], flush=True)
            save(model, tokenizer, options.out, log)


if __name__ == "__main__":
    main()
