"""Base and tokenizer, adapters, a forest's visibility, the fused head, and the proofs that all of it holds on the model at hand."""
