"""Text to batches: sources, tokenizer, prepared folders, the resumable loader, synthetic needles.

Nothing is imported here: `batch` alone needs neither grain nor tokenizers.
"""
