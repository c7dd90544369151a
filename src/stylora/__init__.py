"""stylora: LoRA fine-tuning where a batch is a forest and the loss is a list of edges."""

from __future__ import annotations

import logging

__version__ = "0.1.0"
__all__ = ["LoadedModel", "Predictor", "__version__"]

# peft imports bitsandbytes where it is installed. On some CPUs that warns of a kernel, the very one that model/quantized.py does without,
# so it is silenced before anything can import peft. Errors are still told.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


def __getattr__(name: str) -> object:
    """What an application imports from here, imported when it is asked for: it needs torch."""
    if name not in ("LoadedModel", "Predictor"):
        raise AttributeError(f"module 'stylora' has no attribute {name!r}")
    from stylora.run.loaded import LoadedModel
    from stylora.run.predictor import Predictor

    return {"LoadedModel": LoadedModel, "Predictor": Predictor}[name]
