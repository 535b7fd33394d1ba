"""A model folder continues prompts; without prompts, each line typed is one, until Ctrl-D.

python -m launch.generate MODEL [--prompt TEXT ... | --prompts FILE] [--max-new-tokens N] [--temperature 0.8 ...]
"""

import dataclasses
import json
import pathlib
import sys
from typing import Literal

import tyro

from hypenet_jax import runtime
from hypenet_jax.model.generate import Sampling
from hypenet_jax.run.generate import Speed, Writer, complete, open_writer, read_prompts
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
    temperature: float = 0.0
    """0 takes the likeliest token."""
    top_k: int | None = None
    top_p: float = 1.0
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] | None = None
    """Of weights and computation; None: as stored."""
    batch: int = 8
    """Prompts continued at once."""
    out: pathlib.Path | None = None
    """JSON lines to write instead of printing."""


def main(args: Arguments) -> None:
    typed = not args.prompt and args.prompts is None
    if typed and not sys.stdin.isatty():
        raise ValueError("nothing to continue; give --prompt or --prompts, or type at a terminal")
    texts = [*args.prompt, *(read_prompts(args.prompts) if args.prompts else [])]
    names = ("max_new_tokens", "seed", "batch", "dtype")
    sampling = Sampling(args.temperature, args.top_k, args.top_p)
    writer = open_writer(
        args.model, sampling=sampling, **{name: getattr(args, name) for name in names}
    )
    speed = Speed()
    _converse(writer, speed) if typed else _continue(writer, texts, args.out, speed)
    print(speed, file=sys.stderr)


def _continue(writer: Writer, texts: list[str], out: pathlib.Path | None, speed: Speed) -> None:
    results = complete(writer, texts, speed)
    if out is None:
        print("\n\n".join(result.prompt + result.text for result in results))
        return
    lines = [json.dumps(dataclasses.asdict(result), ensure_ascii=False) for result in results]
    out.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def _converse(writer: Writer, speed: Speed) -> None:
    show = lambda text: print(text, end="", flush=True)  # noqa: E731
    print("> ", end="", file=sys.stderr, flush=True)
    for line in sys.stdin:
        if line.strip():
            complete(writer, [line.rstrip("\n")], speed, on_text=show)
            print()
        print("> ", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    with runtime.main_guard({FloatingPointError: runtime.NUMERICS, **CODES}):
        main(tyro.cli(Arguments, description=__doc__))
