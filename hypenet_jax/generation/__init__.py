"""Text and tokens from a model: prefill, decoding, sampling, batches of prompts, completions."""
