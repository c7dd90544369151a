"""What LoRA adds and what training holds, computed from the published shapes of some bases. Nothing here is measured.

    parameters of a layer's LoRA     r * (in + out)            A [r, in], B [out, r]
    LoRA in training, bytes each     4 fp32 + 4 gradient + 8 AdamW (2 with 8-bit AdamW)
    full fine-tuning                 the same 16 for every weight of the base, kept in fp32
    4-bit weights                    0.5 + 1/64 + 4/(64 * 256) bytes: codes, an 8-bit scale for 64 of them, an fp32 one for 256 scales

Activations come on top of all of it; they depend on rows and lengths, not on the method.
"""

from __future__ import annotations

from dataclasses import dataclass

RANKS = (8, 16, 32, 64)
PACKED = 0.5 + 1 / 64 + 4 / (64 * 256)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A dense decoder as its config.json has it. bias: of q, k and v; norms: of queries and keys, as Qwen3 has them"""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    bias: bool = True
    norms: bool = False

    @property
    def linear(self) -> list[tuple[int, int]]:
        """(in, out) of each linear layer of one block: q, k, v, o, gate, up, down."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = [(self.hidden, queries), (self.hidden, keys), (self.hidden, keys), (queries, self.hidden)]
        return [*attention, (self.hidden, self.intermediate), (self.hidden, self.intermediate), (self.intermediate, self.hidden)]

    @property
    def packable(self) -> int:
        """Weights that 4 bits pack: of all linear layers but the head."""
        return self.layers * sum(i * o for i, o in self.linear)

    @property
    def parameters(self) -> int:
        """All of them; a tied head counts once."""
        small = 2 * self.hidden + (2 * self.head_dim if self.norms else 0)
        if self.bias:
            small += (self.heads + 2 * self.kv_heads) * self.head_dim
        return self.packable + self.layers * small + self.hidden + self.vocabulary * self.hidden * (1 if self.tied else 2)

    def lora(self, r: int) -> int:
        """Trainable parameters with rank r on every linear layer but the head."""
        return self.layers * r * sum(i + o for i, o in self.linear)


BASES = {
    "Qwen2.5-0.5B": Shape(
        hidden=896, intermediate=4864, layers=24, heads=14, kv_heads=2, head_dim=64, vocabulary=151_936, tied=True),
    "Qwen2.5-1.5B": Shape(
        hidden=1536, intermediate=8960, layers=28, heads=12, kv_heads=2, head_dim=128, vocabulary=151_936, tied=True),
    "Qwen2.5-3B": Shape(
        hidden=2048, intermediate=11_008, layers=36, heads=16, kv_heads=2, head_dim=128, vocabulary=151_936, tied=True),
    "Qwen2.5-7B": Shape(
        hidden=3584, intermediate=18_944, layers=28, heads=28, kv_heads=4, head_dim=128, vocabulary=152_064, tied=False),
    "Qwen3-8B": Shape(
        hidden=4096, intermediate=12_288, layers=36, heads=32, kv_heads=8, head_dim=128, vocabulary=151_936, tied=False, bias=False,
        norms=True),
}  # fmt: skip


def parameters_table() -> str:
    """LoRA's trainable parameters by rank, in millions, and their share of the base."""
    lines = [f"| base | parameters | layers | {' | '.join(f'r {r}' for r in RANKS)} |", "|---|---|---|" + "---|" * len(RANKS)]
    for name, shape in BASES.items():
        cells = [f"{shape.lora(r) / 1e6:.1f} M, {shape.lora(r) / shape.parameters:.2%}" for r in RANKS]
        lines.append(f"| {name} | {shape.parameters / 1e9:.2f} B | {shape.layers} | {' | '.join(cells)} |")
    return "\n".join(lines)


def memory_table(r: int = 16) -> str:
    """GB (1e9 bytes) of weights, and of all that training holds but activations."""
    lines = [
        f"| base | weights, bf16 | weights, 4 bits | LoRA r {r}: weights, gradients, AdamW | with 8-bit AdamW | LoRA, all | QLoRA, all "
        "| full fine-tuning, all |", "|---" * 8 + "|",
    ]  # fmt: skip
    for name, shape in BASES.items():
        whole, packed = 2 * shape.parameters, PACKED * shape.packable + 2 * (shape.parameters - shape.packable)
        learned, eight = 16 * shape.lora(r), 10 * shape.lora(r)
        figures = [whole, packed, learned, eight, whole + learned, packed + learned, 16 * shape.parameters]
        lines.append(f"| {name} | {' | '.join(f'{figure / 1e9:.2f}' for figure in figures)} |")
    return "\n".join(lines)
