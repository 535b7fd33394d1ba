"""Text to batches: sources, tokenizer, packing, prepared folders, the resumable loader, texts with known answers.

Nothing is imported here: `batch` alone needs neither grain nor tokenizers.
"""
