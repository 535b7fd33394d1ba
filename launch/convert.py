"""A Transformer to an untrained HypeNet student, ready for stage 1; without layers, a copy. GGUF becomes a folder.

python -m launch.convert Qwen3-1.7B student --softmax-layers 2 3 6 8 9 21 25 --verify
python -m launch.convert SmolLM2-135M-Instruct.Q4_1.gguf SmolLM2-135M-Instruct
"""

import dataclasses
import pathlib
from typing import Any

import jax
import numpy as np
import tyro

from hypenet_jax import runtime
from hypenet_jax.gguf import Unsaid, convert_gguf
from hypenet_jax.halo.transfer import transfer
from hypenet_jax.hub import model_folder
from hypenet_jax.model.config import AS_PUBLISHED, MixerOptions, hypenet
from hypenet_jax.weights import CheckpointError, read_hf, save_hf
from hypenet_jax.weights.model_card import ModelCard
from hypenet_jax.weights.verify import our_logits, their_logits, transformers_can_read

PLAN = ("mixer", "recurrent", "softmax", "tie_embeddings")


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Arguments of the command."""

    source: tyro.conf.Positional[pathlib.Path]
    """Checkpoint folder: config.json and .safetensors; or org/name in the local cache of Hugging Face; or a file whose
    name ends with .gguf."""
    target: tyro.conf.Positional[pathlib.Path]
    """Folder to write; must not exist, or be empty."""
    softmax_layers: tuple[int, ...] | None = None
    """Layers that keep softmax attention; the others become `mixer`. None: a copy."""
    mixer: str = "lightning"
    """Name of the mixer that replaces softmax attention."""
    recurrent: MixerOptions = AS_PUBLISHED
    """Options of that mixer."""
    softmax: MixerOptions = AS_PUBLISHED
    """Options of the layers that keep softmax attention."""
    tie_embeddings: bool | None = None
    """Whether the output head of the student is its embedding; None: as in the source."""
    seed: int = 0
    """Decides the weights of new gates."""
    verify: bool = False
    """Compare the logits of source and result, and of transformers where it is installed."""
    pre_tokenizer: str | None = None
    """Of a GGUF file that does not say it: how text is cut before merges, see `hypenet_jax.data.bpe.PRE_TOKENIZERS`."""
    end_tokens: tuple[str, ...] = ()
    """Of a GGUF file that does not say all: texts of the tokens that end what is written, first that of documents."""

    @property
    def plan(self) -> dict[str, Any]:
        """What `hypenet` takes beside the layers."""
        return {name: getattr(self, name) for name in PLAN}

    @property
    def reads_gguf(self) -> bool:
        return self.source.suffix == ".gguf"

    def __post_init__(self) -> None:
        if self.reads_gguf and self.softmax_layers is not None:
            raise ValueError(
                "a GGUF file becomes a folder first, without --softmax-layers; convert that folder then"
            )
        asked = [name for name in PLAN if getattr(self, name) != getattr(type(self), name)]
        if self.softmax_layers is None and asked:
            raise ValueError(f"a copy has the plan of its source: {asked} need --softmax-layers")
        if not self.reads_gguf and (self.pre_tokenizer or self.end_tokens):
            raise ValueError(
                "--pre-tokenizer and --end-tokens are for GGUF files; a folder says them"
            )


def convert(args: Arguments) -> None:
    """Writes the target folder: a copy, or the source with all but some layers converted, or what a GGUF file holds."""
    if args.reads_gguf:
        unsaid = Unsaid(pre_tokenizer=args.pre_tokenizer, end_tokens=args.end_tokens)
        converted = convert_gguf(args.source, args.target, unsaid)
        print(
            f"wrote {args.target}: {converted.dtype}, {converted.config.num_layers} layers",
            *converted.notes,
            sep="\n",
        )
        return
    source = model_folder(args.source)
    config, params = read_hf(source)
    stored, dtype, card = params["embed"]["embedding"].dtype, None, ModelCard()
    if args.softmax_layers is not None:
        teacher, config = config, hypenet(config, args.softmax_layers, **args.plan)
        params = transfer(teacher, params, config, jax.random.key(args.seed))
        dtype = "bfloat16" if stored == "bfloat16" else "float32"
        card = ModelCard(teacher=source)
    save_hf(args.target, config, params, dtype=dtype, tokenizer_from=source, card=card)
    layers = f"softmax attention in layers {config.softmax_layers}"
    print(f"wrote {args.target}: {dtype or stored}, {layers}")


def verify(args: Arguments) -> None:
    """Compares the logits of source and target, and of transformers where it can read the source.

    A GGUF file is computed nowhere here: its folder is compared with transformers alone.
    """
    folder = args.target if args.reads_gguf else model_folder(args.source)
    source = our_logits(folder)
    if not args.reads_gguf:
        result = our_logits(args.target)
        gap = np.abs(source - result).max()
        print(f"largest difference of logits, source and result: {gap:.3g}")
        if args.softmax_layers is None and not np.array_equal(source, result):
            raise CheckpointError(f"{args.target} does not compute what {args.source} computes")
    if transformers_can_read(folder):
        gap = np.abs(source - their_logits(folder)).max()
        print(f"largest difference of logits, {folder} here and in transformers: {gap:.3g}")


if __name__ == "__main__":
    with runtime.main_guard({CheckpointError: runtime.BAD_DATA, OSError: 2, ValueError: 2}):
        arguments = tyro.cli(Arguments, description=__doc__)
        convert(arguments)
        if arguments.verify:
            verify(arguments)
