"""A model folder continues prompts; without prompts, each line typed is one, until Ctrl-D.

python -m launch.generate MODEL [--prompt TEXT ... | --prompts FILE] [--max-new-tokens N] [--temperature 0.8 ...]
"""

import dataclasses
import pathlib
import sys
from typing import Literal

import tyro

from hypenet_jax import runtime
from hypenet_jax.generation import GenerationConfig, Sampling, TextGenerator, open_generator
from hypenet_jax.generation.completions import (
    CompletionFile,
    complete_all,
    read_prompts,
    settings_of,
)
from hypenet_jax.generation.throughput import Throughput
from launch.errors import CODES


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Arguments of the command."""

    model: tyro.conf.Positional[pathlib.Path]
    """Folder with config.json, .safetensors and tokenizer.json; or org/name in the local cache of Hugging Face."""
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
    """Runs the command; returns its exit code."""
    interactive = not args.prompt and args.prompts is None
    if interactive and not sys.stdin.isatty():
        raise ValueError("nothing to continue; give --prompt or --prompts, or type at a terminal")
    config = GenerationConfig(
        max_new_tokens=args.max_new_tokens,
        max_length=args.max_length,
        sampling=Sampling(args.temperature, args.top_k, args.top_p),
        seed=args.seed,
    )
    prompts = [*args.prompt, *(read_prompts(args.prompts) if args.prompts else [])]
    generator, throughput = open_generator(args.model, config, dtype=args.dtype), Throughput()
    out = None if args.out is None else CompletionFile(args.out, settings_of(generator, prompts))
    try:
        if interactive:
            _converse(generator, throughput)
            return
        completions = complete_all(generator, prompts, out, throughput)
    finally:
        print(throughput, file=sys.stderr)
    if out is None:
        print("\n\n".join(c.prompt + c.text for c in completions))
    failed = [f"prompt {i}: {c.error}" for i, c in enumerate(completions, 1) if c.error]
    if failed:
        more = f"; and {len(failed) - 5} more" if len(failed) > 5 else ""
        raise ValueError(f"{len(failed)} of {len(prompts)} failed; {'; '.join(failed[:5])}{more}")


def _converse(generator: TextGenerator, throughput: Throughput) -> None:
    """Continues each line of standard input as it comes, streaming; ends with the input."""
    print("> ", end="", file=sys.stderr, flush=True)
    for line in sys.stdin:
        if line.strip():
            prompt = [line.rstrip("\n")]
            show = lambda text: print(text, end="", flush=True)  # noqa: E731
            for done in generator.complete(prompt, throughput, on_text=show):
                print(f"\nerror: {done[0].error}" if done[0].error else "")
        print("> ", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    with runtime.main_guard(CODES):
        main(tyro.cli(Arguments, description=__doc__))
