"""A model folder continues prompts; without prompts, each line typed is one, until Ctrl-D.

python -m launch.generate MODEL [--prompt TEXT ... | --prompts FILE] [--max-new-tokens N] [--temperature 0.8 ...]
"""

import dataclasses
import pathlib
import sys
from typing import Literal

import tyro

from hypenet_jax import runtime
from hypenet_jax.generation.completions import CompletionFile, read_prompts
from hypenet_jax.generation.console import answer, converse, settings_of
from hypenet_jax.generation.sampling import Sampling
from hypenet_jax.generation.text_generator import open_generator
from hypenet_jax.generation.throughput import Speed
from launch.errors import CODES


@dataclasses.dataclass(frozen=True)
class Arguments:
    model: tyro.conf.Positional[pathlib.Path]
    """Folder with config.json, .safetensors and tokenizer.json."""
    prompt: tuple[str, ...] = ()
    """Texts to continue."""
    prompts: pathlib.Path | None = None
    """File of texts to continue: one per line, or .jsonl with a "prompt" in each line."""
    max_new_tokens: int = 128
    max_length: int | None = None
    """Most tokens of a prompt and its continuation together; a longer one is an error, and the others go on."""
    temperature: float = 0.0
    """0 takes the likeliest token."""
    top_k: int | None = None
    top_p: float = 1.0
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] | None = None
    """Of weights and computation; None: as stored."""
    out: pathlib.Path | None = None
    """JSON lines to write instead of printing. OUT.partial grows as batches end; a run that was cut off goes on."""


def main(args: Arguments) -> None:
    typed = not args.prompt and args.prompts is None
    if typed and not sys.stdin.isatty():
        raise ValueError("nothing to continue; give --prompt or --prompts, or type at a terminal")
    prompts = [*args.prompt, *(read_prompts(args.prompts) if args.prompts else [])]
    writer = open_generator(
        args.model,
        max_new_tokens=args.max_new_tokens,
        max_length=args.max_length,
        sampling=Sampling(args.temperature, args.top_k, args.top_p),
        seed=args.seed,
        dtype=args.dtype,
    )
    out = None if args.out is None else CompletionFile(args.out, settings_of(writer, prompts))
    speed = Speed()
    try:
        converse(writer, speed) if typed else answer(writer, prompts, speed, out)
    finally:
        print(speed, file=sys.stderr)


if __name__ == "__main__":
    with runtime.main_guard(CODES):
        main(tyro.cli(Arguments, description=__doc__))
