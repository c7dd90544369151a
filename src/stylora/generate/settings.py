"""How a continuation is drawn: the recipe's `sampling` section and the options of `generate`. Imports no torch, knows no model."""

from __future__ import annotations

from pydantic import BaseModel, Field, field_validator


class Sampling(BaseModel, frozen=True, extra="forbid"):
    """One way of drawing tokens. The order is transformers': repetition penalty, temperature, top-k, top-p.

    max_new_tokens: tokens; most that are drawn for a prompt, fewer where the model's context ends first. 128 is a paragraph
    temperature: divides the logits; below 1 the likely gets likelier, 0 is greedy (no draw at all). 0.8 keeps prose both lively
        and grammatical
    top_p: probability; draw from the smallest set of tokens that together reach it, 1 is off (Holtzman et al. 2019, arXiv
        1904.09751). 0.95 cuts the long tail of words that are each unlikely and together are not
    top_k: tokens; draw from so many likeliest ones, 0 is off: top_p adapts to how sure the model is, a fixed number does not
    repetition_penalty: divides positive and multiplies negative logits of every token of the prompt and the continuation
        (Keskar et al. 2019, arXiv 1909.05858); 1 is off, since it also punishes names, particles and punctuation
    seed: any number from 0; with the prompt's number it fixes the draw, so a table of samples can be made again
    stop: texts; the continuation ends before the first of them, in addition to the model's own end tokens
    """

    max_new_tokens: int = Field(default=128, ge=1)
    temperature: float = Field(default=0.8, ge=0, allow_inf_nan=False)
    top_p: float = Field(default=0.95, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    repetition_penalty: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    seed: int = Field(default=0, ge=0)
    stop: list[str] = []

    @field_validator("stop", mode="before")
    @classmethod
    def one_text(cls, value: object) -> object:
        """A single text stands for a list of one."""
        return [value] if isinstance(value, str) else value

    @field_validator("stop")
    @classmethod
    def no_empty_text(cls, value: list[str]) -> list[str]:
        """The empty text occurs everywhere: nothing would be written."""
        if "" in value:
            raise ValueError("texts that are not empty")
        return value
