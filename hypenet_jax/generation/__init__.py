"""Text and tokens from a model: prefill, decoding, sampling, saved contexts, batches of prompts, completions, chat."""

from hypenet_jax.generation.chat import Chat, Reply
from hypenet_jax.generation.decode import Generation, Sampling, decode
from hypenet_jax.generation.generate import (
    Continuation,
    GenerationConfig,
    generate,
    generate_batches,
)
from hypenet_jax.generation.prefill import (
    Context,
    load_context,
    prefill,
    save_context,
    start_context,
    unpacked,
    with_capacity,
)
from hypenet_jax.generation.text_generator import Completion, TextGenerator, open_generator

__all__ = [
    "Chat",
    "Completion",
    "Context",
    "Continuation",
    "Generation",
    "GenerationConfig",
    "Reply",
    "Sampling",
    "TextGenerator",
    "decode",
    "generate",
    "generate_batches",
    "load_context",
    "open_generator",
    "prefill",
    "save_context",
    "start_context",
    "unpacked",
    "with_capacity",
]
