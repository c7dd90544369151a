"""`stylora generate`: open MODEL, continue each prompt, print the text as it comes."""

from __future__ import annotations

import sys
from contextlib import ExitStack

from peft import PeftModel

from stylora.errors import UserError
from stylora.evaluate.held_out import precision_context
from stylora.generate.decode import stream
from stylora.generate.settings import Sampling
from stylora.model.device import choose_device
from stylora.model.rope_2d import one_dimensional

from .open import open_model


def stream_prompts(
    name: str, prompts: list[str], sampling: Sampling, *, chat: bool, base: str | None, without_adapter: bool, trust_remote_code: bool,
    force: bool = False,
) -> None:  # fmt: skip
    """Print each prompt with its continuation. Raises UserError for a MODEL that can't be opened."""
    device = choose_device()
    opened = open_model(name, device, base=base, trust_remote_code=trust_remote_code, force=force)
    for line in opened.forced:
        print(f"warning    forced: {line}", file=sys.stderr)
    if without_adapter and not isinstance(opened.model, PeftModel):
        raise UserError("--without-adapter", got=f"{name}, which has none", expected="a MODEL with an adapter", do="leave the flag away")
    with ExitStack() as inside:
        if without_adapter and isinstance(opened.model, PeftModel):
            inside.enter_context(opened.model.disable_adapter())
            inside.enter_context(one_dimensional(opened.model))
        inside.enter_context(precision_context(device.device, device.dtype))
        for prompt in prompts:
            sys.stdout.write("" if chat else prompt)
            for piece in stream(opened.model, opened.base.tokenizer, prompt, sampling, chat=chat):
                sys.stdout.write(piece)
                sys.stdout.flush()
            sys.stdout.write("\n")
