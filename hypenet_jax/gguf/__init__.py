"""GGUF files, llama.cpp's format of a model in one file, to Hugging Face folders."""

from hypenet_jax.gguf.folder import Unsaid, convert_gguf

__all__ = ["Unsaid", "convert_gguf"]
