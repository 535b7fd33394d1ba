"""A checkpoint of a Transformer to an untrained HypeNet student, ready for stage 1; without layers, a copy.

python -m launch.convert Qwen3-1.7B student --softmax-layers 2 3 6 8 9 21 25 --verify
"""

import dataclasses
import pathlib

import jax
import numpy as np
import tyro

from hypenet_jax import runtime
from hypenet_jax.halo.transfer import transfer
from hypenet_jax.model.config import hypenet
from hypenet_jax.weights import CheckpointError, read_hf, save_hf
from hypenet_jax.weights.verify import our_logits, their_logits, transformers_can_read


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Arguments of the command."""

    source: tyro.conf.Positional[pathlib.Path]
    """Checkpoint folder: config.json and .safetensors."""
    target: tyro.conf.Positional[pathlib.Path]
    """Folder to write; must not exist, or be empty."""
    softmax_layers: tuple[int, ...] | None = None
    """Layers that keep softmax attention; the others become `mixer`. None: a copy."""
    mixer: str = "lightning"
    """Name of the mixer that replaces softmax attention."""
    seed: int = 0
    """Decides the weights of new gates."""
    verify: bool = False
    """Compare the logits of source and result, and of transformers where it is installed."""


def convert(args: Arguments) -> None:
    """Writes the target folder: a copy, or the source with all but some layers converted."""
    config, params = read_hf(args.source)
    dtype = "bfloat16" if params["embed"]["embedding"].dtype == "bfloat16" else "float32"
    if args.softmax_layers is not None:
        teacher, config = config, hypenet(config, args.softmax_layers, mixer=args.mixer)
        params = transfer(teacher, params, config, jax.random.key(args.seed))
    save_hf(args.target, config, params, dtype=dtype, tokenizer_from=args.source)
    print(f"wrote {args.target}: {dtype}, softmax attention in layers {config.softmax_layers}")


def verify(args: Arguments) -> None:
    """Compares the logits of source and target, and of transformers where it can read the source."""
    source, result = our_logits(args.source), our_logits(args.target)
    print(f"largest difference of logits, source and result: {np.abs(source - result).max():.3g}")
    if transformers_can_read(args.source):
        gap = np.abs(source - their_logits(args.source)).max()
        print(f"largest difference of logits, source here and in transformers: {gap:.3g}")
    if args.softmax_layers is None and not np.array_equal(source, result):
        raise CheckpointError(f"{args.target} does not compute what {args.source} computes")


if __name__ == "__main__":
    with runtime.main_guard({CheckpointError: runtime.BAD_DATA, OSError: 2, ValueError: 2}):
        arguments = tyro.cli(Arguments, description=__doc__)
        convert(arguments)
        if arguments.verify:
            verify(arguments)
