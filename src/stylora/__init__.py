"""stylora: LoRA fine-tuning where a batch is a forest and the loss is a list of edges."""

__version__ = "0.1.0"
