"""A model folder continues prompts, or answers in a chat; without prompts, each line typed is one, until Ctrl-D.

python -m launch.generate MODEL [--prompt TEXT ... | --prompts FILE] [--max-new-tokens N] [--temperature 0.8 ...]
python -m launch.generate MODEL --chat [--system TEXT] [--template-arguments enable_thinking=false]
"""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any, Literal

import tyro

from hypenet_jax import runtime
from hypenet_jax.generation import Chat, GenerationConfig, Sampling, TextGenerator, open_generator
from hypenet_jax.generation.completions import (
    CompletionFile,
    complete_all,
    read_prompts,
    settings_of,
)
from hypenet_jax.generation.terminal import chat_lines, continue_lines
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
    """File of texts to continue: one per line, or .jsonl with a "prompt", or "messages" to answer, in each line."""
    chat: bool = False
    """Answer each line typed by the chat template; /reset, /save FOLDER, /load FOLDER."""
    system: str | None = None
    """System prompt of the chat."""
    template_arguments: tuple[str, ...] = ()
    """The chat template's own, as NAME=VALUE with a value in JSON or a text: enable_thinking=false."""
    special_tokens: bool = False
    """Read special tokens that are spelled out in a prompt as tokens; otherwise they are text."""
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
    given = bool(args.prompt) or args.prompts is not None
    _check(args, given)
    config = GenerationConfig(
        max_new_tokens=args.max_new_tokens,
        max_length=args.max_length,
        sampling=Sampling(args.temperature, args.top_k, args.top_p),
        seed=args.seed,
    )
    prompts = [*args.prompt, *(read_prompts(args.prompts) if args.prompts else [])]
    reading: dict[str, Any] = {
        "special_tokens": args.special_tokens,
        "template_arguments": dict(map(_template_argument, args.template_arguments)),
    }
    generator = open_generator(args.model, config, dtype=args.dtype, **reading)
    throughput = Throughput()
    try:
        if args.chat:
            system = [{"role": "system", "content": args.system}] if args.system else []
            chat_lines(Chat(generator, system), sys.stdin, throughput)
        elif given:
            _complete(generator, prompts, args.out, throughput)
        else:
            continue_lines(generator, sys.stdin, throughput)
    finally:
        print(throughput, file=sys.stderr)


def _check(args: Arguments, given: bool) -> None:
    """Raises ValueError: arguments that contradict each other."""
    if args.chat and (given or args.out is not None or args.special_tokens):
        raise ValueError(
            "--chat answers what is typed; leave out --prompt, --prompts, --out and --special-tokens, or write "
            'conversations as "messages" into a file for --prompts'
        )
    if args.system is not None and not args.chat:
        raise ValueError("--system belongs to --chat; in a file it is the first of the messages")
    if not (args.chat or given or sys.stdin.isatty()):
        raise ValueError("nothing to continue; give --prompt or --prompts, or type at a terminal")


def _template_argument(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise ValueError(f"template argument {text!r} is not NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _complete(
    generator: TextGenerator,
    prompts: Sequence[Any],
    path: pathlib.Path | None,
    throughput: Throughput,
) -> None:
    """Writes or prints all completions; ValueError says which failed."""
    out = None if path is None else CompletionFile(path, settings_of(generator, prompts))
    completions = complete_all(generator, prompts, out, throughput)
    if out is None:
        print("\n\n".join(c.prompt + c.text for c in completions))
    failed = [f"prompt {i}: {c.error}" for i, c in enumerate(completions, 1) if c.error]
    if failed:
        more = f"; and {len(failed) - 5} more" if len(failed) > 5 else ""
        raise ValueError(f"{len(failed)} of {len(prompts)} failed; {'; '.join(failed[:5])}{more}")


if __name__ == "__main__":
    with runtime.main_guard(CODES):
        main(tyro.cli(Arguments, description=__doc__))
