"""How text is predicted, and what models write: perplexity, held-out numbers, samples."""
