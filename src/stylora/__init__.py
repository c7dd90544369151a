"""stylora: LoRA fine-tuning where a batch is a forest and the loss is a list of edges."""

from __future__ import annotations

__version__ = "0.1.0"
__all__ = ["Predictor", "__version__"]


def __getattr__(name: str) -> object:
    """`stylora.Predictor`, imported when it is asked for: it needs torch."""
    if name != "Predictor":
        raise AttributeError(f"module 'stylora' has no attribute {name!r}")
    from stylora.run.predictor import Predictor

    return Predictor
